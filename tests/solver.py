"""Questions about sums, a solver that answers them behind an endpoint, and the settings of a run that asks it."""

import re
from random import Random

import yaml
from tiny import question

from bluelm_lightning.data.shards import ShardWriter

QUESTIONS = 24


def sums(folder):
    """Shards of sums; the last one without a reference answer."""
    with ShardWriter(folder) as writer:
        for n in range(QUESTIONS):
            sample = question(f"{n}+{n + 3}=?", str(2 * n + 3), id=f"sum{n}", source="sums", task="sum")
            sample.answer = str(2 * n + 3) if n < QUESTIONS - 1 else None
            writer.write(sample)
    return folder


def solver(number, body):
    """Adds the numbers of the question; by the request's seed right or wrong, short or long."""
    a, b = map(int, re.findall(r"\d+", body["messages"][-1]["content"])[:2])
    rng = Random(body["seed"])
    total = a + b + rng.choice([0, 0, 0, 1])
    trace = f"{a}+{b}={total}" + f" check {total}" * rng.choice([0, 9])
    message = {"content": str(total), "reasoning_content": trace}
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": len(trace) // 2}}


def settings(folder, url, out, **change):
    engine = {"url": url, "model": "m", "pause_s": 0.0, "asking": {"retries": 2, "concurrency": 4, "pause_s": 0.02}}
    plan = {
        "questions": [{"path": str(folder / "sums")}],
        "engine": {"class_path": "EndpointEngine", "init_args": engine},
        "out": str(folder / out),
        "verifiers": {"answer": {"class_path": "NumericMatch"}, "steps": {"class_path": "Steps"}},
        "samples": 4,
        "batch": 4,
        "bands": [{"name": "short", "most": 10}, {"name": "long", "least": 11}],
    }
    (folder / f"{out}.yaml").write_text(yaml.safe_dump({**plan, **change}))
    return str(folder / f"{out}.yaml")


def shards(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}
