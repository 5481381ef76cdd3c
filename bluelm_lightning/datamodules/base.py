"""MultimodalDataModule: from a list of sources in YAML to packed batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import torch

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackedLoader, PackingPlan
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.preview import preview_batch
from bluelm_lightning.data.shards import ShardSource
from bluelm_lightning.data.tokenizer import load_tokenizer, vocabulary_hash
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Encoded, PackedBatch, Sample, Source, StageModel


@dataclass
class SourceSpec:
    """One source of the mixture: a folder of shards, or any object with ``__len__`` and ``__getitem__``.

    Args:
        path: folder, glob or tar file of shards.
        source: a source of your own by ``class_path``, instead of ``path``.
        name: name in logs; default: the last part of ``path``, or the class of ``source``.
        weight: share of samples, on any scale; default: in proportion to the samples.
        epochs: passes in one epoch of the trainer, after which it leaves its share to the others; default: without end.
        thinking_share: in which share of the passes a thinking trace is kept; default: always.
        cut_share: in which share of those it is cut at a random place and closed, so that the model learns to answer
            under a thinking budget.
        stated_share: in which share of those the prompt states a budget that the trace keeps.
    """

    path: str | None = None
    source: Source | None = None
    name: str | None = None
    weight: float | None = None
    epochs: float | None = None
    thinking_share: float | None = None
    cut_share: float = 0.0
    stated_share: float = 0.0

    def __post_init__(self) -> None:
        if (self.path is None) == (self.source is None):
            raise ConfigError("give either path or source", "data.sources")
        for key, value, most in (("weight", self.weight, math.inf), ("epochs", self.epochs, math.inf)):
            if value is not None and not 0 < value < most:
                raise ConfigError(f"{key} is {value}; give a positive number", f"data.sources.{key}")
        for key in ("thinking_share", "cut_share", "stated_share"):
            share = getattr(self, key)
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"{share} is not between 0 and 1", f"data.sources.{key}")

    def open(self) -> Source:
        return self.source if self.source is not None else ShardSource(str(self.path), name=self.name)

    @property
    def label(self) -> str:
        return self.name or (str(self.path).rstrip("/").rsplit("/", 1)[-1] if self.path else type(self.source).__name__)


class MultimodalDataModule(L.LightningDataModule):
    """Mixes, encodes and packs sources; its whole position is in the checkpoint.

    Tile size, tokens a tile and vocabulary come from the model, so that they are written once.

    Args:
        tokenizer: folder or Hugging Face id; the template's special tokens are added.
        sources: what to train on.
        val_sources: what to validate on, in order and once.
        row_tokens: tokens of a packed row (the sequence length).
        batch_rows: rows of a batch.
        max_tiles: most tiles in a batch; default: no bound.
        overlong: ``skip`` reports what does not fit a row, ``split`` cuts texts without pictures, ``error`` stops.
        max_grid: pictures are cut into at most ``max_grid x max_grid`` tiles (AnyRes; the report: 4).
        thumbnail: add one tile with the whole picture.
        num_workers: processes that read and encode; any number gives the same batches.
        seed: of all orders.
        balance: batches of even numbers of tiles, for many processes with uneven pictures; looks further ahead.
    """

    def __init__(
        self,
        tokenizer: str,
        sources: list[SourceSpec],
        val_sources: list[SourceSpec] | None = None,
        row_tokens: int = 4096,
        batch_rows: int = 1,
        max_tiles: int | None = None,
        overlong: str = "skip",
        max_grid: int = 4,
        thumbnail: bool = False,
        num_workers: int = 2,
        seed: int = 0,
        balance: bool = False,
    ) -> None:
        super().__init__()
        counts = {"row_tokens": row_tokens, "batch_rows": batch_rows, "max_grid": max_grid, "max_tiles": max_tiles}
        for key, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"{value} is below 1", f"data.{key}")
        if num_workers < 0:
            raise ConfigError(f"{num_workers} is below 0", "data.num_workers")
        self.specs, self.val_specs = sources, val_sources or []
        self.plan = PackingPlan(row_tokens, batch_rows, max_tiles, overlong, balance=balance)
        self.max_grid, self.thumbnail, self.num_workers, self.seed = max_grid, thumbnail, num_workers, seed
        self._tokenizer_path = tokenizer
        self.tokenizer: Any = None
        self._train: PackedLoader | None = None
        self._loaded: dict[str, Any] | None = None

    # ------------------------------------------------------------------ building
    def prepare(self, model: StageModel) -> None:
        """Open tokenizer and sources for ``model``; Lightning's :meth:`setup` calls it.

        Raises:
            ConfigError: the vocabulary does not cover the tokenizer, or a source is missing.
        """
        self.tokenizer = load_tokenizer(self._tokenizer_path)
        if len(self.tokenizer) > model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(self.tokenizer)} tokens but the decoder's vocabulary {model.vocab_size}; "
                f"set vocab_size: {-(-len(self.tokenizer) // 64) * 64}",
                "model.vlm.decoder.vocab_size",
            )
        self.encoder = Encoder(self.tokenizer, model.image_spec, max_grid=self.max_grid, thumbnail=self.thumbnail)
        self.opened = [_Renamed(spec.open(), spec.label) for spec in self.specs]
        self.val_opened = [_Renamed(spec.open(), spec.label) for spec in self.val_specs]

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.prepare(self.trainer.lightning_module)  # type: ignore[arg-type]

    def train_dataloader(self) -> PackedLoader:
        shares = [spec.thinking_share for spec in self.specs]
        weights = [spec.weight for spec in self.specs]
        if any(w is None for w in weights) and any(w is not None for w in weights):
            raise ConfigError("give a weight to every source or to none", "data.sources.weight")
        mixture = Mixture(
            [len(source) for source in self.opened],
            None if weights[0] is None else [float(w or 0) for w in weights],
            [spec.epochs for spec in self.specs],
            [source.block_sizes for source in self.opened],
            seed=self.seed,
        )
        self._train = self._training_loader(mixture, shares)
        if self._loaded is not None:
            self._train.load_state_dict(self._loaded)
            self._loaded = None
        return self._train

    def _training_loader(self, mixture: Mixture, shares: list[float | None]) -> PackedLoader:
        return self._loader(self.opened, mixture, self.plan, shares)

    def val_dataloader(self) -> list[PackedLoader] | PackedLoader:
        if not self.val_opened:
            return []
        sizes = [len(source) for source in self.val_opened]
        mixture = Mixture(sizes, epochs=[1] * len(sizes), shuffle=False)
        return self._loader(self.val_opened, mixture, replace(self.plan, overlong="skip"), [])

    def _loader(self, sources: Sequence[Source], mixture: Mixture, plan: PackingPlan, shares: list) -> PackedLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sharing = getattr(getattr(self.trainer, "strategy", None), "context_parallel", 1)
        rank, world = rank // sharing, world // sharing  # processes that share rows read the same samples
        specs = self.specs if shares else []  # validation sees every trace whole
        cuts, stated = [spec.cut_share for spec in specs], [spec.stated_share for spec in specs]
        fetcher = SampleFetcher(sources, self.encoder, self.seed, shares, cuts, stated)
        return PackedLoader(fetcher, mixture, plan, self.tokenizer.pad_token_id, self.num_workers, rank, world)

    # ------------------------------------------------------------------ exact resume
    def on_after_batch_transfer(self, batch: PackedBatch, dataloader_idx: int) -> PackedBatch:
        if self.trainer is not None and self.trainer.training and self._train is not None:
            self._train.mark(batch.cursor)  # Lightning has fetched one batch more than this
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where every rank stands after the last batch it trained on."""
        if self._train is None:
            return {}
        mine = self._train.marked
        world = self.trainer.world_size if self.trainer else 1
        states: list[Any] = [mine]
        if world > 1:  # Lightning would keep rank 0's alone
            states = [None] * world
            torch.distributed.all_gather_object(states, mine)
        return {"ranks": states, "identity": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            return
        now, then = self._identity(), state["identity"]
        for key in now:
            if now[key] != then.get(key):
                raise ConfigError(
                    f"this run had {then.get(key)} when it was saved and now has {now[key]}: the batches would differ; "
                    "restore it, or start a new run with --init_from",
                    f"data.{key}",
                )
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if len(state["ranks"]) != world:
            raise ConfigError(
                f"saved with {len(state['ranks'])} processes, resumed with {world}: the batches would differ; "
                "use the same number, or start a new run with --init_from",
                "trainer.devices",
            )
        self._loaded = state["ranks"][rank]

    def _identity(self) -> dict[str, Any]:
        """Everything that the order of batches depends on."""
        return {
            "sources": [
                [
                    s.label,
                    len(source),
                    getattr(source, "fingerprint", ""),
                    *(getattr(s, key) for key in ("weight", "epochs", "thinking_share", "cut_share", "stated_share")),
                ]
                for s, source in zip(self.specs, self.opened)
            ],
            "tokenizer": vocabulary_hash(self.tokenizer),
            "image_spec": [self.encoder.image_spec.tile_size, self.encoder.image_spec.tokens_per_tile],
            "row_tokens": self.plan.row_tokens,
            "batch_rows": self.plan.rows,
            "max_tiles": self.plan.max_tiles,
            "balance": self.plan.balance or None,  # None: as in checkpoints from before
            "overlong": self.plan.overlong,
            "max_grid": self.max_grid,
            "thumbnail": self.thumbnail,
            "seed": self.seed,
        }

    # ------------------------------------------------------------------ what others may ask
    def preview(self, batch: PackedBatch, color: bool = True) -> str:
        return preview_batch(batch, self.tokenizer, color=color)

    def sample_prompts(self, count: int, thinking: bool) -> list[tuple[Sample, Encoded]]:
        """The first prompts of the validation sources (else of the training sources), in turn."""
        sources = self.val_opened or self.opened
        out: list[tuple[Sample, Encoded]] = []
        for index in range(min(len(source) for source in sources)):
            for source in sources:
                if len(out) >= count:
                    return out
                sample = source[index]
                if sample.messages:
                    try:
                        out.append((sample, self.encoder.prompt(sample, thinking)))
                    except DataError:
                        continue
        return out

    def calibration(self) -> Iterator[PackedBatch]:
        """Training batches in order, without end, outside of any run: to measure a model on."""
        return iter(self.train_dataloader())

    def manifest(self) -> dict[str, Any]:
        """What the run was fed, for its lineage record."""
        return {
            spec.label: {"path": spec.path, "samples": len(source), "fingerprint": getattr(source, "fingerprint", "")}
            for spec, source in zip([*self.specs, *self.val_specs], [*self.opened, *self.val_opened])
        }


class _Renamed:
    """A source whose samples carry the name that the YAML gives it."""

    def __init__(self, source: Source, name: str) -> None:
        self.source, self.name = source, name
        self.block_sizes = getattr(source, "block_sizes", None)
        self.fingerprint = getattr(source, "fingerprint", "")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.source[index], source=self.name)
