"""bluelm-fit: train one stage from one YAML file.

bluelm-fit --config tiny/sft.yaml --init_from runs/pretrain/checkpoints/last.ckpt --trainer.max_steps=100
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bluelm_lightning import __version__
from bluelm_lightning.cli.arguments import HELP, Argument, split_arguments
from bluelm_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:  # `--help`, `--version` and a missing file need none of it
    from bluelm_lightning.cli.app import FitCLI
    from bluelm_lightning.cli.layers import Layers


def main(argv: Sequence[str] | None = None) -> int:
    """The console script.

    Returns:
        0; 1 when training had to stop (a NaN loss); 2 and one line on standard error when settings or data are wrong;
        130 after Ctrl-C.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(tokens)
    except (ConfigError, DataError) as error:
        if os.environ.get("BLUELM_DEBUG"):
            raise
        print(f"bluelm-fit: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # bluelm-fit --help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("bluelm-fit: stopped", file=sys.stderr)
        return 130
    except SystemExit as stop:  # --print_config, --model.help
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _run(tokens: list[str]) -> int:
    arguments = split_arguments(tokens)
    keys = {argument.key for argument in arguments}
    if "version" in keys or "help" in keys:
        print(f"bluelm-fit {__version__}" if "version" in keys else HELP)
        return 0
    return _fit(arguments, keys, tokens)


def _fit(arguments: list[Argument], keys: set[str], tokens: list[str]) -> int:
    from bluelm_lightning.cli.config_files import packaged_configs
    from bluelm_lightning.cli.diagnose import with_origin
    from bluelm_lightning.cli.layers import Layers

    layers = Layers(arguments)
    shows_help = "help_keys" in keys or any(key.endswith(".help") for key in keys)
    if not layers.configs and not shows_help:
        raise ConfigError(f"is missing; give a file or one of {', '.join(packaged_configs())}", "--config")
    try:
        return _follow(layers, not (shows_help or "print_config" in keys), tokens)
    except ConfigError as error:
        raise with_origin(error, layers) from error


def _follow(layers: Layers, trains: bool, tokens: list[str]) -> int:
    from bluelm_lightning.cli.options import Options

    options = Options(layers.values, layers.configs)
    folder = options.run_folder() if trains and not options.summary else None

    from bluelm_lightning.cli.app import FitCLI  # from here on it costs seconds

    cli = FitCLI(layers)
    if folder is None:
        return _summary(cli)
    from bluelm_lightning.cli.train import train

    return train(cli, options, folder, ["bluelm-fit", *tokens])


def _summary(cli: FitCLI) -> int:
    from bluelm_lightning.cli.summary import image_settings, render, summarize

    cli.rehearse()
    if cli.rehearsed is None:
        raise ConfigError(f"cannot be built without weights: {cli.rehearsal_error!r}; see BLUELM_DEBUG=1", "model")
    print(render(summarize(cli.rehearsed, **image_settings(cli.config))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
