"""Pipeline: steps one after the other, each in a folder of its own, that goes on where it was killed.

    Pipeline([CollectJson("llava.json"), LengthFilter(), NearDuplicates(), BuildShards()], "curated").run()

``bluelm-data run PIPELINE.yaml`` does the same from YAML. Nothing depends on the number of processes or on kills: the
same steps over the same inputs give the same bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bluelm_lightning.data.curation import passes
from bluelm_lightning.data.curation.engine import Engine, LocalEngine
from bluelm_lightning.data.curation.folder import Part, StepFolder
from bluelm_lightning.data.curation.progress import StepProgress, step_name
from bluelm_lightning.data.curation.report import write_report
from bluelm_lightning.data.curation.stages import StepRun
from bluelm_lightning.data.curation.step import Build, Collect, Step
from bluelm_lightning.errors import ConfigError


class Pipeline:
    """Steps and the folder that they write to.

    Args:
        steps: in order. Collect steps come first, and their records are joined; a build step keeps the records for the
            step behind it.
        output: folder; a folder for each step, ``report.json``, ``report.md`` and ``timings.json`` in it.
        engine: where parts are worked on; default: a process for each core of this machine.
        show: say on standard error how far it is.

    Raises:
        ConfigError: no step, no collect step at the start, or one behind other steps.
    """

    def __init__(
        self, steps: Sequence[Step], output: str | Path, engine: Engine | None = None, show: bool = True
    ) -> None:
        self.steps, self.output = list(steps), Path(output)
        self.engine, self.progress = engine or LocalEngine(), StepProgress(show)
        kinds = [isinstance(step, Collect) for step in self.steps]
        if not kinds or not kinds[0]:
            raise ConfigError("the first step brings no records in; begin with CollectJson or another", "steps[0]")
        if True in kinds[kinds.index(False) if False in kinds else len(kinds) :]:
            late = len(kinds) - 1 - kinds[::-1].index(True)
            raise ConfigError("collects behind other steps; collect first, then filter", f"steps[{late}]")

    def run(self, redo: bool = False) -> dict[str, Any]:
        """Runs what is not done yet. Returns the report.

        Args:
            redo: throw away the steps that were made with other settings or inputs, by steps that are gone, whose files
                are cut or missing, or that could not read a picture, instead of refusing to go on.

        Raises:
            ConfigError: a step was made with other settings, or its folder is not ours; another run writes to the
                output.
            DataError: an input cannot be used at all.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        with self._alone():
            passes.forget()
            try:
                return self._run(redo)
            finally:
                passes.forget()
                self.engine.close()

    def _run(self, redo: bool) -> dict[str, Any]:
        parts: list[Part] = []
        keys = self._keys()
        self._check_others(redo)
        for number, (step, key) in enumerate(zip(self.steps, keys), 1):
            name = step_name(number, step)
            folder = StepFolder(self.output / name)
            if redo and (folder.key() != key or folder.wants_redo()):
                self._forget(number)
            again = folder.begin(key)
            if not again:
                StepRun(step, folder, self.output, self.engine, self.progress).run(parts, key)
            manifest = folder.manifest()
            self.progress.finish(name, manifest, again)
            if not isinstance(step, Build):
                own = [Part(folder.path / part["file"], part["records"]) for part in manifest["parts"]]
                parts = parts + own if isinstance(step, Collect) else own
        return write_report(self.output, [step_name(n, step) for n, step in enumerate(self.steps, 1)])

    def _keys(self) -> list[str]:
        """Fingerprint of each step, before anything runs: an input that is not there is refused here."""
        keys: list[str] = []
        for number, step in enumerate(self.steps):
            try:
                keys.append(fingerprint(step, keys[-1] if keys else ""))
            except ConfigError as error:
                text = str(error).removeprefix(f"{error.key}: ")
                raise ConfigError(text, f"steps[{number}].init_args.{error.key}") from error
        return keys

    def _others(self) -> list[Path]:
        """Folders of steps in the output, also of other pipelines; never one that something else has written."""
        return [path for path in sorted(self.output.glob("[0-9][0-9]_*")) if StepFolder(path).key()]

    def _check_others(self, redo: bool) -> None:
        """Folders of steps that are no longer there could be taken for the result."""
        names = {step_name(number, step) for number, step in enumerate(self.steps, 1)}
        left = [path for path in self._others() if path.name not in names]
        if left and not redo:
            reason = "was made by other steps than these; run with --redo to remove it, or name another folder"
            raise ConfigError(f"{left[0]} {reason}", "output")
        for path in left:
            shutil.rmtree(path)

    def _forget(self, number: int) -> None:
        """Removes the folder of a step, and with it those behind it, whose pictures may lie there."""
        for path in self._others():
            if int(path.name[:2]) >= number:
                shutil.rmtree(path)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with open(self.output / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigError(f"another run writes to {self.output}; wait for its end", "output") from error
            yield


def fingerprint(step: Step, before: str) -> str:
    """sha256 of a step's class, version, settings and inputs, and of the steps before it."""
    name = f"{type(step).__module__}.{type(step).__qualname__}"
    inputs = [[str(path), *_probe(path)] for path in step.inputs()]
    held = [before, name, step.version, step.settings(), inputs]
    return hashlib.sha256(json.dumps(held, sort_keys=True, default=str).encode()).hexdigest()


def _probe(path: Path) -> tuple[int, str]:
    """Size, and sha256 of the first and last 64 KiB: a cheap sign that a file is the one that was read."""
    try:
        with open(path, "rb") as file:
            head = file.read(1 << 16)
            size = file.seek(0, 2)
            file.seek(max(0, size - (1 << 16)))
            return size, hashlib.sha256(head + file.read()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; correct the path", "paths") from error
