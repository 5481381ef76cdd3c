"""The records that travel from a tar file to the loss, and the Protocols by which rooms meet.

Shapes: B rows, T tokens of a row, D documents in a batch, N tiles, Q visual tokens of a tile, S tile side in pixels.

The way of a sample::

    Source[i] -> Sample -> Encoded -> PackedBatch -> stage
      (tar)     (raw)     (ids, tiles)  (rows of documents)

In reinforcement learning::

    Sample -> Prompt -> Rollout -> Scored -> Experience -> stage
              (mode,    (tokens,   (rewards  (packed rollouts
               budget)   log-probs) by name)  with advantages)
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, Protocol, Self, TypedDict, runtime_checkable

if TYPE_CHECKING:  # torch costs a second: this file must stay cheap to import
    from torch import Tensor

IGNORE = -100  # label of a position that carries no loss


class Message(TypedDict):
    """One turn. ``{"role": "assistant", "content": "19", "thinking": "9+5=14 14+5=19"}``."""

    role: str  # "system" | "user" | "assistant"
    content: str  # "<image>" stands where a picture goes
    thinking: NotRequired[str]  # assistant only: what stands between <think> and </think>; absent = non-thinking


@dataclass
class Sample:
    """A raw sample as a source returns it: either a conversation or one text, with its pictures as encoded bytes."""

    id: str  # unique within its source, "digits-000123"
    source: str  # "easy_vqa"
    messages: list[Message] = field(default_factory=list)  # a conversation; empty when `text` is set
    text: str | None = None  # pre-training document, "<image>a red circle"
    images: list[bytes] = field(default_factory=list)  # PNG, JPEG or WebP bytes, one for each "<image>"
    task: str = ""  # what evaluation groups by, "easy_vqa.shape"
    answer: str | None = None  # reference answer of the last turn, for scoring
    where: str = ""  # file and key, for messages: "train-000003.tar:000123"
    meta: dict[str, Any] = field(default_factory=dict)  # whatever else the JSON held


@dataclass
class Encoded:
    """A sample as token ids and tiles."""

    id: str
    source: str
    ids: Tensor  # int64[T]; an image is Q image tokens for each of its tiles
    labels: Tensor  # int64[T]; labels[t] is the id to be predicted after ids[t], IGNORE where there is no loss
    tiles: Tensor  # uint8[N, 3, S, S]
    image_positions: Tensor  # int64[N * Q]; where in `ids` the features of the tiles go, in order

    def __len__(self) -> int:
        return int(self.ids.numel())


@dataclass
class PackedBatch:
    """Documents packed into rows. Positions restart and attention is blocked between documents."""

    ids: Tensor  # int64[B, T]
    labels: Tensor  # int64[B, T], shifted already (see Encoded.labels)
    positions: Tensor  # int64[B, T], 0, 1, 2, ... from the start of each document
    segments: Tensor  # int64[B, T], number of the document in this batch (0 .. D-1), -1 at padding
    cu_seqlens: Tensor  # int32[D' + 1], document bounds in the flattened B * T row; padding is a document of its own
    max_seqlen: int  # the longest of them
    tiles: Tensor  # uint8[N, 3, S, S]
    image_positions: Tensor  # int64[N * Q], positions in the flattened B * T row
    tile_segments: Tensor  # int64[N], the document of each tile
    sample_ids: list[str]  # D names
    sources: list[str]  # D names
    cursor: int = 0  # serial number in the loader; the loader's state is saved up to the last batch trained on
    refs: list[Ref] = field(default_factory=list)  # D references, where a loader drew the documents

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.segments >= 0).sum())

    def _map(self, fn: Any) -> Self:
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{k: fn(v) if hasattr(v, "to") else v for k, v in changed.items()})

    def to(self, device: Any, non_blocking: bool = True) -> Self:
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return self._map(lambda t: t.pin_memory())


class Ref(NamedTuple):
    """Which sample to read: ``sources[source][index]`` in pass number ``epoch`` over that source."""

    source: int
    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass
class Skipped:
    """A sample that could not be used, reported and counted, never dropped in silence."""

    id: str
    source: str
    reason: str  # "12000 tokens, rows hold 4096"


@dataclass(frozen=True)
class ImageSpec:
    """What the data needs to know of a model to prepare pictures for it."""

    tile_size: int  # S, pixels
    tokens_per_tile: int  # Q


@dataclass
class Generation:
    """What a model wrote after a prompt."""

    ids: list[int]  # without the end-of-text token
    text: str  # decoded, special tokens kept
    thinking: str | None  # between <think> and </think>; None when the model did not think
    answer: str | None  # after the thinking; None when <think> was never closed
    num_tokens: int
    finished: bool  # False when the length limit cut it


@dataclass
class Prompt:
    """What the policy is asked, in which mode, and how long it may think."""

    sample: Sample  # its reference answer and its reward spec are what the rewards look at
    encoded: Encoded  # up to the model's turn
    thinking: bool  # whether the prompt asks for thinking
    budget: int | None = None  # most thinking tokens; None = free, 0 = none
    seed: int = 0  # of the sampling: the same prompt and seed give the same rollouts, whatever the neighbours
    ref: Ref | None = None  # where it was drawn


@dataclass
class Rollout:
    """One answer of the policy to a prompt, token by token. GRPO and PPO share it. T tokens were written."""

    prompt: Prompt
    group: int  # rollouts of one prompt have the same number, 0, 1, 2, ... in the batch
    ids: Tensor  # int64[T], with </s> if it ended
    logprobs: Tensor  # float32[T], of the distribution that was sampled from; 0 where forced
    forced: Tensor  # bool[T], put there by the budget, not chosen by the policy: no loss, no importance ratio
    generation: Generation
    thinking_tokens: int  # tokens between <think> and </think>, forced ones included
    step: int = 0  # optimizer step of the weights that wrote it
    answer_start: int = 0  # place in `ids` after the last </think>

    @property
    def truncated(self) -> bool:
        """Cut by the length limit before </s>."""
        return not self.generation.finished


@dataclass
class Score:
    """What one reward says of one rollout. Missing is not zero: it is left out, counted and reported."""

    value: float | None  # None = missing
    reason: str = ""  # why it is missing: "judge timed out after 10 s"


@dataclass
class Scored:
    """A rollout and its rewards."""

    rollout: Rollout
    rewards: dict[str, Score]  # by name, before weights: {"exact_match": Score(1.0), "format": Score(0.0)}
    total: float | None  # weighted sum; None when a reward that must not be missing is missing


@dataclass(kw_only=True)
class Experience(PackedBatch):
    """Packed rollouts for one micro-batch of the policy update: prompts with their answers, labels on the answers.

    M tokens were written in it, in R rollouts. The M-long fields follow the labelled positions in reading order.
    """

    rollout: Tensor  # int64[M], number of the rollout of each token, 0 .. R-1
    advantages: Tensor  # float32[M]
    behaviour: Tensor  # float32[M], log-probabilities when it was written
    old: Tensor  # float32[M], the trainer's own before the first update on it; NaN: the update is the first
    learned: Tensor  # bool[M], chosen by the policy; forced tokens are False
    stops: Tensor  # bool[M, 2], </s> and <think> were ruled out when the token was drawn
    num_sequences: int  # of the whole optimizer step, all micro-batches and processes
    num_learned: int  # learned tokens of the whole optimizer step
    values: Tensor | None = None  # float32[M], PPO: expected return before each token when the rollouts were scored
    returns: Tensor | None = None  # float32[M], PPO: what came of it
    metrics: dict[str, float] = field(default_factory=dict)  # of the rollouts, on the first micro-batch only


@runtime_checkable
class Source(Protocol):
    """Anything indexable that returns samples: a user's own source needs no base class of ours."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class StepSchedule(Protocol):
    """A value that moves with the optimizer step, and with nothing else."""

    @property
    def settings(self) -> dict[str, Any]: ...  # plain values: a checkpoint keeps them, and a resume compares them

    def value_at(self, step: int) -> Any: ...


class SharePolicy:
    """Shares of the sources out of what a ledger says of them, as a pure function; YAML finds subclasses by name."""

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values: a checkpoint keeps them, and a resume compares them."""
        return {"policy": type(self).__name__, **vars(self)}

    def shares(self, figures: dict[str, Any], step: int) -> dict[str, float]:
        """Weight of each source, none negative, on any scale; ``figures`` are ``SourceFigures`` by name of source."""
        raise TypeError(f"{type(self).__name__} must define shares(figures, step)")


class StageModel(Protocol):
    """What data modules and callbacks may ask of the root module."""

    @property
    def image_spec(self) -> ImageSpec: ...

    @property
    def vocab_size(self) -> int: ...

    def gradient_factor(self) -> float: ...  # from gradients of the backward passes to those of the step

    def generate(self, prompts: list[Encoded], **sampling: Any) -> list[Generation]: ...


class Learner(Protocol):
    """What a loader of prompts asks of a stage that learns from its own rollouts.

    ``write`` answers prompts, if need be none, and scores the answers; ``learn`` makes experience of them;
    ``informative`` counts groups that teach something, and ``pass_rates`` gives the share of right answers by group. A
    learner that is ``ahead`` writes in another thread, with the weights of the last ``snapshot``.
    """

    ahead: bool
    scored: list[Scored]  # of the last collection
    collected: list[list[Scored]]  # collections since the last batch, those that taught nothing too

    def snapshot(self) -> None: ...

    def pass_rates(self, scored: list[Scored]) -> dict[int, float]: ...

    def write(self, prompts: list[Prompt], first_group: int = 0) -> list[Scored]: ...

    def informative(self, scored: list[Scored]) -> int: ...

    def learn(self, scored: list[Scored]) -> list[Experience]: ...


class StageData(Protocol):
    """What stages and callbacks may ask of the data module."""

    tokenizer: Any

    def preview(self, batch: PackedBatch, color: bool = True) -> str: ...

    def sample_prompts(self, count: int, thinking: bool) -> list[tuple[Sample, Encoded]]: ...

    def held_out_prompts(self, count: int, thinking: bool) -> list[tuple[Sample, Encoded]]: ...

    def score(self, sample: Sample, generation: Generation) -> bool: ...

    def manifest(self) -> dict[str, Any]: ...
