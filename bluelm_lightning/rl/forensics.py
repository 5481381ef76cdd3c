"""What a batch of scored rollouts says about the run: pure functions of records, numbers with names out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import combinations

from bluelm_lightning.rl.rewards.form import repeated_share
from bluelm_lightning.types import Rollout, Scored

_NGRAM = 8  # tokens; what counts as repetition in the log


def rollout_metrics(
    scored: Sequence[Scored], verdicts: Collection[str] = (), correct: Collection[str] = ()
) -> dict[str, float]:
    """Names of everything that a stage logs of its rollouts.

    - ``rollout/length``, ``rollout/thinking_tokens``: mean tokens, thinking over the prompts that ask for it;
    - ``rollout/truncated``, ``rollout/forced``, ``rollout/unanswered``: shares of rollouts;
    - ``rollout/repetition``: mean share of 8-grams that stood in the answer before;
    - ``rollout/zero_variance``: share of groups in which every rollout has the same total;
    - ``reward/NAME/mean``, ``/std``, ``/missing``, and ``reward/total/mean``;
    - ``reward/length_correlation``: Pearson's, of total and length;
    - ``reward/disagreement/A_B``: how often one of two verdicts calls an answer right and the other wrong;
    - ``mode/thinking_correct``, ``mode/direct_correct``: mean of the ``correct`` rewards by mode;
    - ``mode/switch_accuracy``, ``mode/think_leak``, ``mode/empty_think``: see :func:`mode_obedience`.

    Args:
        scored: rollouts with their rewards.
        verdicts: names of the rewards that judge whether an answer is right.
        correct: names of the rewards whose mean is accuracy; default: the verdicts.
    """
    rollouts = [item.rollout for item in scored]
    asked = [rollout for rollout in rollouts if rollout.prompt.thinking]
    totals = [(item.total, float(len(item.rollout.ids))) for item in scored if item.total is not None]
    values = {
        "rollout/length": mean([len(rollout.ids) for rollout in rollouts]),
        "rollout/thinking_tokens": mean([rollout.thinking_tokens for rollout in asked]),
        "rollout/truncated": mean([rollout.truncated for rollout in rollouts]),
        "rollout/forced": mean([bool(rollout.forced.any()) for rollout in rollouts]),
        "rollout/unanswered": mean([not rollout.generation.answer for rollout in rollouts]),
        "rollout/repetition": mean([repeated_share(rollout.ids.tolist(), _NGRAM) for rollout in rollouts]),
        "rollout/zero_variance": mean([spread(group) < 1e-6 for group in _totals_by_group(scored).values()]),
        "reward/total/mean": mean([total for total, _ in totals]),
        "reward/length_correlation": correlation(totals),
    }
    values |= _by_reward(scored) | _disagreements(scored, verdicts) | _by_mode(scored, correct or verdicts)
    return values | mode_obedience(rollouts)


def mode_obedience(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Does the switch in the prompt decide whether the model thinks?

    ``switch_accuracy``: share of rollouts that think exactly if asked to; ``think_leak``: share of those not asked that
    write a thinking marker; ``empty_think``: share of those that think whose thinking is blank. Asked to think under a
    budget of 0 counts as not asked.
    """
    thought = [rollout.generation.thinking is not None for rollout in rollouts]
    asked = [rollout.prompt.thinking and rollout.prompt.budget != 0 for rollout in rollouts]
    leaks = [_leaks(rollout) for rollout, think in zip(rollouts, asked) if not think]
    traces = [rollout.generation.thinking for rollout in rollouts if rollout.generation.thinking is not None]
    return {
        "mode/switch_accuracy": mean([think == did for think, did in zip(asked, thought)]),
        "mode/think_leak": mean(leaks),
        "mode/empty_think": mean([not trace.strip() for trace in traces]),
    }


def _leaks(rollout: Rollout) -> bool:
    return "<think>" in rollout.generation.text or "</think>" in rollout.generation.text


def _by_reward(scored: Sequence[Scored]) -> dict[str, float]:
    names = sorted({name for item in scored for name in item.rewards})
    out: dict[str, float] = {}
    for name in names:
        given = [item.rewards[name].value for item in scored if name in item.rewards]
        present = [value for value in given if value is not None]
        out[f"reward/{name}/mean"], out[f"reward/{name}/std"] = mean(present), spread(present)
        out[f"reward/{name}/missing"] = 1 - len(present) / len(given)
    return out


def _disagreements(scored: Sequence[Scored], verdicts: Collection[str]) -> dict[str, float]:
    """For each two verdicts that both spoke of some rollout."""
    out: dict[str, float] = {}
    for first, second in combinations(sorted(verdicts), 2):
        pairs = [(_value(item, first), _value(item, second)) for item in scored]
        both = [(a >= 0.5) != (b >= 0.5) for a, b in pairs if a is not None and b is not None]
        if both:
            out[f"reward/disagreement/{first}_{second}"] = mean(both)
    return out


def _by_mode(scored: Sequence[Scored], names: Collection[str]) -> dict[str, float]:
    found: dict[str, list[float]] = defaultdict(list)
    for item in scored:
        values = [value for name in names if (value := _value(item, name)) is not None]
        if values:
            mode = "thinking" if item.rollout.prompt.thinking and item.rollout.prompt.budget != 0 else "direct"
            found[f"mode/{mode}_correct"].append(mean(values))
    return {name: mean(values) for name, values in found.items()}


def pass_rates(scored: Sequence[Scored], required: Collection[str] = ()) -> dict[int, float]:
    """Mean of the ``required`` rewards (else of all), held in [0, 1], by group; groups without any are left out."""
    found: dict[int, list[float]] = defaultdict(list)
    for item in scored:
        names = set(required) & set(item.rewards) or set(item.rewards)
        values = [value for name in sorted(names) if (value := _value(item, name)) is not None]
        if values:
            found[item.rollout.group].append(min(1.0, max(0.0, mean(values))))
    return {group: mean(values) for group, values in found.items()}


def _value(item: Scored, name: str) -> float | None:
    return item.rewards[name].value if name in item.rewards else None


def _totals_by_group(scored: Sequence[Scored]) -> dict[int, list[float]]:
    groups: dict[int, list[float]] = defaultdict(list)
    for item in scored:
        if item.total is not None:
            groups[item.rollout.group].append(item.total)
    return groups


def mean(values: Sequence[float]) -> float:
    """0 where there is nothing: a metric that vanishes for a step breaks the curve."""
    return sum(values) / len(values) if values else 0.0


def spread(values: Sequence[float]) -> float:
    """Standard deviation of the values themselves."""
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))


def correlation(pairs: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation; 0 where one side does not vary."""
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    scale = spread(left) * spread(right)
    centre = mean(left), mean(right)
    return mean([(a - centre[0]) * (b - centre[1]) for a, b in pairs]) / scale if scale > 1e-12 else 0.0
