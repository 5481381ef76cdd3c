"""Names of everything that a stage logs, declared once."""

LOSS = {"train": "train/loss", "val": "val/loss"}  # mean over labelled tokens, nats


def source_loss(phase: str, source: str) -> str:
    """Mean loss of one source's labelled tokens."""
    return f"{phase}/loss/{source}"
