"""The questions of a run in a fixed order, each with a seed of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from bluelm_lightning.data.scoring import can_be_asked
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.errors import DataError
from bluelm_lightning.synthesis.engines import Failed
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.rewrite import reworded, wordings
from bluelm_lightning.types import Sample


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        key: ``0/source/number`` and, of a rewritten one, ``~`` and its number: the same in every run of a plan.
        seed: of the sampling.
        sample: the conversation, with its reference answer.
    """

    key: str
    seed: int
    sample: Sample


class QuestionList:
    """All questions of a plan, in batches. Opening it reads no sample.

    Args:
        plan: see :class:`SynthesisPlan`.

    Raises:
        ConfigError, DataError: as :class:`ShardSource`.
    """

    def __init__(self, plan: SynthesisPlan) -> None:
        self.plan = plan
        self.sources = [ShardSource(spec.path) for spec in plan.questions]
        counts = [min(spec.count or len(source), len(source)) for spec, source in zip(plan.questions, self.sources)]
        self.places = [(s, n * len(self.sources[s]) // count) for s, count in enumerate(counts) for n in range(count)]

    @property
    def num_batches(self) -> int:
        return -(-len(self.places) // self.plan.batch)

    @property
    def fingerprint(self) -> str:
        """Changes with the shards or with the choice of samples."""
        parts = [*(source.fingerprint for source in self.sources), repr(self.places)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def batch(self, number: int, known: dict[str, str | None]) -> tuple[list[Question], list[Failed]]:
        """Questions of a batch: the originals, and their other wordings where the rewriter found some.

        Args:
            number: of the batch.
            known: wordings by key, None = one that may not be asked. Only what is missing is asked for, and put in.

        Returns:
            The questions, and why wordings are still missing.

        Raises:
            DataError: a sample that is no question.
        """
        originals, rewriting = list(self._originals(number)), self.plan.rewriting
        if rewriting is None:
            return originals, []
        out, failed = originals if rewriting.keep_original else [], list[Failed]()
        for copy in range(rewriting.copies):
            keys = [f"{question.key}~{copy}" for question in originals]
            new = [(key, question.sample) for key, question in zip(keys, originals) if key not in known]
            found = wordings([sample for _, sample in new], rewriting.by, [self._seed(key) for key, _ in new])
            known.update({key: text for (key, _), text in zip(new, found) if not isinstance(text, Failed)})
            failed += [text for text in found if isinstance(text, Failed)]
            said = ((key, known.get(key), question.sample) for key, question in zip(keys, originals))
            out = [*out, *(Question(k, self._seed(k), reworded(sample, text)) for k, text, sample in said if text)]
        return out, failed

    def _originals(self, number: int) -> Iterator[Question]:
        start = number * self.plan.batch
        for source, index in self.places[start : start + self.plan.batch]:
            sample = self.sources[source][index]
            if not can_be_asked(sample) and not _ends_with_user(sample):
                raise DataError("is no conversation with a question; choose other shards", sample.where)
            key = f"{source}/{self.sources[source].name}/{index}"
            yield Question(key, self._seed(key), sample)

    def _seed(self, key: str) -> int:
        return int(hashlib.sha256(f"{self.plan.seed} {key}".encode()).hexdigest()[:12], 16)


def _ends_with_user(sample: Sample) -> bool:
    return bool(sample.messages) and sample.messages[-1]["role"] == "user"
