"""The vLLM engine: budgets kept stretch by stretch, and a real server (slow: ``make test-slow`` installs it)."""

import os
import random
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from rl_runs import Questions, WantsLowIds, data_of, fit, stage_of
from test_rl_stage import Peek
from tiny import prompt, tiny_decoder, tiny_tokenizer, tiny_vit

from bluelm_lightning.components import MLPProjector, VisionLanguageModel
from bluelm_lightning.data.budgets import BudgetRange
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.generation import Sampling, ThinkingBudget
from bluelm_lightning.generation.budget import BudgetState, ThinkingTokens
from bluelm_lightning.generation.vllm import VLLMEngine
from bluelm_lightning.rl.policy_loss import PolicyLoss
from bluelm_lightning.rl.rewards import RewardRouter
from bluelm_lightning.types import Prompt

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}  # heads vLLM can do


def wide_vlm() -> VisionLanguageModel:
    return VisionLanguageModel(tiny_vit(), MLPProjector(24, 64), tiny_decoder(config=WIDE))


class Drawn(VLLMEngine):
    """Draws locally what a server would, and checks that nothing was to be forced within a stretch."""

    def __init__(self, chooser, rule, limit):
        super().__init__("http://nowhere", "unused")
        self.random, self.markers = chooser, ThinkingTokens.of(tiny_tokenizer())
        self.rule, self.limit = rule, limit

    def _complete(self, start, written, vlm, sampling, settings):
        state = BudgetState([self.rule], self.limit, tiny_tokenizer())
        for token in written:
            state.forced()
            state.advance(torch.tensor([token]))
        drawn = []
        while len(drawn) < settings["max_tokens"]:
            assert int(state.forced()[0]) == -1
            wanted = {self.markers.end, self.markers.think}
            ruled = {token for token, no in zip((self.markers.end, self.markers.think), state.blocked()[0]) if no}
            assert ruled == wanted & set(map(int, settings["logit_bias"]))
            pool = [self.markers.end, self.markers.think, self.markers.end_think, 40, 41, 42, 43]
            token = self.random.choice([t for t in pool if str(t) not in settings["logit_bias"]])
            state.advance(torch.tensor([token]))
            drawn.append(token)
            if token in settings["stop_token_ids"]:
                break
        return drawn, [-1.0] * len(drawn)


@pytest.mark.parametrize("tokens", [None, 0, 1, 3, 8, 30])
@pytest.mark.parametrize("text", ["", "so "])
def test_a_stretch_ends_where_the_rule_changes(tokens, text):
    rule, vlm = ThinkingBudget(tokens, 4, text), wide_vlm()
    for seed in range(60):
        engine = Drawn(random.Random(seed), rule, 20)
        out = engine._answer([1], (seed, 0), vlm, tiny_tokenizer(), Sampling(20, 1.0), rule, [0])
        assert len(out.ids) <= 20
        state = BudgetState([rule], 20, tiny_tokenizer())
        for token, forced in zip(out.ids, out.forced):
            put = int(state.forced()[0])
            assert (put >= 0) == forced
            assert put in (-1, token)
            state.advance(torch.tensor([token]))
        assert tokens is None or int(state.used[0]) <= tokens
        assert not bool(state.inside[0])


def test_a_server_that_is_not_there_is_named():
    engine = VLLMEngine("http://127.0.0.1:9", "unused", timeout_s=2)
    with pytest.raises(DataError, match=r"vLLM http://127.0.0.1:9/reset_prefix_cache.*start the server"):
        engine._post("/reset_prefix_cache", {})
    with pytest.raises(ConfigError, match="no http address"):
        VLLMEngine("localhost:8000", "w")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm")
    wide_vlm().decoder.model.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
    command += ["--served-model-name", "policy", "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    command += ["--enable-prompt-embeds", "--logprobs-mode", "processed_logprobs", "--max-model-len", "256"]
    env = {**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
                time.sleep(1)
        yield url, folder
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestRealServer:
    def test_rollouts_are_scored_alike_and_budgets_hold(self, served):
        url, folder = served
        engine = VLLMEngine(url, str(folder / "weights"))
        encoded = [prompt(thinking=True), prompt(images=1, thinking=True), prompt("is it red?")]
        asked = [Prompt(None, e, n < 2, budget, seed=n) for n, (e, budget) in enumerate(zip(encoded, (3, 0, None)))]
        fixed = (tiny_tokenizer(), Sampling(16, 1.0), 4, ThinkingBudget(answer_reserve=4), 2)
        rollouts = engine.write(wide_vlm(), asked, *fixed, 0)
        assert [r.group for r in rollouts] == [0] * 4 + [1] * 4 + [2] * 4
        assert len({tuple(r.ids.tolist()) for r in rollouts}) > 8
        assert all(r.thinking_tokens <= r.prompt.budget for r in rollouts if r.prompt.budget is not None)
        again = engine.write(wide_vlm(), asked[::-1], *fixed, 0)  # by seeds, not by neighbours
        assert sorted(r.ids.tolist() for r in again) == sorted(
            r.ids.tolist() for r in rollouts
        )  # seeds, not neighbours

    def test_a_run_learns_from_its_rollouts_with_the_weights_of_each_step(self, served, tmp_path):
        url, folder = served
        engine = VLLMEngine(url, str(folder / "weights"))
        stage, peek = stage_of(algorithm=PolicyLoss(correction="token"), plan={"engine": engine}), Peek()
        stage = type(stage)(
            wide_vlm(), RewardRouter({"low": WantsLowIds()}), PolicyLoss(correction="token"), Sampling(12, 1.0),
            ThinkingBudget(answer_reserve=3), stage.plan, stage.optimizer,
        )  # fmt: skip
        fit(stage, data_of(tmp_path, Questions(12), budgets=BudgetRange(0, 6, 0.5)), tmp_path, 4, peek)
        gaps = [logged["policy/gap_max"] for logged in peek.logged]
        assert max(gaps) < 2e-3, gaps  # other kernels, the same weights; stale weights gave 0.4
        assert all(logged["rollout/staleness"] == 0 for logged in peek.logged)
