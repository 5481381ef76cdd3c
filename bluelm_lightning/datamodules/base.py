"""MultimodalDataModule: from a list of sources in YAML to packed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import torch

from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackedLoader, PackingPlan
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.data.preview import preview_batch
from bluelm_lightning.data.scoring import is_right, spread_prompts
from bluelm_lightning.data.token_shares import sample_weights
from bluelm_lightning.data.tokenizer import load_tokenizer, vocabulary_hash
from bluelm_lightning.datamodules.course import ACCUMULATE, ScheduledCourse
from bluelm_lightning.datamodules.gives import check_gives
from bluelm_lightning.datamodules.resampling import Resampled, admission_of
from bluelm_lightning.datamodules.sources import Renamed, SourceSpec, specs_of, weights_of
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.types import Encoded, Generation, PackedBatch, Sample, Source, StageModel, StepSchedule


class MultimodalDataModule(Resampled, L.LightningDataModule):
    """Mixes, encodes and packs sources; its whole position is in the checkpoint.

    Tile size, tokens a tile and vocabulary come from the model, so that they are written once.

    Args:
        tokenizer: folder or Hugging Face id; the template's special tokens are added.
        sources: what to train on; in Python also mappings with the keys of :class:`SourceSpec`.
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

    gives: str | None = None  # "documents", "pairs" or "prompts"; stages have ``learns_from``

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
        counts = {"row_tokens": (row_tokens, 1), "batch_rows": (batch_rows, 1), "max_grid": (max_grid, 1)}
        counts |= {"num_workers": (num_workers, 0), "seed": (seed, 0)}
        counts |= {"max_tiles": (max_tiles, 1)} if max_tiles is not None else {}
        for key, (value, least) in counts.items():
            if value is None or value < least:  # jsonargparse takes null for any argument of a class
                reason = f"is null; give {least} or more" if value is None else f"{value} is below {least}"
                raise ConfigError(reason, f"data.{key}")
        self.specs, self.val_specs = specs_of(sources, "data.sources"), specs_of(val_sources or [], "data.val_sources")
        self.course = ScheduledCourse()
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
            ConfigError: the model learns from something else than this gives, the vocabulary does not cover the
                tokenizer, or a source is missing.
        """
        check_gives(self, model)
        self.tokenizer = load_tokenizer(self._tokenizer_path)
        if len(self.tokenizer) > model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {len(self.tokenizer)} tokens but the decoder's vocabulary {model.vocab_size}; "
                f"set vocab_size: {-(-len(self.tokenizer) // 64) * 64}",
                "model.vlm.decoder.vocab_size",
            )
        self.encoder = Encoder(self.tokenizer, model.image_spec, max_grid=self.max_grid, thumbnail=self.thumbnail)
        self.opened = [Renamed(spec.open(), spec.label) for spec in self.specs]
        self.val_opened = [Renamed(spec.open(), spec.label) for spec in self.val_specs]

    def setup(self, stage: str) -> None:
        assert self.trainer is not None
        self.prepare(self.trainer.lightning_module)  # type: ignore[arg-type]

    def train_dataloader(self) -> PackedLoader:
        shares = [spec.thinking_share for spec in self.specs]
        weights = weights_of(self.specs)
        mixture = Mixture(
            [len(source) for source in self.opened],
            weights and self._sample_weights(weights),
            [spec.epochs for spec in self.specs],
            [source.block_sizes for source in self.opened],
            seed=self.seed,
            admission=admission_of(self.specs, self.resampler),
        )
        self._train = self._training_loader(mixture, shares)
        if self._loaded is not None:
            self._train.load_state_dict(self._loaded)
            self._loaded = None
        return self._train

    def _sample_weights(self, weights: list[float]) -> list[float]:
        """Weights of samples out of weights of samples or of tokens, whichever the sources have."""
        if all(spec.token_weight is None for spec in self.specs):
            return weights
        plan = None if self.course.rows else self.plan  # rows that grow take in what did not fit before
        return sample_weights(weights, self._fetcher(self.opened, self.specs), plan)

    # ------------------------------------------------------------------ what moves with the step
    def follow_rows(self, schedule: StepSchedule) -> None:
        """From now on ``schedule.value_at(step)`` gives (row_tokens, batch_rows) of each step's batches."""
        self.course.rows = schedule

    def follow_shares(self, schedule: StepSchedule) -> None:
        """From now on ``schedule.value_at(step)`` gives the weight of each source by name, for each step's batches.

        Raises:
            ConfigError: its names are not those of the sources, or the shares move already.
        """
        self.refuse_two(self.resampler is not None)
        names = [spec.label for spec in self.specs]
        if len(set(names)) < len(names):
            raise ConfigError(f"two sources are called alike: {names}; give each a name", "data.sources.name")
        wrong = sorted(set(names) ^ set(schedule.value_at(0)))
        if wrong:
            raise ConfigError(
                f"{wrong[0]!r} stands in one of the two alone; the sources are {', '.join(names)}", "shares"
            )
        self.course.shares = schedule

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
        fetcher = self._fetcher(sources, specs)
        loader = PackedLoader(fetcher, mixture, plan, self.tokenizer.pad_token_id, self.num_workers, rank, world)
        if shares and self.course.moves:
            batches = self.course.batches_of(self.trainer, [spec.epochs for spec in specs])
            loader.course = self.course.of(plan, [s.label for s in specs], batches, self._sample_weights)
        return loader

    def _fetcher(self, sources: Sequence[Source], specs: Sequence[SourceSpec]) -> SampleFetcher:
        columns = ([getattr(spec, f"{key}_share") for spec in specs] for key in ("thinking", "cut", "stated"))
        return SampleFetcher(sources, self.encoder, self.seed, *columns)

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
        for key in [*now, *(key for key in then if key not in now)]:
            if now.get(key) != then.get(key):
                raise ConfigError(
                    f"this run had {then.get(key)} when it was saved and now has {now.get(key)}: the batches would "
                    "differ; restore it, or start a new run with --init_from",
                    f"{'trainer' if key == ACCUMULATE else 'data'}.{key}",
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
                    *(
                        getattr(s, key)
                        for key in ("weight", "token_weight", "epochs", "thinking_share", "cut_share", "stated_share")
                    ),
                    *([s.max_repeats] if s.max_repeats else []),  # not there: as in checkpoints from before
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
            **self.course.identity(self.trainer),
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
                try:
                    sample = source[index]
                    if sample.messages:
                        out.append((sample, self.encoder.prompt(sample, thinking)))
                except DataError:
                    continue
        return out

    def held_out_prompts(self, count: int, thinking: bool) -> list[tuple[Sample, Encoded]]:
        """At most ``count`` prompts with a reference, spread over the validation sources; always the same."""
        return list(spread_prompts(self.val_opened, count, partial(self.encoder.prompt, thinking=thinking)))

    def score(self, sample: Sample, generation: Generation) -> bool:
        """Whether the answer is right; a subclass may judge otherwise."""
        return is_right(sample, generation)

    def calibration(self) -> Iterator[PackedBatch]:
        """Training batches in order, without end, outside of any run: to measure a model on."""
        return iter(self.train_dataloader())

    def manifest(self) -> dict[str, Any]:
        """What the run was fed, for its lineage record; a name that comes again has a number."""
        found: dict[str, Any] = {}
        for spec, source in zip([*self.specs, *self.val_specs], [*self.opened, *self.val_opened]):
            alike = sum(name.partition("#")[0] == spec.label for name in found)
            name = f"{spec.label}#{alike + 1}" if alike else spec.label
            fingerprint = getattr(source, "fingerprint", "")
            found[name] = {"path": spec.path, "samples": len(source), "fingerprint": fingerprint}
        return found
