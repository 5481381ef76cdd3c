"""What the settings point to: found missing in seconds, before weights or data are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bluelm_lightning.cli.classes import check_module
from bluelm_lightning.errors import ConfigError


def check_modules(config: Any, key: str = "") -> None:
    """Raises ConfigError for a class path that a configuration may not name, at any depth (dicts of Any included)."""
    for name, value in _items(config):
        where = f"{key}.{name}" if key else str(name)
        if name == "class_path" and isinstance(value, str):
            check_module(value, key)
        check_modules(value, where)


def _items(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, list | tuple):
        yield from enumerate(node)
    elif isinstance(node, dict):
        yield from node.items()


def check_paths(config: Any) -> None:
    """Raises ConfigError or DataError for shards or a tokenizer folder that are not there."""
    from bluelm_lightning.data.shard_paths import find_shards

    arguments = config.data.get("init_args") or {}
    for key in ("sources", "val_sources"):
        for index, spec in enumerate(arguments.get(key) or []):
            if spec.get("path"):
                try:
                    find_shards(spec["path"])
                except ConfigError as error:
                    text = str(error).removeprefix(f"{error.key}: ")
                    fix = "" if ";" in text else "; write it with bluelm-data, or correct the path"
                    raise ConfigError(text + fix, f"data.{key}[{index}].path") from None
    _check_tokenizer(arguments.get("tokenizer"))


def _check_tokenizer(name: Any) -> None:
    """A Hugging Face id has at most one slash; anything else that looks like a path must be a folder."""
    is_path = isinstance(name, str) and (name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1)
    if is_path and not Path(name).expanduser().is_dir():
        raise ConfigError(f"folder {name} does not exist; train one, or give a Hugging Face id", "data.tokenizer")


def check_trainer(trainer: Any) -> None:
    """Raises ConfigError for settings of the trainer that a run cannot follow, or would not."""
    if trainer.get("default_root_dir"):
        raise ConfigError("is the run folder here; give --run_dir instead", "trainer.default_root_dir")
    for key in ("gradient_clip_val", "gradient_clip_algorithm"):
        if trainer.get(key) is not None:
            reason = "is not followed, since the stage clips by the norm; take it away and set model.clip_norm"
            raise ConfigError(reason, f"trainer.{key}")
    if trainer.get("accumulate_grad_batches", 1) < 1:
        raise ConfigError(f"{trainer.accumulate_grad_batches} is below 1", "trainer.accumulate_grad_batches")


def check_resume(checkpoint: dict[str, Any], optimizer: Any, max_steps: int) -> None:
    """The optimizer's state brings its old settings back, so other ones in the YAML would be ignored in silence.

    Args:
        checkpoint: what Lightning saved.
        optimizer: as the configuration now builds it.
        max_steps: the trainer's; -1 = no bound.

    Raises:
        ConfigError: a setting of the optimizer differs, or the run has reached its last step.
    """
    saved = [group for state in checkpoint.get("optimizer_states", []) for group in state["param_groups"]]
    wanted = optimizer.param_groups
    if len(saved) != len(wanted):
        raise ConfigError(
            f"the checkpoint has {len(saved)} parameter groups, this configuration {len(wanted)}; restore the groups, "
            "or start a new run with --init_from",
            "model.optimizer.groups",
        )
    for old, new in zip(saved, wanted):
        for key in ("lr", "weight_decay", "betas", "eps"):
            name = "initial_lr" if key == "lr" else key  # lr itself is the schedule's current value
            then, now = old.get(name, old.get(key)), new.get(name, new.get(key))
            if then is not None and now is not None and not _same(then, now):
                raise ConfigError(
                    f"the run was started with {then} and now has {now}; --ckpt_path continues with what was saved: "
                    f"set it back to {then}, or start a new run with --init_from",
                    f"model.optimizer.{key}",
                )
    step = int(checkpoint.get("global_step", 0))
    if 0 <= max_steps <= step:
        raise ConfigError(f"the checkpoint stands at step {step} of {max_steps}; raise it", "trainer.max_steps")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return math.isclose(float(one), float(other), rel_tol=1e-9)
