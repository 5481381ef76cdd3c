"""Automatic mixtures: designs, laws that are known, a proposal that must beat uniform, and proxies that are reused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from cli_project import write_project

from bluelm_lightning.cli.app import FitCLI
from bluelm_lightning.cli.arguments import split_arguments
from bluelm_lightning.cli.fit import main as fit
from bluelm_lightning.cli.layers import Layers
from bluelm_lightning.cli.mix import _print, main
from bluelm_lightning.cli.settings import read_settings
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.mixing.design import near, spread
from bluelm_lightning.mixing.fit import fit_law
from bluelm_lightning.mixing.plan import MixPlan, StageSources
from bluelm_lightning.mixing.propose import propose
from bluelm_lightning.mixing.run import Proxies, explore, run_mixing, scored
from bluelm_lightning.recipe.runs import Runs

SOURCES, SMALLEST = 4, 0.03
SPEED = np.array([[6, 1, 0, 0], [0, 9, 0, 1], [0, 1, 5, 0]])  # what a share of each source does to each held-out loss
FLOOR = np.array([1.8, 0.3, 0.9])
GOAL = (1, 1, 2)


def exponential(shares):
    """Losses float[N, 3] by a law of known form; the fourth source helps next to nothing."""
    return FLOOR + 2 * np.exp(-shares @ SPEED.T)


def log_law(shares):
    return FLOOR + 1 - 0.3 * np.log(shares[:, :3] * SOURCES) + 0.05 * np.log(shares[:, :3] * SOURCES) ** 2


def proxies(law, count=14, noise=0.01):
    shares = spread(count, SOURCES, SMALLEST)
    return shares, law(shares) + np.random.default_rng(1).normal(0, noise, (count, 3))


# ---------------------------------------------------------------- design
def test_the_first_mixtures_are_spread_and_stay_when_more_are_wanted():
    few, many = spread(6, SOURCES, SMALLEST), spread(9, SOURCES, SMALLEST)
    assert (many[:6] == few).all()
    assert (few[0] == 1 / SOURCES).all()
    assert np.allclose(many.sum(axis=1), 1)
    assert many.min() >= SMALLEST - 1e-4
    assert (many.max(axis=0) > 0.5).all(), "every source is the most of some mixture"


def test_later_mixtures_lie_nearer_to_the_best():
    best = np.array([0.6, 0.2, 0.15, 0.05])
    distance = np.abs(near(best, 20, SMALLEST) - best).sum(axis=1).mean()
    assert distance < 0.5 * np.abs(spread(20, SOURCES, SMALLEST) - best).sum(axis=1).mean()
    assert near(best, 0, SMALLEST).shape == (0, SOURCES)


# ---------------------------------------------------------------- laws
@pytest.mark.parametrize("law", [exponential, log_law])
def test_a_known_law_is_recovered(law):
    shares, losses = proxies(law)
    fresh = spread(60, SOURCES, 0.06, seed=5)
    for number in range(3):
        found = fit_law(shares, losses[:, number])
        missed = found.predict(fresh) - law(fresh)[:, number]
        assert np.sqrt(np.mean(missed**2)) < 0.03  # seen 0.003 to 0.017; the losses spread by 0.25 to 0.37
        assert found.error < 0.15 * found.trivial  # seen 0.01 to 0.06


@pytest.mark.parametrize(
    ("shares", "losses", "message"),
    [
        (np.ones((4, 4)) / 4, np.ones(4), "4 proxies for 4 sources; train 6 or more"),
        (np.ones((8, 2)) / 2, np.array([1.0] * 7 + [np.nan]), "not all finite"),
        (np.ones((8, 2)) / 2, np.ones(7), "do not agree"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(shares, losses, message):
    with pytest.raises(ConfigError, match=message):
        fit_law(shares, losses)


# ---------------------------------------------------------------- proposal
@pytest.mark.parametrize("law", [exponential, log_law])
def test_the_proposal_beats_uniform_and_comes_near_to_the_best(law):
    shares, losses = proxies(law)
    goal = np.array(GOAL) / sum(GOAL)
    made = propose(shares, losses, GOAL)
    true = lambda rows: law(rows) @ goal  # noqa: E731
    uniform, mine = true(np.full((1, SOURCES), 1 / SOURCES))[0], true(made.shares[None])[0]
    best = true(np.random.default_rng(0).dirichlet(np.ones(SOURCES), 20000) * (1 - 4 * SMALLEST) + SMALLEST).min()
    assert uniform - mine > 0.8 * (uniform - best)
    assert made.loss[1] <= made.loss[0] <= made.loss[2]
    assert made.gain[0] == pytest.approx(uniform - mine, abs=0.05)
    assert made.gain[1] > 0
    assert (made.shares <= shares.max(axis=0) + 1e-4).all()
    assert made.shares.argmin() == 3, "the source that helps nobody"


def test_of_noise_alone_little_gain_is_claimed():
    shares = spread(14, SOURCES, SMALLEST)
    noise = [np.random.default_rng(seed).normal(2, 0.05, (14, 1)) for seed in range(8)]
    claimed = [propose(shares, losses, [1], resamples=50).gain[1] for losses in noise]
    assert sum(gain == 0 for gain in claimed) >= 7, "the law is a constant; without that form none is"


def test_only_the_weighted_losses_count():
    shares, losses = proxies(exponential)
    assert propose(shares, losses, [1, 0, 0]).shares.argmax() == 0
    assert propose(shares, losses, [0, 0, 1]).shares.argmax() == 2
    with pytest.raises(ConfigError, match="held_out"):
        propose(shares, losses, [1, 1])


# ---------------------------------------------------------------- proxies
class FirstOnly(Runs):
    """Trains the first proxy in this process; the others are copies of it, so that a test takes one run, not six."""

    def __init__(self, root, data_key):
        super().__init__(root, data_key)
        self.done = []

    def _run(self, name, arguments):
        if not self.done:
            assert fit(arguments[1:]) == 0
        else:
            shutil.copytree(self.root / self.done[0][0], self.root / name)
        self.done.append((name, arguments))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("mixing"))
    plan = {
        "stage": str(folder / "stage.yaml"),
        "held_out": [{"path": str(folder / "shards" / "a"), "name": "held", "count": 8}],
        "out": str(folder / "mix"),
        "settings": {"trainer.max_steps": 2, "model.schedule.warmup_steps": 1},
        "first": 4,
        "later": 1,
    }
    (folder / "mix.yaml").write_text(yaml.safe_dump(plan))
    return folder


@pytest.fixture(scope="module")
def mixed(project):
    plan = read_settings(MixPlan, str(project / "mix.yaml"))
    runs = FirstOnly(Path(plan.out), "d")
    return plan, runs, run_mixing(plan, lambda _: None, runs)


def test_proxies_are_runs_of_the_stage_with_other_shares(mixed):
    plan, runs, report = mixed
    settings = [{o.split("=", 1)[0]: o.split("=", 1)[1] for o in arguments[1:]} for _, arguments in runs.done]
    shares = [[s["token_weight"] for s in json.loads(given["--data.sources"])] for given in settings]
    assert shares[0] == [0.5, 0.5]
    wanted = [list(proxy["shares"].values()) for proxy in report["proxies"]]
    wanted.append([share["value"] for share in report["shares"].values()])
    assert shares == [row for n, row in enumerate(wanted) if row not in wanted[:n]]
    assert {given["--trainer.max_steps"] for given in settings} == {"2"}
    trained = yaml.safe_load((Path(plan.out) / runs.done[0][0] / "config.yaml").read_text())
    assert [s["token_weight"] for s in trained["data"]["init_args"]["sources"]] == [0.5, 0.5]
    assert [s["weight"] for s in trained["data"]["init_args"]["sources"]] == [None, None]


def test_a_second_call_trains_and_scores_nothing(mixed, monkeypatch):
    plan, _, report = mixed
    monkeypatch.setattr("bluelm_lightning.cli.load.load_run", None)
    runs = FirstOnly(Path(plan.out), "d")
    again = run_mixing(plan, lambda _: None, runs)
    assert runs.done == []
    assert again == json.loads((Path(plan.out) / "mixture.json").read_text()) == json.loads(json.dumps(report))


def test_the_fragment_goes_behind_the_stage(mixed):
    plan, _, report = mixed
    arguments = ["--config", plan.stage, "--config", f"{plan.out}/mixture.yaml"]
    sources = FitCLI(Layers(split_arguments(arguments))).config.data.init_args.sources
    assert {s.path.rsplit("/")[-1]: s.token_weight for s in sources} == {
        name: share["value"] for name, share in report["shares"].items()
    }
    assert (Path(plan.out) / "mixture.png").read_bytes().startswith(b"\x89PNG")


def test_the_packaged_example_is_sound():
    plan = read_settings(MixPlan, "mix/sft.yaml")
    names = StageSources(plan.stage, plan.unit).names
    assert plan.first + plan.later >= len(names) + 2
    assert [s["weight"] for s in StageSources(plan.stage, plan.unit).at([0.1, 0.2, 0.3, 0.4])] == [0.1, 0.2, 0.3, 0.4]


def test_other_shards_are_other_proxies(project):
    sources = StageSources(str(project / "stage.yaml"), "tokens")
    before = sources.key([])
    sources.specs = [sources.specs[0], sources.specs[0]]
    assert sources.key([]) != before
    with pytest.raises(ConfigError, match="parents"):
        sources.key(["vision=nowhere"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("foo", "stage: .* has no sources under data.init_args; name a stage's YAML"),
        ({"init_args": "foo"}, "stage: .* has no sources"),
        ({"init_args": {"sources": "shards/a"}}, "data.sources: .* has 1 sources"),
        ({"init_args": {"sources": ["shards/a", "shards/b"]}}, "shards/a cannot hold its share: .* needs a path"),
        ({"init_args": {"sources": [{"path": "x/train"}, {"path": "y/train"}]}}, "data.sources: 2 are called 'train'"),
    ],
)
def test_sources_that_cannot_be_mixed_are_refused_before_anything_runs(data, message, tmp_path):
    (tmp_path / "stage.yaml").write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(ConfigError, match=message):
        StageSources(str(tmp_path / "stage.yaml"), "tokens")


def test_a_damaged_note_of_losses_is_scored_again(mixed):
    plan, runs, _ = mixed
    note = next(Path(plan.out).glob("proxy-*/held_out.json"))
    whole = note.read_text()
    note.write_text("")
    assert scored(note.parent, Proxies(plan, runs).samples) == json.loads(whole)["losses"]
    assert note.read_text() == whole


def test_names_are_printed_as_they_are(capsys, mixed):
    _, _, report = mixed
    _print({**report, "shares": {"[/b]": {"value": 1.0, "low": 1.0, "high": 1.0}}})
    assert "[/b]" in capsys.readouterr().out


def test_more_later_proxies_only_add_and_more_first_ones_move_the_later():
    def score(row):
        return np.array([2 + 3 * (row[0] - 0.6) ** 2 + (row[1] - 0.3) ** 2])

    def mixtures(first, later):
        return {tuple(row) for row in explore(score, 3, [1], first, later, SMALLEST, resamples=20)[0].tolist()}

    known = mixtures(8, 4)
    assert known <= mixtures(8, 6)
    kept = known & mixtures(10, 4)
    assert len(kept) == 8
    assert kept == {tuple(row) for row in spread(8, 3, SMALLEST).tolist()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frist": 3}, "frist: unknown key of MixPlan; did you mean first?"),
        ({3: 4}, "3: is no text, and so no key in "),
        ({"held_out": []}, "held_out: is empty"),
        ({"held_out": [{"path": "nowhere/a"}]}, "nowhere/a"),
        ({"unit": "bytes"}, "unit: 'bytes' is not one of tokens, samples"),
        ({"smallest": 0.7}, "smallest: 0.7 is not between 0 and 1/2"),
        ({"stage": "tiny/pretrain.yaml"}, "cannot hold its share: a proxy's source needs a path and no epochs"),
        ({"first": 3}, "first: 3 is below 4, the sources and two more"),
        ({"held_out": [{"path": "x/train"}, {"path": "y/train/"}]}, "held_out: 2 are called 'train'; give each a name"),
        ({"held_out": [{"path": "x", "weight": 0}]}, "held_out: all weights are 0"),
        ({"held_out": [{"path": "x", "weight": float("nan")}]}, "held_out: weight nan, count 200; give 0 or more"),
    ],
)
def test_bad_settings_end_with_one_line(project, change, message, capsys, mixed, monkeypatch):
    monkeypatch.setattr("bluelm_lightning.mixing.run.Runs", lambda *_: FirstOnly(project / "mix", "d"))
    plan = {**yaml.safe_load((project / "mix.yaml").read_text()), **change}
    (project / "bad.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    assert main([str(project / "bad.yaml")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_the_help_names_a_config_that_exists_and_a_missing_one_is_told_by_its_own_key(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["--help"])
    example = re.search(r"^bluelm-mix (\S+)$", capsys.readouterr().out, re.M)[1]
    assert read_settings(MixPlan, example)
    for name in ("nope.yaml", "data/mix.yaml"):
        assert main([name]) == 2
        assert capsys.readouterr().err == (
            f"bluelm-mix: error: CONFIG: {name} does not exist; give a file or one of mix/sft.yaml\n"
        )
    (tmp_path / "list.yaml").write_text("[3]")
    assert main([str(tmp_path / "list.yaml")]) == 2
    assert "CONFIG: " in (error := capsys.readouterr().err)
    assert "holds [3], not keys and values; see mix/sft.yaml" in error
    with pytest.raises(ConfigError, match=r"^stage: nope\.yaml does not exist; "):
        StageSources("nope.yaml", "tokens")
