"""How a stage reads samples, from its settings alone: no weights are read, and no source is opened."""

from __future__ import annotations

from pathlib import Path

from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.arguments import split_arguments
from bluelm_lightning.cli.construct import instantiate
from bluelm_lightning.cli.layers import Layers
from bluelm_lightning.datamodules import MultimodalDataModule, PromptDataModule
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.inspection import Reading


def reading_of_stage(settings: str, is_run: bool, path: str) -> Reading:
    """Tokenizer, tiles and mode of a stage.

    Args:
        settings: a YAML, packaged ones by name; or the folder of a run.
        is_run: which of the two.
        path: the shards that are looked at; if they are a source of the stage, its share of thinking holds for them.

    Raises:
        ConfigError: the settings are wrong, or the tokenizer is missing.
    """
    config = str(Path(settings) / "config.yaml") if is_run else settings
    if is_run and not Path(config).is_file():
        raise ConfigError(f"{settings} holds no config.yaml; give a folder that bluelm-fit wrote", "--run")
    cli = FitCLI(Layers(split_arguments(["--config", config])))
    cli.rehearse()
    if cli.rehearsed is None:
        raise ConfigError(f"the model cannot be built without its weights: {cli.rehearsal_error}", "--config")
    data: MultimodalDataModule = instantiate(cli.parser, cli.config, "data")
    specs, data.specs, data.val_specs = data.specs, [], []
    data.prepare(cli.rehearsed)
    mine = [spec for spec in specs if spec.path and Path(spec.path).resolve() == Path(path).resolve()]
    notes = [f"read as {settings} reads it ({type(cli.rehearsed).__name__}, {type(data).__name__})"]
    share = mine[0].thinking_share if mine else None
    if share is not None:
        what = "asks for thinking" if isinstance(data, PromptDataModule) else "keeps the traces"
        notes.append(f"the stage {what} in {share:.0%} of the passes")
    if mine and mine[0].cut_share:
        notes.append(f"it cuts {mine[0].cut_share:.0%} of the traces short; here they are whole")
    return Reading(
        encoder=data.encoder,
        asks=isinstance(data, PromptDataModule),
        plan=data.plan,
        thinking_share=share,
        notes=notes,
    )
