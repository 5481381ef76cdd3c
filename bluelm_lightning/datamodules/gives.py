"""What passes from a data module to a stage, where both say it: ``documents``, ``pairs`` or ``prompts``."""

from __future__ import annotations

from typing import Any

from bluelm_lightning.errors import ConfigError

_FITS = {
    "documents": "SFTDataModule or PretrainDataModule",
    "pairs": "PreferenceDataModule",
    "prompts": "PromptDataModule",
}


def check_gives(data: Any, stage: Any) -> None:
    """Compares ``gives`` of a data module with ``learns_from`` of a stage; None, or no such attribute, goes with all.

    Raises:
        ConfigError: the two differ, or the data module gives prompts to a stage that cannot answer any.
    """
    gives, wants = data.gives, getattr(stage, "learns_from", None)
    mine, theirs = type(data).__name__, type(stage).__name__
    if gives and wants and gives != wants:
        fits = _FITS.get(wants, f"a data module of {wants}")
        raise ConfigError(f"{theirs} learns from {wants}, and {mine} gives {gives}; give it {fits}", "data")
    if gives == "prompts" and not hasattr(stage, "write"):
        raise ConfigError(f"{theirs} answers no prompts; {mine} goes with RLStage", "data")
