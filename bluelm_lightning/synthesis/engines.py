"""Who writes the traces: a model in this process, or (``endpoint``) a server."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.generation import Sampling
from bluelm_lightning.generation.engine import RolloutEngine
from bluelm_lightning.types import Generation, Prompt, Sample


@dataclass(frozen=True)
class Failed:
    """Why there is no reply.

    Args:
        reason: what the server said, or what happened.
        fatal: no other request would be answered either, such as with a wrong key; the run ends.
    """

    reason: str
    fatal: bool = False


class TraceEngine:
    """Answers questions, each several times. A subclass defines :meth:`write` and :meth:`provenance`."""

    def write(
        self, samples: Sequence[Sample], thinking: bool, sampling: Sampling, copies: int, seeds: Sequence[int]
    ) -> Sequence[Sequence[Generation | Failed | None]]:
        """``copies`` replies to the last turn of each sample; Failed, or None, where the engine could not give one.

        Args:
            samples: conversations; an answer at their end is not shown to the engine.
            thinking: whether to ask for thinking.
            sampling: how tokens are drawn.
            copies: replies a sample.
            seeds: one a sample; the same seed gives the same replies, as far as the engine is reproducible.
        """
        raise TypeError(f"{type(self).__name__} must define write(samples, thinking, sampling, copies, seeds)")

    def write_copies(
        self,
        samples: Sequence[Sample],
        thinking: bool,
        sampling: Sampling,
        copies: Sequence[Sequence[int]],
        seeds: Sequence[int],
    ) -> Sequence[Sequence[Generation | Failed | None]]:
        """Of the replies of :meth:`write` those of these numbers, for each sample. By default all are written."""
        made = self.write(samples, thinking, sampling, max(map(max, copies)) + 1, seeds)
        return [[replies[number] for number in numbers] for replies, numbers in zip(made, copies)]

    def provenance(self) -> dict[str, str]:
        """What each kept trace says of its engine: ``{"engine", "model"}``, and what tells its replies from others'."""
        raise TypeError(f"{type(self).__name__} must define provenance()")


class LocalEngine(TraceEngine):
    """The model of a finished run, decoding in this process.

    Args:
        run: folder that bluelm-fit wrote.
        checkpoint: file in its ``checkpoints`` folder.
        writer: who decodes; default: this process. A :class:`VLLMEngine` asks its server instead.
        batch_size: prompts decoded together.
        device: where the model is put, such as ``cuda``.

    Raises:
        ConfigError: a batch size below 1; or, when it is first asked, no such run.
    """

    def __init__(
        self,
        run: str,
        checkpoint: str = "last.ckpt",
        writer: RolloutEngine | None = None,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"{batch_size} is below 1", "batch_size")
        self.run, self.checkpoint, self.device = run, checkpoint, device
        self.writer, self.batch_size = writer or RolloutEngine(), batch_size
        self._loaded: tuple[Any, Any] | None = None  # model and encoder

    def write(
        self, samples: Sequence[Sample], thinking: bool, sampling: Sampling, copies: int, seeds: Sequence[int]
    ) -> list[list[Generation]]:
        """See :meth:`TraceEngine.write`. Raises DataError: a sample that the model's encoder cannot read."""
        vlm, encoder = self._model()
        prompts = [Prompt(s, encoder.prompt(s, thinking), thinking, seed=seed) for s, seed in zip(samples, seeds)]
        done = self.writer.write(vlm, prompts, encoder.tokenizer, sampling, copies, None, self.batch_size, step=0)
        return [[rollout.generation for rollout in done[n * copies : (n + 1) * copies]] for n in range(len(prompts))]

    def provenance(self) -> dict[str, str]:
        """Run folder, and the hash of its weights."""
        weights = Path(self.run) / "checkpoints" / self.checkpoint
        if not weights.is_file():
            raise ConfigError(f"{weights} does not exist; give a folder that bluelm-fit wrote", "engine.run")
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        return {"engine": type(self.writer).__name__, "model": self.run, "weights": found}

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            from bluelm_lightning.cli.load import load_run

            stage, data = load_run(self.run, self.checkpoint)
            self._loaded = stage.vlm.to(self.device), data.encoder
        return self._loaded
