"""A finished run back into memory, from its folder alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bluelm_lightning.components.weights import init_from
from bluelm_lightning.datamodules import MultimodalDataModule
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages import Stage


def load_run(run_dir: str | Path, checkpoint: str = "last.ckpt") -> tuple[Stage, MultimodalDataModule]:
    """Stage (on the CPU, in evaluation mode) and data module (tokenizer, encoder and sources open) of a run folder.

    Args:
        run_dir: folder that ``bluelm-fit`` wrote.
        checkpoint: file in its ``checkpoints`` folder.

    Raises:
        ConfigError: the folder holds no ``config.yaml`` or no such checkpoint, or its settings are wrong.
    """
    config = Path(run_dir) / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"{run_dir} holds no config.yaml; give a folder that bluelm-fit wrote", "run_dir")
    _, stage, data = built(["--config", str(config)])
    init_from(stage.vlm, Path(run_dir) / "checkpoints" / checkpoint)
    data.prepare(stage)
    return stage.eval(), data


def built(argv: Sequence[str]) -> tuple[dict[str, Any], Stage, MultimodalDataModule]:
    """Settings, stage and data module of a command line of ``bluelm-fit``. Raises ConfigError: as that command."""
    from bluelm_lightning.cli.app import FitCLI
    from bluelm_lightning.cli.arguments import split_arguments
    from bluelm_lightning.cli.construct import instantiate
    from bluelm_lightning.cli.layers import Layers

    cli = FitCLI(Layers(split_arguments(argv)))
    stage = instantiate(cli.parser, cli.config, "model")
    return cli.config.as_dict(), stage, instantiate(cli.parser, cli.config, "data")
