"""The flags of bluelm-fit itself, which may stand in a YAML too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bluelm_lightning.cli.run_folder import RunFolder
from bluelm_lightning.errors import ConfigError


class HandOver(NamedTuple):
    """``--init_from vision,projector=runs/a/checkpoints/last.ckpt``."""

    path: Path
    components: list[str] | None  # None = all


class Options:
    """What the flags say.

    Args:
        values: the merged settings.
        configs: names of the ``--config`` files.

    Raises:
        ConfigError: flags that contradict each other, a wrong type, or a checkpoint that does not exist.
    """

    def __init__(self, values: dict[str, Any], configs: Sequence[str]) -> None:
        self.configs = configs
        self.run_dir, self.ckpt_path = _text(values, "run_dir"), _text(values, "ckpt_path")
        self.summary = bool(values.get("summary"))
        self.every_n_steps = _count(values, "checkpoint_every_n_steps")
        self.init_from = [_hand_over(text) for text in _texts(values.get("init_from"))]
        if self.ckpt_path and self.init_from:
            raise ConfigError(
                "cannot go with --ckpt_path, which continues a run with its optimizer and its position in the data, "
                "while --init_from starts a new one from weights alone; give one of them",
                "--init_from",
            )

    def run_folder(self) -> RunFolder:
        return RunFolder(self.run_dir, self.ckpt_path, self.configs)


def _text(values: dict[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{value!r} is not a path; correct it", f"--{key}")
    return value


def _texts(value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ConfigError(f"{value!r} is not a path or a list of paths; correct it", "--init_from")
    return texts


def _count(values: dict[str, Any], key: str) -> int | None:
    value = values.get(key)
    if value is not None and not (isinstance(value, int) and value > 0 and value is not True):
        raise ConfigError(f"{value!r} is not a number of steps; give 1 or more", f"--{key}")
    return value


def _hand_over(text: str) -> HandOver:
    names, equals, path = text.partition("=")
    restricted = equals and re.fullmatch(r"[A-Za-z_][\w,]*", names) and not Path(text).is_file()
    found = Path(path if restricted else text).expanduser()
    if not found.is_file():
        raise ConfigError(f"{found} does not exist; give a .ckpt or .safetensors file", "--init_from")
    return HandOver(found, names.split(",") if restricted else None)
