"""Resampled: how a data module meets what resamples it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bluelm_lightning.data.policies  # noqa: F401  a YAML names them by their short names
from bluelm_lightning.data.admission import Admission
from bluelm_lightning.data.resampler import KeyDataResampler
from bluelm_lightning.datamodules.course import ScheduledCourse
from bluelm_lightning.datamodules.sources import Renamed, SourceSpec, weights_of
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import SharePolicy


class Resampled:
    """The part of a data module that a ``KeyDataResampling`` meets."""

    specs: list[SourceSpec]
    opened: list[Renamed]
    course: ScheduledCourse
    resampler: KeyDataResampler | None = None
    lag = 4  # steps from a decision to the batches it holds for: more than Lightning fetches ahead

    def resample(self, policy: SharePolicy, ledger: str | None, run: str) -> KeyDataResampler:
        """From now on ``policy`` decides the shares; whoever calls this feeds and keeps what is returned.

        Without it the sources' weights, else their sizes, are the shares.

        Args:
            policy: figures of the ledger -> shares.
            ledger: file of the ledger; ``None`` = in the checkpoints alone.
            run: name of the run, under which a run that is begun again finds its own figures.

        Raises:
            ConfigError: another callback moves the shares already, or the ledger is of other sources.
        """
        self.refuse_two(self.course.shares is not self.resampler)
        sizes = [len(source) * (spec.epochs or 1) for spec, source in zip(self.specs, self.opened)]
        self.resampler = self.course.shares = KeyDataResampler(
            [spec.label for spec in self.specs],
            self.opened,
            weights_of(self.specs) or sizes,
            policy,
            Path(ledger) if ledger is not None else None,
            run,
            self.lag,
            self.turn,
            [spec.max_repeats for spec in self.specs],
        )
        return self.resampler

    def refuse_two(self, moved: bool) -> None:
        """Raises ConfigError: another callback has ``moved`` the shares."""
        if moved:
            raise ConfigError("two callbacks move the shares; keep one of them", "trainer.callbacks")

    def turn(self, step: int) -> int:
        """Number under which the loader asks what the batches of ``step`` are like."""
        return step


def admission_of(specs: Sequence[SourceSpec], resampler: KeyDataResampler | None) -> Admission:
    """Which samples may still be seen, after what the ledger says of earlier stages."""
    return Admission([spec.max_repeats for spec in specs], resampler.before if resampler is not None else ())
