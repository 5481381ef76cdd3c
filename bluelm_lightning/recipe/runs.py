"""Runs that are kept: a step is done again only when something that it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bluelm_lightning import __version__
from bluelm_lightning.errors import ConfigError

_CONFIGS = Path(__file__).parents[1] / "configs"
_NAMED = re.compile(r"(?<!{)(?:{{)*{(\w+)}")  # {NAME}, and not {{NAME}}, which stands for itself


def literal(text: str) -> str:
    """An option that :class:`Runs` takes as it is: braces doubled, since it reads ``{NAME}`` as the folder of a run."""
    return text.replace("{", "{{").replace("}", "}}")


class Runs:
    """Runs commands of this package into folders of ``root``, each once.

    Args:
        root: folder of all.
        data_key: of the data that the runs read; another key makes every run anew.
    """

    def __init__(self, root: Path, data_key: str) -> None:
        self.root, self.data_key = root, data_key
        self.keys: dict[Path, str] = {}

    def fit(self, name: str, config: str, parents: Sequence[str] = (), options: Sequence[str] = ()) -> Path:
        """The run folder of ``bluelm-fit --config CONFIG``; a run that was killed goes on from its checkpoint.

        Args:
            name: of the folder.
            config: packaged YAML, ``tiny/text.yaml``.
            parents: values of ``--init_from`` with ``{NAME}`` for the folder of an earlier run.
            options: more command line; may name runs in the same way.
        """
        folder, last = self.root / name, self.root / name / "checkpoints" / "last.ckpt"
        hand_over = [f"--init_from={self._named(text)}/checkpoints/last.ckpt" for text in parents]
        settings = [self._named(text) for text in options]
        if self._needed(folder, [(_CONFIGS / config).read_text()], [*parents, *options]):
            begun = self._begin(folder) and last.is_file()
            start = [f"--ckpt_path={last}"] if begun else hand_over
            every = "--checkpoint_every_n_steps=100"
            if not (begun and _stands_at_the_end(folder)):
                self._run(name, ["fit", f"--config={config}", f"--run_dir={folder}", every, *settings, *start])
            (folder / "done.key").write_text(self.keys[folder])
        return folder

    def prune(self, name: str, run: str, options: Sequence[str]) -> Path:
        """The folder that ``bluelm-prune`` makes of ``{NAME}``, an earlier run."""
        folder = self.root / name
        if self._needed(folder, [], [run, *options]):
            shutil.rmtree(folder, ignore_errors=True)
            self._run(name, ["prune", self._named(run), f"--out={folder}", *options])
            (folder / "done.key").write_text(self.keys[folder])
        return folder

    # ------------------------------------------------------------------ what a run depends on
    def _named(self, text: str) -> str:
        return text.format_map({path.name: path for path in self.keys})

    def _needed(self, folder: Path, contents: list[str], texts: list[str]) -> bool:
        named = {path.name: key for path, key in self.keys.items()}
        used = [named[name] for text in texts for name in _NAMED.findall(text)]
        text = json.dumps([__version__, self.data_key, *contents, *texts, *used])
        self.keys[folder] = hashlib.sha256(text.encode()).hexdigest()[:16]
        done = folder / "done.key"
        return not done.is_file() or done.read_text() != self.keys[folder]

    def _begin(self, folder: Path) -> bool:
        """Whether the same run was begun before; if not, what is there goes, and then it is noted as begun."""
        self.root.mkdir(parents=True, exist_ok=True)
        note = self.root / f"{folder.name}.begun"
        if note.is_file() and note.read_text() == self.keys[folder]:
            return True
        note.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        note.write_text(self.keys[folder])
        return False

    def _run(self, name: str, arguments: list[str]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        log = self.root / f"{name}.log"
        code = self._start(arguments[0], arguments[1:], log)
        if code:
            last = (log.read_text().strip().splitlines() or ["no output"])[-1]
            raise ConfigError(f"the run {name} ended with exit code {code}: {last}; see {log}")

    def _start(self, module: str, arguments: list[str], log: Path) -> int:
        """Exit code of ``python -m bluelm_lightning.cli.MODULE``, whose output goes to ``log``."""
        environment = {**os.environ, "WANDB_MODE": "offline", "OMP_WAIT_POLICY": "PASSIVE"}
        with open(log, "w") as out:
            command = [sys.executable, "-m", f"bluelm_lightning.cli.{module}", *arguments]
            return subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment).returncode


def _stands_at_the_end(folder: Path) -> bool:
    """Whether a run was killed between its last checkpoint and its ``done.key``: to go on would be an error."""
    import torch
    import yaml

    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text())
        saved = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError):  # no settings, half a file: the run itself will say so
        return False
    return 0 < settings["trainer"]["max_steps"] <= saved["global_step"]
