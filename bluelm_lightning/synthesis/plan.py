"""What ``bluelm-data synthesize`` is told: the keys of its YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field

from bluelm_lightning.errors import ConfigError
from bluelm_lightning.rl.rewards import Reward
from bluelm_lightning.synthesis.engines import TraceEngine
from bluelm_lightning.synthesis.rewrite import Rewriter


@dataclass
class Questions:
    """Where questions come from.

    Args:
        path: shards of conversations, with reference answers unless votes alone decide.
        count: questions, evenly over the shards; default: all.
    """

    path: str
    count: int | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ConfigError(f"{self.count} is below 1; leave it out to ask all", "questions.count")


@dataclass
class Rewriting:
    """Questions in other words, beside the original ones or in their place.

    Args:
        by: who rewrites.
        copies: other wordings a question.
        keep_original: ask the original too.
    """

    by: Rewriter
    copies: int = 1
    keep_original: bool = True


@dataclass
class Band:
    """A range of lengths, of which so many traces a question are kept.

    Args:
        name: in the report.
        least, most: tokens of a whole reply; default: no bound.
        keep: traces a question.
    """

    name: str
    least: int = 0
    most: int | None = None
    keep: int = 1

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ConfigError(f"band {self.name!r} keeps {self.keep}; give 1 or more, or leave the band out", "bands")
        if self.least < 0 or (self.most is not None and self.most < self.least):
            raise ConfigError(f"band {self.name!r} from {self.least} to {self.most} holds no length", "bands")

    def holds(self, tokens: int) -> bool:
        return self.least <= tokens and (self.most is None or tokens <= self.most)


@dataclass
class SynthesisPlan:
    """Keys of the YAML. What stands behind ``agreement`` may change without asking the engine again.

    Args:
        questions: sources of questions.
        engine: who answers.
        out: folder of the answers, the shards and the report.
        verifiers: rewards by name; a trace is right when each that can judge it says 1, and one of them looked at the
            answer (``verdict`` of the reward). A question may name its own of them in ``meta["rewards"]``.
        rewriting: other wordings; default: none.
        thinking: ask for thinking, and drop replies without.
        samples: replies a question.
        temperature, top_p, max_new_tokens: of the sampling.
        batch: questions asked at a time: what a kill may lose.
        seed: of everything drawn.
        agreement: share of a question's replies that must give the kept answer; 0 = no vote. It also decides alone
            where no verifier can judge; without a vote such replies are dropped.
        bands: lengths to keep, short and long; default: one trace a question, whatever its length.
    """

    questions: list[Questions]
    engine: TraceEngine
    out: str
    verifiers: dict[str, Reward] = field(default_factory=dict)
    rewriting: Rewriting | None = None
    thinking: bool = True
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    batch: int = 64
    seed: int = 0
    agreement: float = 0.0
    bands: list[Band] = field(default_factory=lambda: [Band("any")])

    def __post_init__(self) -> None:
        for key in ("samples", "batch", "max_new_tokens"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{getattr(self, key)} is below 1", key)
        if not 0 <= self.agreement <= 1:
            raise ConfigError(f"{self.agreement} is not between 0 and 1", "agreement")
        rewriter = self.rewriting and self.rewriting.by
        parts: dict[str, tuple[object, type]] = {
            "engine": (self.engine, TraceEngine),
            "rewriting.by": (rewriter, Rewriter),
        }
        parts |= {f"verifiers.{name}": (reward, Reward) for name, reward in self.verifiers.items()}
        for key, (part, base) in parts.items():
            if type(part) is base:  # what an empty mapping gives
                raise ConfigError(f"names no class; write class_path, and a {base.__name__} behind it", key)
        if not self.questions or not self.bands:
            raise ConfigError("is empty; name at least one", "questions" if not self.questions else "bands")
        names = [band.name for band in self.bands]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"two are called {twice!r}; give each a name of its own", "bands")
        if not self.agreement and not any(reward.verdict for reward in self.verifiers.values()):
            raise ConfigError("none judges the answer; name one that does, or set agreement", "verifiers")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(f"{self.samples} greedy samples are all the same; raise temperature", "temperature")
        if self.rewriting and self.rewriting.copies < 1:
            raise ConfigError(f"{self.rewriting.copies} is below 1", "rewriting.copies")
