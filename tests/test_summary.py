"""--summary: the report's model counted without building it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_project import stage
from tiny import tiny_vlm

from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.arguments import split_arguments
from bluelm_lightning.cli.fit import main
from bluelm_lightning.cli.layers import Layers
from bluelm_lightning.cli.summary import image_settings, render, summarize
from bluelm_lightning.stages import SFTStage


@pytest.mark.parametrize(("name", "trainable"), [("align", ["projector"]), ("pretrain", None), ("sft", None)])
def test_the_reports_model(name, trainable):
    cli = FitCLI(Layers(split_arguments(["--config", f"3b/{name}.yaml"])))
    cli.rehearse()
    assert {parameter.device.type for parameter in cli.rehearsed.parameters()} == {"meta"}
    summary = summarize(cli.rehearsed, **image_settings(cli.config))
    size = {row.component: row.parameters for row in summary.rows}
    assert 2.85e9 <= summary.parameters <= 2.95e9
    assert 0.39e9 <= size["vision"] <= 0.43e9
    assert 2.4e9 <= size["decoder"] <= 2.6e9
    # the arithmetic on top of the YAML: 30 x (attention + MLP + norms) + norm + embeddings
    assert size["decoder"] == 30 * (2 * 2560**2 + 2 * 2560 * 640 + 3 * 2560 * 7168 + 2 * 2560) + 2560 + 128320 * 2560
    assert size["projector"] == 4 * 1152 * 2560 + 2560 + 2560**2 + 2560
    assert (summary.picture, summary.tiles, summary.tokens_per_tile) == (1512, 16, 196)
    assert summary.tokens_per_image == 17 * 196, "16 tiles and the thumbnail"
    assert [row.component for row in summary.rows if row.trainable] == (trainable or list(size))
    # two FLOPs a weight, and attention over half a row in 30 layers of 2560
    expected = 2 * size["decoder"] + 4 * 30 * (summary.row_tokens // 2) * 2560
    assert summary.decoder_flops_per_token == pytest.approx(expected, rel=1e-3)


def test_counts_of_a_model_in_memory():
    torch.manual_seed(0)
    built = SFTStage(tiny_vlm(), frozen=["vlm.vision.*"])
    summary = summarize(built, max_grid=2, thumbnail=True, row_tokens=64)
    assert summary.parameters == sum(parameter.numel() for parameter in built.parameters())
    assert summary.rows[0].trainable == 0
    assert (summary.picture, summary.tiles, summary.tokens_per_image) == (32, 4, 20)
    assert summarize(built, max_grid=1, thumbnail=True).tokens_per_image == 4, "one tile has no thumbnail"
    assert summary.as_dict()["tokens_per_image"] == 20
    assert "2 x" not in render(summary).splitlines()[0]


def test_tied_weights_count_once():
    built = SFTStage(tiny_vlm(tie_embeddings=True))
    rows = {row.component: row.parameters for row in summarize(built).rows}
    assert rows["decoder"] == built.vlm.decoder.num_parameters()
    untied = SFTStage(tiny_vlm(tie_embeddings=False))
    assert summarize(untied).parameters - summarize(built).parameters == 320 * 32


def test_reads_no_data_and_makes_no_folder(tmp_path, monkeypatch, capsys):
    import yaml

    monkeypatch.chdir(tmp_path)
    Path("stage.yaml").write_text(yaml.safe_dump(stage(tmp_path)))  # there is no tokenizer and no shard
    assert main(["--config", "stage.yaml", "--summary"]) == 0
    out = capsys.readouterr().out
    assert "64 x 64: 16 x 4 = 64 tokens" in out
    assert [path.name for path in tmp_path.iterdir()] == ["stage.yaml"]


def test_cost_of_the_summary():
    """At most 30 s and 2 GiB; measured 9 s and 1.03 GiB on two quiet cores, and the time triples on busy ones."""
    program = """
import resource, sys
from pathlib import Path
from bluelm_lightning.cli.fit import main
code = main(["--config", "3b/sft.yaml", "--summary"])
status = Path("/proc/self/status").read_text()  # ru_maxrss would count what the parent held when it forked
peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
usage = resource.getrusage(resource.RUSAGE_SELF)
print("cost", peak, usage.ru_utime + usage.ru_stime)
sys.exit(code)
"""
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert "1512 x 1512: 16 x 196 + 196 (thumbnail) = 3332 tokens" in done.stdout
    kilobytes, seconds = done.stdout.splitlines()[-1].split()[1:]
    assert float(seconds) < 30
    assert time.monotonic() - start < 120
    assert int(kilobytes) < 2 * 1024 * 1024
