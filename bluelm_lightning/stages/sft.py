"""Supervised fine-tuning in thinking and non-thinking modes."""

from bluelm_lightning.stages.base import Stage


class SFTStage(Stage):
    """Loss on assistant turns only, thinking traces included; the mode of a turn comes with the data.

    Source: BlueLM-2.5-3B, SFT.
    """

    learns_from = "documents"
