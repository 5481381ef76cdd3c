"""bluelm-data run: a curation pipeline out of YAML."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `--help` needs none of it
    from bluelm_lightning.data.curation import Pipeline
    from bluelm_lightning.data.curation.engine import Engine

KEYS = ("output", "steps", "engine", "processes", "address")


def add(commands: Any) -> None:
    """Declare ``run`` among the commands of ``bluelm-data``."""
    run = commands.add_parser("run", help="curate: filter, deduplicate, decontaminate, mix, build shards")
    run.add_argument("config", metavar="PIPELINE.yaml", help="a file, or data/curate.yaml of the package")
    run.add_argument("--output", metavar="FOLDER", help="instead of the file's")
    run.add_argument("--processes", type=int, metavar="N", help="instead of the file's (default: all cores)")
    run.add_argument("--redo", action="store_true", help="throw away steps that were made with other settings")
    run.add_argument("--quiet", action="store_true", help="no bar and no lines, only the report's place")
    run.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from bluelm_lightning.cli.config_files import find_config, read_config

    settings = read_config(find_config(args.config, "CONFIG", "data/curate.yaml"), "CONFIG", "data/curate.yaml")
    settings |= {key: getattr(args, key) for key in ("output", "processes") if getattr(args, key) is not None}
    pipeline = build_pipeline(settings, show=not args.quiet)
    report = pipeline.run(redo=args.redo)
    print(f"{report['steps'][-1]['out']} records; see {pipeline.output / 'report.md'}")


def build_pipeline(settings: dict[str, Any], show: bool = True) -> Pipeline:
    """A pipeline from the keys of its YAML.

    Raises:
        ConfigError: naming the key: one that does not exist, a class that is no step, an argument of a wrong type.
    """
    from bluelm_lightning.data.curation import Pipeline
    from bluelm_lightning.errors import ConfigError

    wrong = sorted(set(settings) - set(KEYS))
    if wrong:
        raise ConfigError(f"there is no such key; the keys are {', '.join(KEYS)}", wrong[0])
    steps = settings.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ConfigError("is no list of steps; write - class_path: CollectJson", "steps")
    if not isinstance(settings.get("output"), str):
        raise ConfigError("names no folder; write output: curated, or give --output", "output")
    built = [_build(step, f"steps[{number}]") for number, step in enumerate(steps)]
    return Pipeline(built, settings["output"], _engine(settings), show)


def _build(spec: Any, key: str) -> Any:
    """One step. Its arguments are checked against the types of its constructor."""
    from jsonargparse import ArgumentError, ArgumentParser

    from bluelm_lightning.cli.classes import find_class, parameters
    from bluelm_lightning.cli.walk import walk
    from bluelm_lightning.data.curation import Step
    from bluelm_lightning.errors import ConfigError

    spec = {"class_path": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, dict) or set(spec) - {"class_path", "init_args"} or "class_path" not in spec:
        raise ConfigError(f"{spec!r:.80} is no step; write class_path and init_args", key)
    if not isinstance(spec["class_path"], str):
        raise ConfigError(f"{spec['class_path']!r:.80} names no class; write CollectJson", f"{key}.class_path")
    arguments = spec.get("init_args") or {}
    if not isinstance(arguments, dict):
        raise ConfigError(f"{arguments!r:.80} is no mapping; write argument: value", f"{key}.init_args")
    klass = find_class(spec["class_path"], Step, f"{key}.class_path")
    parser = ArgumentParser(exit_on_error=False)
    names = parser.add_class_arguments(klass)
    wrong = sorted(set(arguments) - set(names))
    if wrong:
        has = ", ".join(names) or "none"
        raise ConfigError(f"{klass.__name__} has no such argument; it has {has}", f"{key}.init_args.{wrong[0]}")
    for name, value in arguments.items():
        if value is None:  # jsonargparse takes it for any type
            walk(value, parameters(klass)[name].annotation, f"{key}.init_args.{name}")
    try:
        return klass(**parser.parse_object(arguments).as_dict())
    except ConfigError as error:
        text = str(error).removeprefix(f"{error.key}: ")
        raise ConfigError(text, f"{key}.init_args.{error.key}" if error.key else key) from error
    except (ArgumentError, TypeError) as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"{text}; see the docstring of {klass.__name__}", f"{key}.init_args") from error


def _engine(settings: dict[str, Any]) -> Engine:
    from bluelm_lightning.data.curation import LocalEngine, RayEngine
    from bluelm_lightning.errors import ConfigError

    name, processes = settings.get("engine", "local"), settings.get("processes")
    if processes is not None and (isinstance(processes, bool) or not isinstance(processes, int)):
        raise ConfigError(f"{processes!r} is no number", "processes")
    if name == "local":
        return LocalEngine(processes)
    if name == "ray":
        return RayEngine(settings.get("address"), processes)
    raise ConfigError(f"{name!r} is not one of local, ray", "engine")
