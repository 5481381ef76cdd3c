"""From questions to SFT shards: ask, judge, choose, write, report."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bluelm_lightning.data.convert import write_shards
from bluelm_lightning.synthesis.ask import Answers, Asked
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.select import Chosen, choose
from bluelm_lightning.types import Message, Sample

PROVENANCE = "synthesis"  # key of Sample.meta


@dataclass
class Tally:
    """Counts of one task; replies = kept + all that was dropped."""

    questions: int = 0
    answered: int = 0  # questions with at least one kept trace
    replies: int = 0
    right: int = 0
    agreement: float = 0.0  # summed shares of the majority
    kept: Counter[str] = field(default_factory=Counter)  # by band
    dropped: Counter[str] = field(default_factory=Counter)  # by reason
    kept_tokens: int = 0

    def add(self, asked: Asked, chosen: Chosen) -> None:
        self.questions += 1
        self.answered += bool(chosen.kept)
        self.replies += len(asked.replies)
        self.right += sum(reply.right is True for reply in asked.replies)
        self.agreement += chosen.vote.share
        self.kept.update(band for _, band in chosen.kept)
        self.dropped += chosen.dropped
        self.kept_tokens += sum(asked.replies[place].tokens for place, _ in chosen.kept)

    def told(self) -> dict[str, Any]:
        """As JSON: counts, and shares of them."""
        kept = self.kept.total()
        return {
            "questions": self.questions, "replies": self.replies, "kept": kept, "kept_by_band": dict(self.kept),
            "dropped": dict(self.dropped.most_common()),
            "acceptance": kept / max(self.replies, 1), "right": self.right / max(self.replies, 1),
            "agreement": self.agreement / max(self.questions, 1),
            "questions_answered": self.answered / max(self.questions, 1),
            "mean_tokens_kept": self.kept_tokens / max(kept, 1),
        }  # fmt: skip


def synthesize(plan: SynthesisPlan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Writes ``out/shards`` and ``out/report.json``; returns the report.

    A call that was killed goes on from its last whole batch, and gives the same shards as one that was not.

    Raises:
        DataError: no trace was kept, or as the engine and the verifiers.
    """
    provenance = plan.engine.provenance()
    answers, tallies = Answers(plan, provenance), defaultdict[str, Tally](Tally)

    def kept() -> Iterator[Sample]:
        for asked in answers.all(say):
            chosen = choose(asked.replies, plan.thinking, plan.agreement, plan.bands)
            tallies[asked.question.sample.task or asked.question.sample.source].add(asked, chosen)
            for place, band in chosen.kept:
                yield trace(asked, place, band, chosen, provenance)
        report.update(_report(answers, tallies, provenance))  # before the shards are closed: there may be no trace
        (out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")

    out, report = Path(plan.out), dict[str, Any]()
    write_shards(kept(), out / "shards", on_error="raise", overwrite=True)
    return report


def trace(asked: Asked, place: int, band: str, chosen: Chosen, provenance: dict[str, str]) -> Sample:
    """A kept reply as a training sample, with where it comes from in ``meta["synthesis"]``."""
    sample, reply = asked.question.sample, asked.replies[place]
    turns = sample.messages[:-1] if sample.messages[-1]["role"] == "assistant" else sample.messages
    said: Message = {"role": "assistant", "content": str(reply.answer)}
    if reply.thinking:
        said["thinking"] = reply.thinking
    origin = {
        **provenance, "question": asked.question.key, "from": sample.id, "seed": asked.question.seed, "copy": place,
        "votes": chosen.vote.votes, "replies": len(asked.replies), "scores": reply.scores, "band": band,
        "tokens": reply.tokens,
    }  # fmt: skip
    name = f"{asked.question.key}#{place}"
    return replace(sample, id=name, messages=[*turns, said], meta={**sample.meta, PROVENANCE: origin})


def _report(answers: Answers, tallies: dict[str, Tally], provenance: dict[str, str]) -> dict[str, Any]:
    total = sum(tally.kept.total() for tally in tallies.values())
    cost = answers.cost
    return {
        "engine": provenance,
        "cost": {
            **asdict(cost), "tokens_a_kept_trace": cost.tokens / max(total, 1),
            "seconds_a_kept_trace": cost.seconds / max(total, 1),
        },
        "tasks": {task: tally.told() for task, tally in sorted(tallies.items())},
    }  # fmt: skip


def print_report(report: dict[str, Any]) -> None:
    """The report as a table for the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="synthesis")
    columns = ("task", "questions", "replies", "right", "agreement", "kept", "by band", "dropped")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "by band", "dropped") else "right")
    for task, row in report["tasks"].items():
        lists = (", ".join(f"{n} {name}" for name, n in row[key].items()) for key in ("kept_by_band", "dropped"))
        shares = (f"{row[key]:.1%}" for key in ("right", "agreement"))
        table.add_row(task, str(row["questions"]), str(row["replies"]), *shares, str(row["kept"]), *lists)
    Console().print(table)
    cost = report["cost"]
    print(f"{cost['tokens']} tokens in {cost['seconds']:.0f} s: {cost['tokens_a_kept_trace']:.0f} tokens a kept trace")
    if cost["failed_questions"]:
        print(f"{cost['failed_questions']} questions were not answered; the same command asks them again")
