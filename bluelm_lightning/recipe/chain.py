"""The stages of the report in their order, each an ordinary command that you could type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bluelm_lightning.recipe.runs import Runs

STUDENT = ("--layers=4", "--width=128", "--groups=2", "--neurons=320")  # what tiny/joint.yaml expects
TEACHER = "--model.teacher_weights={text}/checkpoints/last.ckpt"
PRUNED = "--model.vlm.decoder.checkpoint={pruned}"

# name and config, what it starts from, further options
STAGES: list[tuple[str, Sequence[str], Sequence[str]]] = [
    ("text", (), ()),
    ("pruned", ("{text}",), STUDENT),
    ("distill", (), (TEACHER, PRUNED)),
    ("distill_decay", ("{distill}",), (TEACHER,)),
    ("tower", (), ()),
    ("joint_align", ("vision={tower}", "decoder={distill_decay}"), ()),
    ("joint", ("{joint_align}",), ()),
    ("reasoning", ("{joint}",), ()),
    ("long_context", ("{reasoning}",), ()),
    ("long_sft", ("{long_context}",), ()),
]


def run_chain(runs: Runs, say: Callable[[str], None], after: Callable[[str, Path], None]) -> None:
    """Run every stage that is not done yet; ``after`` is called with the name and folder of each."""
    for name, parents, options in STAGES:
        say(name)
        if name == "pruned":
            folder = runs.prune(name, parents[0], options)
        else:
            folder = runs.fit(name, f"tiny/{name}.yaml", parents, options)
        after(name, folder)
