"""Curation of a million texts and 100,000 pictures: ``python benchmarks/curation_scale.py FOLDER [--kill N]``.

Writes the corpus (texts with planted bad ones, small pictures with captions), runs filters, deduplication and shards
with two processes, and prints a table of the steps and the peak memory of all processes together. With ``--kill N``
the same pipeline runs again in another folder, is killed N times at random moments, goes on each time, and every
file that it leaves is compared byte by byte with the first run's.
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

SMALL = [
    "the",
    "of",
    "and",
    "is",
    "to",
    "in",
    "that",
    "it",
    "for",
    "with",
    "as",
    "was",
    "on",
    "are",
    "by",
    "this",
    "be",
    "at",
    "from",
    "have",
    "not",
    "which",
    "what",
]
GERMAN = [
    "der",
    "die",
    "und",
    "das",
    "ist",
    "nicht",
    "mit",
    "auf",
    "ein",
    "eine",
    "für",
    "von",
    "zu",
    "den",
    "im",
    "wird",
    "sind",
    "auch",
    "bei",
    "nach",
]
OUTSIDE = ("timings.json", "report.md", ".lock")  # seconds stand in them


def write_texts(path: Path, count: int) -> None:
    """Nine texts of ten are new; the others are copies, changed copies, too short, German or repeat themselves."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 10))) for _ in range(20000)]
    recent: list[str] = []
    with path.open("w") as file:
        for number in range(count):
            kind = rng.random()
            text = " ".join(
                rng.choice(SMALL) if rng.random() < 0.4 else rng.choice(words) for _ in range(rng.randint(20, 70))
            )
            if recent and kind < 0.03:
                text = rng.choice(recent)
            elif recent and kind < 0.06:
                changed = rng.choice(recent).split(" ")
                changed[rng.randrange(len(changed))] = rng.choice(words)
                text = " ".join(changed)
            elif kind < 0.07:
                text = text[: rng.randint(1, 15)]
            elif kind < 0.08:
                text = " ".join(rng.choice(GERMAN) if word in SMALL else word for word in text.split(" "))
            elif kind < 0.09:
                text = " ".join(text.split(" ")[:6] * 8)
            elif len(recent) < 50000:
                recent.append(text)
            file.write(json.dumps({"id": f"t{number:07d}", "source": "texts", "text": text}) + "\n")


def write_pictures(folder: Path, count: int) -> None:
    """Smooth colours, 48 x 48; every twentieth is an earlier one again, as JPEG, and every hundredth is blank."""
    import numpy as np
    from PIL import Image

    rng, draws, last = random.Random(1), np.random.default_rng(1), ""
    folder.mkdir()
    with (folder / "pictures.jsonl").open("w") as file:
        for number in range(count):
            grid = draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(grid).resize((48, 48), Image.Resampling.BILINEAR)
            caption, form = " ".join(rng.choices(SMALL, k=12)) + f" number {number}", "PNG"
            if number % 20 == 19:
                with Image.open(folder / f"{number // 2000}/{number - 7}.img") as before:
                    picture, form = before.convert("RGB"), "JPEG"
                caption = last
            elif number % 100 == 50:
                picture = Image.new("RGB", (48, 48), tuple(grid[0, 0].tolist()))
            if number % 20 == 12:
                last = caption
            path = folder / f"{number // 2000}/{number}.img"
            path.parent.mkdir(exist_ok=True)
            out = io.BytesIO()
            picture.save(out, form, **({"quality": 80} if form == "JPEG" else {"compress_level": 1}))
            path.write_bytes(out.getvalue())
            row = {
                "id": f"p{number:06d}",
                "source": "pictures",
                "caption": caption,
                "image": str(path.relative_to(folder)),
            }
            file.write(json.dumps(row) + "\n")


def write_pipeline(folder: Path) -> Path:
    steps = [
        {"class_path": "CollectJson", "init_args": {"paths": str(folder / "texts.jsonl")}},
        {
            "class_path": "CollectJson",
            "init_args": {"paths": str(folder / "pictures/pictures.jsonl"), "part_bytes": 1 << 20},
        },
        {"class_path": "LengthFilter", "init_args": {"min_characters": 20}},
        {"class_path": "LanguageFilter", "init_args": {"languages": ["en", "zh"]}},
        {"class_path": "RepetitionFilter"},
        {"class_path": "PictureFilter"},
        {"class_path": "ExactDuplicates"},
        {"class_path": "NearDuplicates"},
        {"class_path": "BuildShards"},
    ]
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps({"output": str(folder / "once"), "processes": 2, "steps": steps}))
    return path


def start(pipeline: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "bluelm_lightning.cli.data", "run", str(pipeline), "--output", str(output)]
    return subprocess.Popen(command)


def watch(process: subprocess.Popen, seconds: float | None = None) -> float:
    """Waits for the end, or for so many seconds. Returns the peak of the whole tree's own memory (PSS), in GiB."""
    import psutil

    peak, end, tree = 0, time.monotonic() + (seconds or 1e9), psutil.Process(process.pid)
    while process.poll() is None and time.monotonic() < end:
        held = 0
        for one in [tree, *_children(tree)]:
            try:
                held += one.memory_full_info().pss
            except psutil.Error:  # it has just ended
                continue
        peak = max(peak, held)
        time.sleep(2)
    return peak / 2**30


def _children(tree) -> list:
    import psutil

    try:
        return tree.children(recursive=True)
    except psutil.Error:
        return []


def digests(output: Path) -> dict[str, str]:
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and path.name not in OUTSIDE]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_and_go_on(pipeline: Path, output: Path, times: int, seconds: float, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(times):
        after = rng.uniform(0.05, 0.95) * seconds / times
        process = start(pipeline, output)
        watch(process, after)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        reached = max((path.name for path in output.glob("[0-9]*")), default="nothing")
        print(f"kill {number + 1} after {after:.1f} s, in {reached}", flush=True)
    process = start(pipeline, output)
    peak = watch(process)
    print(f"the resumed run: peak memory {peak:.2f} GiB", flush=True)
    assert process.returncode == 0, f"the resumed run ended with {process.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--kill", type=int, default=0, metavar="N", help="kill a second run N times")
    parser.add_argument("--seed", type=int, default=None, help="of the moments of the kills; default: any")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "written").exists():
        shutil.rmtree(args.folder / "pictures", ignore_errors=True)
        write_texts(args.folder / "texts.jsonl", args.texts)
        write_pictures(args.folder / "pictures", args.pictures)
        (args.folder / "written").touch()
    pipeline = write_pipeline(args.folder)
    begun = time.monotonic()
    process = start(pipeline, args.folder / "once")
    peak = watch(process)
    assert process.returncode == 0, f"the run ended with {process.returncode}"
    seconds, timings = time.monotonic() - begun, json.loads((args.folder / "once/timings.json").read_text())
    print((args.folder / "once/report.md").read_text().split("\n\n")[1])
    total = sum(step["cpu_seconds"] for step in timings.values())
    print(f"\nwall {seconds:.0f} s, CPU {total:.0f} s, peak memory of all processes {peak:.2f} GiB", flush=True)
    if args.kill:
        seconds = sum(step["wall_seconds"] for step in timings.values())  # this run may have found all of it done
        kill_and_go_on(pipeline, args.folder / "killed", args.kill, seconds, args.seed or random.randrange(1 << 30))
        one, other = digests(args.folder / "once"), digests(args.folder / "killed")
        different = [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
        print(f"{len(one)} files, {len(different)} differ {different[:3] or ''}")
        sys.exit(bool(different))


if __name__ == "__main__":
    main()
