"""The command line as a list of (key, text) in order, with shorthands written out. No parser, no heavy import."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from bluelm_lightning.errors import ConfigError

HELP = """\
usage: bluelm-fit --config STAGE.yaml [--config MORE.yaml ...] [options] [--KEY=VALUE ...]

Train one stage of a vision-language model from one YAML file.

  --config FILE       a file, or the name of a packaged one (tiny/sft.yaml, 3b/sft.yaml, fragments/wandb.yaml);
                      repeat it to add more: later ones win
  --KEY=VALUE         override: --trainer.max_steps=100 --model.projector.hidden_dim=512 --data.batch_rows=8
  --run_dir DIR       the folder this run owns (default: runs/STAGE-YYYYmmdd-HHMMSS)
  --ckpt_path PATH    continue this run: weights, optimizer, position in the data; `last` = its last checkpoint
  --init_from PATH    start this stage from another run's weights; repeat it, or restrict it to components:
                      --init_from vision,projector=runs/align/checkpoints/last.ckpt
  --checkpoint_every_n_steps N   save every N optimizer steps (default: at the end of an epoch and of the run)
  --summary           parameters, FLOPs and tokens by component; allocates no weights, reads no data
  --print_config      the whole configuration with its defaults, and exit
  --model.help CLASS  arguments of a class (also --data.help, --trainer.callbacks.help, --trainer.logger.help)
  --help_keys         every key of the trainer
  --version

A run folder holds config.yaml, lineage.json, metrics.csv and checkpoints/. BLUELM_DEBUG=1 shows tracebacks.
"""

SWITCHES = {"summary", "print_config", "version", "help", "help_keys"}  # flags that need no value


class Argument(NamedTuple):
    """``--data.batch_rows=8`` -> ``("data.batch_rows", "8")``; a switch has no text."""

    key: str
    text: str | None

    @property
    def parts(self) -> list[str]:
        return self.key.removesuffix("+").split(".")

    @property
    def dotted(self) -> str:
        """The key without ``init_args`` and ``+``."""
        return ".".join(part for part in self.parts if part != "init_args")

    @property
    def token(self) -> str:
        return f"--{self.key}" if self.text is None else f"--{self.key}={self.text}"


def split_arguments(argv: Sequence[str]) -> list[Argument]:
    """``--key=value``, ``--key value`` and switches, in order.

    Raises:
        ConfigError: something that is no option, or an option without its value.
    """
    found: list[Argument] = []
    tokens = list(argv)
    while tokens:
        token = {"-c": "--config", "-h": "--help"}.get(tokens[0], tokens[0])
        tokens.pop(0)
        if not token.startswith("--") or len(token) < 3:
            raise ConfigError("is no option; options are --KEY=VALUE, and a config is given by --config", token)
        key, equals, text = token[2:].partition("=")
        if equals:
            found.append(Argument(long_key(key), text))
        elif key in SWITCHES or key.endswith(".help"):
            takes = key.endswith(".help") and tokens and not tokens[0].startswith("--")
            found.append(Argument(long_key(key), tokens.pop(0) if takes else None))
        elif not tokens or tokens[0].startswith("--"):
            raise ConfigError("has no value; write it as --KEY=VALUE", f"--{key}")
        else:
            found.append(Argument(long_key(key), tokens.pop(0)))
    return found


def long_key(key: str) -> str:
    """``model.projector.hidden_dim`` is short for ``model.vlm.projector.hidden_dim``."""
    return re.sub(r"^model\.(?:init_args\.)?(?=(?:vision|projector|decoder)(?:[.+]|$))", "model.vlm.", key)
