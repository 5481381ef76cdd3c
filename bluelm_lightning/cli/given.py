"""What the small commands are given: refused before anything is read."""

from __future__ import annotations

from pathlib import Path

from bluelm_lightning.errors import ConfigError


def at_least(least: float, value: float, option: str) -> None:
    """Raises ConfigError: the value of an option is below ``least``, or no number."""
    if not value >= least:
        raise ConfigError(f"{value} is below {least}; raise it", option)


def folder_at(path: str) -> Path:
    """The folder of ``--out``, made or not. Raises ConfigError: there is something else."""
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(f"{place} is a file; give a folder", "--out")
    return Path(path)


def device_at(name: str) -> str:
    """A device that torch has here. Raises ConfigError: it has not."""
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such kind, or none in this machine
        why = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"{name!r} cannot be used: {why:.150}; give cpu, or cuda where there is one", "--device"
        ) from error
    return name
