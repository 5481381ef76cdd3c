"""Pre-training: next token over text and image-text."""

from bluelm_lightning.stages.base import Stage


class PretrainStage(Stage):
    """Loss on every token that is not an image token. Adapter alignment is this stage with tower and decoder frozen::

        frozen: [vlm.vision.*, vlm.decoder.*]

    Source: BlueLM-2.5-3B, joint pre-training (a) adapter alone, (b) everything unfrozen.
    """

    learns_from = "documents"
