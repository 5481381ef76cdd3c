"""FitCLI: LightningCLI in the order that finds mistakes early.

1. parse (diagnose.py turns a refusal into one line);
2. check what the settings point to: sources, tokenizer, checkpoints, forbidden modules (checks.py);
3. rehearse: build the model on the meta device, so that every component checks its arguments before weights are read;
4. build the data module, the trainer, and last the model.
"""

from __future__ import annotations

import contextlib
import inspect
import typing
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, _InstantiatorFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

import bluelm_lightning.callbacks
import bluelm_lightning.components  # noqa: F401 - short class names are looked up among what is imported
from bluelm_lightning.cli.checks import check_modules
from bluelm_lightning.cli.construct import construct, guarded, instantiate, one_line
from bluelm_lightning.cli.diagnose import check_changes, explain, find_mistake, with_origin
from bluelm_lightning.cli.layers import Layers
from bluelm_lightning.cli.quiet import quiet
from bluelm_lightning.cli.walk import walk
from bluelm_lightning.datamodules import MultimodalDataModule
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.stages import RLStage, ShardedStrategy, Stage

SLIPS = (AttributeError, TypeError, NameError, LookupError)  # what a slip in a class of one's own raises


class ParseError(Exception):
    """What jsonargparse said."""


class Parser(LightningArgumentParser):
    """Raises instead of printing its usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ParseError(message) from ex


class FitCLI(LightningCLI):
    """Parses and checks; `build` makes stage, data module and trainer.

    Raises:
        ConfigError: for anything wrong in the settings, in one line that names the key.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        quiet()
        try:
            super().__init__(
                Stage,
                MultimodalDataModule,
                args=layers.tokens,
                run=False,
                auto_configure_optimizers=False,
                subclass_mode_model=True,
                subclass_mode_data=True,
                save_config_callback=None,
                seed_everything_default=0,
                parser_class=Parser,
                parser_kwargs={"allow_abbrev": False, "prog": "bluelm-fit"},
                # a table by component is printed instead; our loader splits samples over ranks by itself
                trainer_defaults={"enable_model_summary": False, "use_distributed_sampler": False},
            )
        except ParseError as error:
            check_changes(layers, self._hints())
            raise explain(layers, self._hints(), str(error)) from error
        except ConfigError as error:
            raise with_origin(error, layers) from error
        except Exception as error:  # jsonargparse stumbles over some mistakes, such as a mapping for a text
            mistake = find_mistake(layers, self._hints())
            if mistake is None:
                raise
            raise mistake from error

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--run_dir", type=str | None)
        parser.add_argument("--ckpt_path", type=str | None)
        parser.add_argument("--init_from", type=str | list[str] | None)
        parser.add_argument("--checkpoint_every_n_steps", type=int | None)
        parser.add_argument("--summary", type=bool, default=False)

    def _hints(self) -> dict[str, Any]:
        hints = typing.get_type_hints(Trainer.__init__)
        names = list(inspect.signature(Trainer.__init__).parameters)[1:]
        own = {"seed_everything": bool | int, "run_dir": str | None, "ckpt_path": str | None, "summary": bool}
        more = {"init_from": str | list[str] | None, "checkpoint_every_n_steps": int | None}
        trainer = {name: hints.get(name, Any) for name in names}
        return {"model": Stage, "data": MultimodalDataModule, "trainer": trainer, **own, **more}

    def instantiate_classes(self) -> None:
        """Called by LightningCLI after parsing; building waits for `build`."""
        check_changes(self.layers, self._hints())
        trainer = self.layers.values.get("trainer", {})
        if not isinstance(trainer, dict):  # jsonargparse takes null
            walk(trainer, self._hints()["trainer"], "trainer")
        check_modules(self.config.as_dict())

    def rehearse(self) -> None:
        """Build the model on the meta device: no memory, no weights. ``self.rehearsed`` is the stage.

        None where a component cannot be built there, with the reason in ``self.rehearsal_error``.

        Raises:
            ConfigError: from the component whose arguments are wrong, or a glob of the optimizer that matches nothing.
        """
        self.rehearsed: Stage | None = None
        self.rehearsed_optimizer: Any = None
        self.rehearsal_error: Exception | None = None
        with isolate_rng(), warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            try:
                self.rehearsed = instantiate(self.parser, self.config, "model")
                self.rehearsed_optimizer = self.rehearsed.configure_optimizers()
            except ConfigError:
                raise
            except Exception as error:  # not made for the meta device; the real build will tell
                self.rehearsal_error = error

    def _set_seed(self) -> None:
        """Called by LightningCLI after parsing; `seed` is for runs only."""

    def seed(self) -> None:
        """Seed everything, and put the seed into the settings."""
        super()._set_seed()

    def build(self, arguments: Callable[[Namespace], dict[str, Any]]) -> None:
        """Data module, trainer, model: ``self.datamodule``, ``self.trainer``, ``self.model``.

        Args:
            arguments: from the trainer's settings, callbacks and loggers built, to arguments that replace some of them.
        """
        with one_line("data"):
            self.datamodule = instantiate(self.parser, self.config, "data")
        with one_line("trainer"):
            settings = instantiate(self.parser, self.config, "trainer")
            self.config_init = Namespace(trainer=settings)
        with one_line("trainer", TypeError):  # Lightning's answer to devices: two; callbacks are built by now
            self.trainer = self.instantiate_trainer(**arguments(settings))
        with one_line("model"), torch.device("meta") if self.receives else contextlib.nullcontext():
            self.model = instantiate(self.parser, self.config, "model", *SLIPS)

    @property
    def receives(self) -> bool:
        """Whether this process gets its share of the weights from process 0, and so builds on the meta device.

        Then weights are read, and drawn, by process 0 alone. Not where rewards are built with the stage, which may be
        models of their own, nor where a part of the stage cannot be built on the meta device.
        """
        sharded = isinstance(self.trainer.strategy, ShardedStrategy) and self.rehearsed is not None
        return sharded and not isinstance(self.rehearsed, RLStage) and getattr(rank_zero_only, "rank", 0) != 0

    def dump(self) -> str:
        """The resolved settings as YAML that can be given back; without what belongs to this one start."""
        kept = self.config.clone()
        for key in ("config", "run_dir", "ckpt_path", "summary"):
            kept.pop(key, None)
        return self.parser.dump(kept, skip_none=False, skip_validation=True)

    def _add_instantiators(self) -> None:
        super()._add_instantiators()
        for key, base in (("model", Stage), ("data", MultimodalDataModule)):
            self.parser.add_instantiator(guarded(_InstantiatorFn(self, key)), base, subclasses=True)
        self.parser.add_instantiator(guarded(construct), object, subclasses=True)
