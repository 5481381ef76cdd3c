"""bluelm-cache: the teacher's likeliest tokens for the documents of a run, written once, read by any number of runs.

bluelm-cache tiny/distill_decay.yaml --out caches/big --k 64
bluelm-fit --config tiny/distill_decay.yaml --model.teacher=null --model.teacher_weights=null --model.cache=caches/big

TARGET is the YAML of a distillation (file or packaged name), whose teacher and data are taken, or a folder that
bluelm-fit wrote, whose model then is the teacher (of a distillation: its live teacher). Options of bluelm-fit,
--data.seed=1, change the settings of a YAML. The same command goes on after a kill. Callbacks that change the data
with the step are refused. Of several processes (trainer.devices as a number) it reads what each would read.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` needs none of it
    from bluelm_lightning.generation.teacher_cache import TeacherCacheWriter

MOVING = ("LengthSchedule", "ShareSchedule", "KeyDataResampling")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script. Exit code 2 and one line on standard error when something is wrong, 130 after Ctrl-C."""
    args, options = _parser().parse_known_args(argv)
    try:
        print(run(args, options))
    except (ValueError, OSError) as error:  # ConfigError and DataError are ValueErrors
        print(f"bluelm-cache: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bluelm-cache: stopped; the same command goes on after the last part written", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser("bluelm-cache", description=__doc__, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("target", metavar="TARGET", help="YAML of a distillation, or a folder that bluelm-fit wrote")
    parser.add_argument("--out", required=True, metavar="OUT", help="folder for the cache")
    parser.add_argument("--k", type=int, default=64, metavar="K", help="tokens a position, 0 = the whole vocabulary")
    parser.add_argument(
        "--batches", type=int, metavar="N", help="batches to read, as one process (default: all, by trainer)"
    )
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--part-mb", type=float, default=64.0, metavar="MB", help="size of a part (default 64)")
    return parser


def run(args: argparse.Namespace, options: Sequence[str] = ()) -> str:
    """Does what the command line says; returns what to print."""
    import torch

    from bluelm_lightning.cli.given import at_least, device_at, folder_at
    from bluelm_lightning.generation.teacher_cache import TeacherCacheWriter, refuse_finished
    from bluelm_lightning.stages import DistillPlan, cache_batch

    if args.batches is not None:
        at_least(1, args.batches, "--batches")
    at_least(0, args.k, "--k")
    device = device_at(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    folder_at(args.out)
    refuse_finished(args.out)  # before a teacher is read

    settings, stage, data = _opened(args.target, options)
    teacher = getattr(stage, "teacher", None) or stage.vlm
    teacher.eval().to(device)
    plan = DistillPlan(temperature=getattr(getattr(stage, "plan", None), "temperature", 1.0), top_k=args.k)
    loader = _loader(data)
    processes, batches = (1, args.batches) if args.batches else _batches(settings.get("trainer") or {})
    told = {"teacher": _fingerprint(teacher), "data": data.state_dict()["identity"], "batches": batches}
    told["processes"] = processes
    top_k = min(plan.top_k or teacher.vocab_size, teacher.vocab_size)
    size = int(args.part_mb * 2**20)
    with TeacherCacheWriter(args.out, top_k, plan.temperature, teacher.vocab_size, told, size) as writer:
        _write(writer, loader, processes, batches, lambda batch: cache_batch(writer, teacher, batch, plan))
    return (
        f"{len(writer.seen):,} documents, {writer.positions:,} positions x {top_k} tokens in {args.out}\n"
        f"use it: --model.teacher=null --model.teacher_weights=null --model.cache={args.out}"
    )


def _opened(target: str, options: Sequence[str]) -> tuple[dict[str, Any], Any, Any]:
    """Settings, stage with the teacher's weights, and data module, ready."""
    from bluelm_lightning.cli.config_files import read_config
    from bluelm_lightning.cli.load import built, load_run
    from bluelm_lightning.errors import ConfigError

    if Path(target).is_dir():
        if options:
            raise ConfigError(f"{options[0]} goes with a YAML; a run's settings stay as they are", "bluelm-cache")
        stage, data = load_run(target)
        if getattr(stage, "cache", None) is not None:
            what = f"{target} learnt from a cache, its teacher is not there"
            raise ConfigError(f"{what}; give its YAML with the teacher, or the teacher's run", "model.cache")
        settings = read_config(Path(target) / "config.yaml")
    else:
        settings, stage, data = built(["--config", target, *options])
        if getattr(stage, "teacher", None) is None:
            raise ConfigError(f"{target} has none; give the YAML of a distillation, or a run folder", "model.teacher")
        data.prepare(stage)
    callbacks = (settings.get("trainer") or {}).get("callbacks") or []
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(callback.get("class_path")).rpartition(".")[2]
        if name in MOVING:
            raise ConfigError(f"{name} moves the documents with the step; use a live teacher", "trainer.callbacks")
    return settings, stage, data


def _loader(data: Any) -> Any:
    from bluelm_lightning.data.loader import PackedLoader
    from bluelm_lightning.errors import ConfigError

    loader = data.train_dataloader()
    if not isinstance(loader, PackedLoader):
        raise ConfigError(f"{type(data).__name__} packs no documents; give a run that learns from texts", "data")
    return loader


def _batches(trainer: dict[str, Any]) -> tuple[int, int]:
    """Processes of the run, and micro-batches of each."""
    from bluelm_lightning.errors import ConfigError

    steps = trainer.get("max_steps")
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError("the settings name no number of steps; give --batches", "trainer.max_steps")
    devices = _devices(trainer.get("devices"), trainer.get("accelerator"))
    return devices * int(trainer.get("num_nodes") or 1), steps * int(trainer.get("accumulate_grad_batches") or 1)


def _devices(devices: Any, accelerator: Any) -> int:
    """Devices of a node as Lightning counts them: 4 and "4" are four, [0, 1] and "0,1" are two.

    Raises:
        ConfigError: it depends on the machine (auto, -1).
    """
    from bluelm_lightning.errors import ConfigError

    if isinstance(devices, str) and "," in devices:
        devices = [number for number in devices.split(",") if number.strip()]
    if isinstance(devices, list | tuple) and devices:
        return len(devices)
    if devices in (None, "auto") and accelerator == "cpu":
        return 1
    try:
        count = int(devices)
    except (TypeError, ValueError):
        count = -1
    if count < 1:
        raise ConfigError(
            f"{devices} depends on the machine; give a number, or --batches with some to spare", "trainer.devices"
        )
    return count


def _fingerprint(model: Any) -> str:
    """Names, shapes and the first values of every tensor, as a hash."""
    found = hashlib.blake2b(digest_size=12)
    for name, tensor in model.state_dict().items():
        values = tensor.flatten()[:1024].float().cpu().numpy().tobytes()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + values)
    return found.hexdigest()


def _write(writer: TeacherCacheWriter, loader: Any, processes: int, batches: int, cache: Callable[[Any], None]) -> None:
    """``batches`` of each process in turn, round after round of the sources, from where the writer stands."""
    if writer.reached == "end":  # killed between the last part and the manifest
        return
    total, start = processes * batches, loader.marked
    reached = writer.reached or {"rank": 0, "batches": 0, "loader": start}
    before = reached["rank"] * batches + reached["batches"]
    if before:
        print(f"going on after {before:,} of {total:,} batches", file=sys.stderr)
    say = _Progress(before, total)
    for rank in range(reached["rank"], processes):
        loader.rank, loader.world_size = rank, processes
        loader.load_state_dict(reached["loader"])
        done = reached["batches"]
        for batch in _rounds(loader, batches - done):
            cache(batch)
            done += 1
            writer.commit({"rank": rank, "batches": done, "loader": loader.state_at(batch.cursor)})
            say(rank * batches + done, writer.positions)
        reached = {"batches": 0, "loader": start}


def _rounds(loader: Any, count: int) -> Iterator[Any]:
    """At most ``count`` batches. Each process of a run ends its rounds with the last one; here it only sees more."""
    while count > 0:
        before = count
        for batch in islice(loader, count):
            loader.mark(batch.cursor)
            count -= 1
            yield batch
        if count == before or (loader.world_size > 1 and loader.mixture.spent):
            return


class _Progress:
    """A line on standard error: in place on a terminal, else every half minute."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.total, self.started, self.told = done, total, time.monotonic(), time.monotonic()
        self.terminal = sys.stderr.isatty()

    def __call__(self, done: int, positions: int) -> None:
        now, last = time.monotonic(), done == self.total
        if now - self.told < (0.2 if self.terminal else 30) and not last:
            return
        self.told = now
        left = (now - self.started) / (done - self.first) * (self.total - done)
        text = f"batch {done:,} of {self.total:,}, {positions:,} positions, {left:.0f} s left"
        start, end = ("\r", "\n" if last else "") if self.terminal else ("", "\n")
        print(f"{start}{text:<78}", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
