"""Reading: what training would make of a sample, as far as its settings are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.loader import PackingPlan, is_cut, misfit
from bluelm_lightning.data.pairs import CHOSEN, REJECTED, PairEncoder, parts_of
from bluelm_lightning.inspection.pictures import Tiling
from bluelm_lightning.types import Encoded, Sample


@dataclass
class Reading:
    """How samples become tokens and tiles.

    Args:
        encoder: of a stage, or made of a tokenizer; None: there are no tokens to show.
        tiling: how pictures are cut; an encoder brings its own.
        asks: the stage answers prompts and learns from its answers (reinforcement learning).
        row_tokens: tokens of a row; None: unknown.
        plan: how a stage packs; None: these are no stage's settings, and every sample is shown as what it seems to be.
        thinking_share: in which share of the passes a trace is kept; None: always.
        notes: what the reader should know of these settings, a sentence each.
    """

    encoder: Encoder | None = None
    tiling: Tiling = field(default_factory=Tiling)
    asks: bool = False
    row_tokens: int | None = None
    plan: PackingPlan | None = None
    thinking_share: float | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.encoder is not None:
            spec = self.encoder.image_spec
            self.tiling = Tiling(spec.tile_size, self.encoder.max_grid, self.encoder.thumbnail)

        if self.plan is not None:
            self.row_tokens = self.plan.row_tokens

    def documents(self, sample: Sample) -> list[tuple[str, Encoded]]:
        """The documents that training makes of a sample, by title; none without an encoder.

        A preference has two. Without a stage, a conversation that waits for its answer is a prompt; a stage's encoder
        decides by itself.

        Raises:
            DataError: the sample cannot be used, for the reason that training would give.
        """
        if self.encoder is None:
            return []
        thinks = self.thinking_share != 0
        guess = self.plan is None
        if self.asks or (guess and is_prompt(sample)):
            return [("prompt", self.encoder.prompt(sample, thinks))]
        paired = isinstance(self.encoder, PairEncoder) or (guess and is_preference(sample))
        encoder = self._pairs if paired else self.encoder
        document = encoder(sample if thinks else encoder.without_traces(sample))
        return list(zip((CHOSEN, REJECTED) if paired else ("sample",), parts_of(document)))

    def misfit(self, documents: list[Encoded]) -> tuple[str, bool]:
        """What does not fit of the documents of one sample, empty where all does; and whether training leaves them out.

        Prompts are not packed, so they always fit.
        """
        if self.asks or self.row_tokens is None:
            return "", False
        reason = misfit(documents, self.plan or PackingPlan(self.row_tokens))
        if reason is None or self.plan is None:
            return reason or "", False
        if is_cut(documents, self.plan):
            return f"{reason}; the text is cut", False
        return reason + "; training would stop" * (self.plan.overlong == "error"), True

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of the template's special tokens and of the tokenizer's own."""
        if self.encoder is None:
            return frozenset()
        return frozenset([*self.encoder.special.values(), *self.encoder.tokenizer.all_special_ids])

    @cached_property
    def _pairs(self) -> PairEncoder:
        made = self.encoder
        assert made is not None
        if isinstance(made, PairEncoder):
            return made
        return PairEncoder(made.tokenizer, made.image_spec, made.max_grid, made.thumbnail)


def is_preference(sample: Sample) -> bool:
    """A question with an answer that is preferred and one that is not; see `data.pairs`."""
    return CHOSEN in sample.meta and REJECTED in sample.meta


def is_prompt(sample: Sample) -> bool:
    """A conversation whose last turn waits for an answer."""
    waits = bool(sample.messages) and sample.messages[-1]["role"] != "assistant"
    return waits and not is_preference(sample)


def mode_of(sample: Sample) -> str:
    """``text``, ``preference``, ``prompt``, ``thinking`` or ``non_thinking``."""
    if sample.text is not None:
        return "text"
    if is_preference(sample):
        return "preference"
    if is_prompt(sample):
        return "prompt"
    return "thinking" if any(turn.get("thinking") for turn in sample.messages) else "non_thinking"
