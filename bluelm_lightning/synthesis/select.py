"""Which replies to a question are kept: pure functions of what was written and what the verifiers said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from bluelm_lightning.data.chat import END_THINK, THINK
from bluelm_lightning.rl.rewards.rules import plain
from bluelm_lightning.synthesis.plan import Band


@dataclass(frozen=True)
class Reply:
    """One reply to a question.

    Args:
        thinking, answer: what it consists of; answer None = never given.
        tokens: of the whole reply.
        finished: not cut by the limit.
        scores: of the verifiers that could judge it, by name.
        judged: one of them says whether the answer is right; others look at the steps or the form.
    """

    thinking: str | None
    answer: str | None
    tokens: int
    finished: bool
    scores: dict[str, float] = field(default_factory=dict)
    judged: bool = False

    @property
    def right(self) -> bool | None:
        """False: a verifier does not say 1; None: all do, but none could judge the answer."""
        if any(score != 1.0 for score in self.scores.values()):
            return False
        return True if self.judged else None


@dataclass(frozen=True)
class Vote:
    """The answer that most replies give.

    Args:
        answer: as compared, lower case; None = nobody answered.
        votes: replies that give it.
        share: of all replies.
    """

    answer: str | None
    votes: int
    share: float


@dataclass
class Chosen:
    """What became of the replies to one question.

    Args:
        kept: (place of the reply, name of its band), in the order of the replies.
        dropped: replies by reason; kept and dropped together are all.
        vote: see :class:`Vote`.
    """

    kept: list[tuple[int, str]]
    dropped: Counter[str]
    vote: Vote


def vote_of(replies: Sequence[Reply]) -> Vote:
    """Majority vote; of equally frequent answers the one given first."""
    given = Counter(plain(reply.answer) for reply in replies if reply.answer)
    if not given:
        return Vote(None, 0, 0.0)
    answer, votes = given.most_common(1)[0]
    return Vote(answer, votes, votes / len(replies))


def choose(replies: Sequence[Reply], thinking: bool, agreement: float, bands: Sequence[Band]) -> Chosen:
    """Rejection sampling: the first right replies of each band.

    A reply is dropped, for the first of these reasons that holds: ``unfinished``; ``form`` (asked to think and did
    not, or the other way round; it is empty, or has a second marker of thinking); ``wrong`` (a verifier says so);
    ``outvoted`` (another answer has the majority); ``disagreement`` (the majority is too small); ``unverified`` (nobody
    could judge, and no vote is asked for); ``duplicate`` (the same trace was kept); ``length`` (no band holds it);
    ``surplus`` (its bands are full).

    Args:
        replies: to one question.
        thinking: whether thinking was asked for.
        agreement: least share of the majority; 0 = no vote.
        bands: lengths to keep.
    """
    vote, room = vote_of(replies), {band.name: band.keep for band in bands}
    kept: list[tuple[int, str]] = []
    dropped, seen = Counter[str](), set[tuple[str | None, str | None]]()
    for place, reply in enumerate(replies):
        reason = _fault(reply, thinking, agreement, vote)
        fitting = [band.name for band in bands if band.holds(reply.tokens)]
        free = next((name for name in fitting if room[name]), None)
        if reason is None and (reply.thinking, reply.answer) in seen:
            reason = "duplicate"
        reason = reason or ("length" if not fitting else "surplus" if free is None else None)
        if reason is not None or free is None:
            dropped[str(reason)] += 1
            continue
        room[free] -= 1
        seen.add((reply.thinking, reply.answer))
        kept.append((place, free))
    return Chosen(kept, dropped, vote)


def _fault(reply: Reply, thinking: bool, agreement: float, vote: Vote) -> str | None:
    if not reply.finished:
        return "unfinished"
    if not (reply.answer or "").strip() or bool((reply.thinking or "").strip()) != thinking:
        return "form"
    if any(marker in f"{reply.thinking} {reply.answer}" for marker in (THINK, END_THINK)):
        return "form"
    if reply.right is False:
        return "wrong"
    if agreement and plain(str(reply.answer)) != vote.answer:
        return "outvoted"
    if agreement and vote.share < agreement:
        return "disagreement"
    return "unverified" if reply.right is None and not agreement else None
