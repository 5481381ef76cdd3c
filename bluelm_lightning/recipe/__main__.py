"""``python -m bluelm_lightning.recipe``: the report's chain in miniature, and what each stage gained.

Everything goes to ``runs/recipe``. A stage is run again only when its settings, its parents or the data have changed.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path("runs/recipe")


def main(arguments: list[str]) -> int:
    if arguments:
        print("recipe: error: takes no arguments", file=sys.stderr)
        return 2
    from bluelm_lightning.errors import ConfigError
    from bluelm_lightning.recipe.chain import run_chain
    from bluelm_lightning.recipe.runs import Runs

    started = time.time()
    rows: list[dict[str, Any]] = []

    def say(text: str) -> None:
        print(f"[{time.time() - started:4.0f} s] {text}", flush=True)

    def after(name: str, folder: Path) -> None:
        if name != "pruned":
            rows.append({"stage": name, **measured(folder)})
            print("         " + told(rows[-1]), flush=True)

    try:
        run_chain(Runs(ROOT, ready_data(ROOT, say)), say, after)
    except ConfigError as error:
        print(f"recipe: error: {error}", file=sys.stderr)
        return 2
    (ROOT / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(needles_found(rows))
    print(f"{time.time() - started:.0f} s in all; what each stage gained: {ROOT / 'summary.json'}")
    return 0


def ready_data(root: Path, say: Any) -> str:
    """Write tokenizer and shards unless they are there; returns their key."""
    from bluelm_lightning.recipe.prepare import prepare

    here = Path(__file__).parent
    files = [here / name for name in ("corpus.py", "needles.py", "prepare.py")]
    files += [*sorted((here.parent / "quickstart").glob("*digit*.py")), here.parent / "quickstart" / "arithmetic.py"]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    note = root / "data.key"
    if not note.is_file() or note.read_text() != key:
        say("writing shards and tokenizer")
        prepare(root)
        note.write_text(key)
    return key


def measured(folder: Path) -> dict[str, Any]:
    """Scores on every held-out source by name, kept beside the run."""
    kept, key = folder / "probes.json", (folder / "done.key").read_text()
    if kept.is_file() and (held := json.loads(kept.read_text()))["key"] == key:
        return held["scores"]
    from bluelm_lightning.cli.load import load_run
    from bluelm_lightning.recipe.prepare import LENGTHS, held_out_sources
    from bluelm_lightning.recipe.probes import probe

    stage, data = load_run(folder)
    sources = held_out_sources(ROOT)
    needles = sources.pop("needle")
    sources |= {f"needle_{n}": [s for s in needles if s.meta["tokens"] == n] for n in LENGTHS}
    scores = {name: asdict(probe(stage.vlm, data.encoder, samples)) for name, samples in sources.items()}
    kept.write_text(json.dumps({"key": key, "scores": scores}))
    return scores


def told(row: dict[str, Any]) -> str:
    """One line for the terminal: the loss on text; elsewhere the share of exact answers, and the loss."""
    parts = [f"text loss {row['text']['loss']:.2f}"]
    parts += [
        f"{name} {100 * score['exact']:.0f} % ({score['loss']:.2f})"
        for name, score in row.items()
        if name not in ("stage", "text") and score["count"]
    ]
    return "  ".join(parts)


def needles_found(rows: list[dict[str, Any]]) -> str:
    """What the long-context stage did for looking up, by length of the text."""
    after = next(number for number, row in enumerate(rows) if row["stage"] == "long_context")
    names = [name for name in rows[after] if name.startswith("needle_")]
    shares = [[100 * row[name]["exact"] for row in rows[after - 1 : after + 1]] for name in names]
    pairs = [f"{name[7:]} tokens {old:.0f} -> {new:.0f} %" for name, (old, new) in zip(names, shares)]
    return f"needles found before and after the long-context stage: {', '.join(pairs)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
