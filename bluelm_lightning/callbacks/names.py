"""Names of everything that a callback logs, declared once."""

TOKENS_PER_SECOND = "throughput/tokens_per_second"  # tokens that are not padding, all processes together
LABELLED_PER_SECOND = "throughput/labelled_tokens_per_second"  # of them, those that carry loss
TILES_PER_SECOND = "throughput/tiles_per_second"
STEP_SECONDS = "throughput/step_seconds"  # mean of one optimizer step, waiting for data included
PADDING_SHARE = "throughput/padding_share"  # 0 .. 1
TOKENS_SEEN = "throughput/tokens_seen"  # since the first step of the run, also over resumes
SAMPLES_SEEN = "throughput/samples_seen"
ROW_TOKENS = "data/row_tokens"  # what LengthSchedule gave the step
BATCH_ROWS = "data/batch_rows"
SAMPLES = "samples/generations"  # W&B table


def norm(kind: str, component: str) -> str:
    """L2 norm of a component's gradients, parameters or updates: ``norm/grad/vision``, ``norm/update/vision``."""
    return f"norm/{kind}/{component}"


def share(source: str) -> str:
    """Share of a source that ShareSchedule gave the step, 0 .. 1."""
    return f"data/share/{source}"


def accuracy(task: str, mode: str) -> str:
    """Share of right answers to held-out prompts, 0 .. 1: ``eval/accuracy/digits_sum/thinking``."""
    return f"eval/accuracy/{task}/{mode}"


def resampling_share(source: str) -> str:
    """Share of a source that KeyDataResampling gave the step, 0 .. 1."""
    return f"resampling/share/{source}"


def resampling_epochs(source: str) -> str:
    """Times that the run has seen the mean sample of a source, as of the last decision."""
    return f"resampling/epochs/{source}"
