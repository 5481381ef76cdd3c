"""Lab: what a claim needs to be measured. Runs that are kept, data, finished models, held-out samples."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from bluelm_lightning.recipe.runs import Runs, literal
from bluelm_lightning.reproduce import prepare
from bluelm_lightning.reproduce.jobs import forked, locked
from bluelm_lightning.types import Sample

_CONFIGS = Path(__file__).parents[1] / "configs"


class Lab:
    """Where the claims are measured.

    Args:
        root: folder of all data, runs and figures.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def runs(self, seed: int) -> LabRuns:
        """Runs of a seed; claims that name the same run with the same settings share it."""
        return LabRuns(self, seed)

    def load(self, folder: Path) -> tuple[Any, Any]:
        """Stage and data module of a finished run."""
        from bluelm_lightning.cli.load import load_run

        return load_run(folder)

    def sources(self, sources: Mapping[str, dict[str, Any] | float]) -> str:
        """The option that mixes training sources of the recipe by name: ``{"text": 0.4, "digits_sum": {"epochs": 3}}``.

        A number is a share of the tokens; a dictionary holds keys of a source in YAML.
        """
        named = {name: given if isinstance(given, dict) else {"token_weight": given} for name, given in sources.items()}
        return _option("sources", [{"path": str(self.data(name)), **keys} for name, keys in named.items()])

    def data(self, name: str) -> Path:
        """Folder of a training source, written the first time."""
        return prepare.ready_source(self.root, name)

    def data_key(self, names: Sequence[str]) -> str:
        """Of the contents of training sources."""
        keys = [prepare.content_key(self.root, name) for name in sorted(set(names))]
        return hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]

    def held_out(self, name: str) -> list[Sample]:
        """Held-out samples: ``text``, ``arithmetic``, ``digits_caption``, ``digits_sum``."""
        return _held_out(name)


@cache
def _held_out(name: str) -> list[Sample]:
    return prepare.HELD_OUT[name]()


def _option(key: str, value: Any) -> str:
    """``--data.KEY=JSON``."""
    return literal(f"--data.{key}={json.dumps(value)}")


class ForkedRuns(Runs):
    """:class:`Runs` in processes forked from this one: a start costs milliseconds, and one thread each."""

    def _start(self, module: str, arguments: list[str], log: Path) -> int:
        main = importlib.import_module(f"bluelm_lightning.cli.{module}").main
        process = forked(lambda: main(arguments), log)
        process.join()
        return process.exitcode


class LabRuns(ForkedRuns):
    """Runs of one seed on the lab's copy of the data.

    Args:
        lab: the lab.
        seed: of weights, orders and dropout.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        super().__init__(lab.root / f"seed_{seed}", "")
        self.lab, self.seed = lab, seed

    def of_seed(self, seed: int) -> LabRuns:
        """Runs of another seed; add their ``keys`` to these to name them as parents."""
        return LabRuns(self.lab, seed)

    def fit(self, name: str, config: str, parents: Sequence[str] = (), options: Sequence[str] = ()) -> Path:
        """As :meth:`Runs.fit`; sources of the YAML are read from the lab. Two claims that ask for it do it once."""
        seeded = [f"--seed_everything={self.seed}", f"--data.seed={self.seed}"]
        settings = [*self._own_data(config, options), *seeded, *options]
        self.data_key = self.lab.data_key(re.findall(r"\bdata/(\w+)", " ".join(settings)))
        with locked(self.root / f"{name}.lock"):
            return super().fit(name, config, parents, settings)

    def prune(self, name: str, run: str, options: Sequence[str]) -> Path:
        self.data_key = ""  # the run that is pruned has its own
        with locked(self.root / f"{name}.lock"):
            return super().prune(name, run, options)

    def _own_data(self, config: str, options: Sequence[str]) -> list[str]:
        """Overrides that move tokenizer and sources of a packaged YAML to the lab, unless ``options`` name others."""
        import yaml

        given = yaml.safe_load((_CONFIGS / config).read_text())["data"]["init_args"]
        own = [f"--data.tokenizer={prepare.ready_tokenizer(self.lab.root)}"]
        for key in ("sources", "val_sources"):
            if given.get(key) and not any(text.startswith(f"--data.{key}=") for text in options):
                own.append(_option(key, [self._moved(spec) for spec in given[key]]))
        return own

    def _moved(self, spec: dict[str, Any]) -> dict[str, Any]:
        return {**spec, "path": str(self.lab.data(Path(spec["path"]).name))}
