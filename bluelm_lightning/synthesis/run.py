"""From questions to SFT shards: ask, judge, choose, write, report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from bluelm_lightning.data.convert import write_shards
from bluelm_lightning.data.shard_index import write_json
from bluelm_lightning.data.shard_swap import in_place_of
from bluelm_lightning.errors import DataError
from bluelm_lightning.synthesis.ask import Answers, Asked
from bluelm_lightning.synthesis.plan import SynthesisPlan
from bluelm_lightning.synthesis.select import Chosen, choose
from bluelm_lightning.types import Message, Sample

PROVENANCE = "synthesis"  # key of Sample.meta
NAMED = 100  # questions without all their replies that the report names one by one


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


class NothingKept(DataError):
    """No trace was kept. The shards and the report of an earlier run are as they were.

    Args:
        report: as it would have been.
        path: where it was written.
    """

    def __init__(self, report: dict[str, Any], path: Path) -> None:
        reasons = sum((Counter(row["dropped"]) for row in report["tasks"].values()), Counter[str]())
        parts = [f"{count} {name}" for name, count in reasons.most_common()]
        lost = {"questions not answered": "failed_questions", "wordings failed": "failed_wordings"}
        parts += [f"{report['cost'][key]} {name}" for name, key in lost.items() if report["cost"][key]]
        super().__init__(f"no trace was kept: {', '.join(parts) or 'there was no question'}; see {path}")
        self.report = report


def synthesize(plan: SynthesisPlan, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Writes ``out/shards`` and ``out/report.json``; returns the report.

    A call that was killed goes on from its last whole batch, and gives the same shards as one that was not. Shards and
    report of an earlier run stay until the new ones are whole.

    Raises:
        NothingKept: no trace was kept; its report is ``out/nothing_kept.json``.
        DataError: as the engine and the verifiers.
    """
    provenance = plan.engine.provenance()
    answers, tallies = Answers(plan, provenance), defaultdict[str, Tally](Tally)
    out, report = Path(plan.out), dict[str, Any]()
    nothing = out / "nothing_kept.json"

    def kept() -> Iterator[Sample]:
        for asked in answers.all(say):
            chosen = choose(asked.replies, plan.thinking, plan.agreement, plan.bands)
            tallies[asked.question.sample.task or asked.question.sample.source].add(asked, chosen)
            for place, band in chosen.kept:
                yield trace(asked, place, band, chosen, provenance)
        report.update(_report(answers, tallies, provenance))
        if not any(row["kept"] for row in report["tasks"].values()):
            write_json(nothing, report, indent=1)
            raise NothingKept(report, nothing)

    out.mkdir(parents=True, exist_ok=True)
    with in_place_of(out / "shards") as folder:
        write_shards(kept(), folder, on_error="raise")
    write_json(out / "report.json", report, indent=1)
    nothing.unlink(missing_ok=True)
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
            **asdict(cost), "tokens_a_kept_trace": cost.tokens / total if total else None,
            "seconds_a_kept_trace": cost.seconds / total if total else None,
        },
        "tasks": {task: tally.told() for task, tally in sorted(tallies.items())},
        "failed": dict(islice(answers.failed.items(), NAMED)),
    }  # fmt: skip


def print_report(report: dict[str, Any]) -> None:
    """The report as a table for the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="synthesis")
    columns = ("task", "questions", "replies", "right", "agreement", "kept", "by band", "dropped")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "by band", "dropped") else "right")
    for task, row in report["tasks"].items():
        lists = (", ".join(f"{n} {name}" for name, n in row[key].items()) for key in ("kept_by_band", "dropped"))
        shares = (f"{row[key]:.1%}" for key in ("right", "agreement"))
        numbers = (str(row["questions"]), str(row["replies"]), *shares, str(row["kept"]))
        table.add_row(escape(task), *numbers, *map(escape, lists))
    Console().print(table)
    cost = report["cost"]
    each = cost["tokens_a_kept_trace"]
    print(f"{cost['tokens']} tokens in {cost['seconds']:.0f} s" + (f": {each:.0f} tokens a kept trace" if each else ""))
    if cost["failed_questions"]:
        print(f"{cost['failed_questions']} questions were not answered; the same command asks them again")
        for key, reason in islice(report["failed"].items(), 3):
            print(f"  {key}: {reason}")
    if cost["failed_wordings"]:
        print(f"{cost['failed_wordings']} wordings failed; the same command asks for them again")
    if cost["lost_wordings"]:
        print(f"{cost['lost_wordings']} wordings were empty, unchanged or lost a number, and are not asked")
