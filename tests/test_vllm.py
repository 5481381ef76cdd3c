"""The vLLM engine: budgets kept stretch by stretch, and a real server (slow: ``make test-slow`` installs it)."""

import json
import os
import random
import socket
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from endpoints import serving
from lightning.pytorch.strategies import DDPStrategy
from processes import in_ranks
from rl_runs import Questions, WantsLowIds, data_of, fit, stage_of
from safetensors.torch import load_file
from test_prompt_loop import Parity
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


@contextmanager
def stub(colocated=False, refuses=""):
    """A server that draws tokens by the seed; yields its address, its count of calls, and what was done wrongly."""
    calls, wrong, lock = Counter(), [], threading.Lock()
    under_way = [0]
    asleep = [colocated]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                calls[self.path] += 1
                if self.path != "/v1/completions" and under_way[0]:
                    wrong.append(f"{self.path} beside {under_way[0]} requests")
                if self.path in ("/wake_up", "/sleep?level=1") and asleep[0] != (self.path == "/wake_up"):
                    wrong.append(f"{self.path} twice")
                asleep[0] = {"/wake_up": False, "/sleep?level=1": True}.get(self.path, asleep[0])
                if self.path == "/v1/completions" and asleep[0]:
                    wrong.append("asked in its sleep")
                under_way[0] += self.path == "/v1/completions"
            said = {}
            if self.path == "/collective_rpc":
                try:
                    for _ in range(3):
                        load_file(f"{body['kwargs']['weights_path']}/model.safetensors")
                        time.sleep(0.02)
                except Exception as error:
                    wrong.append(f"{type(error).__name__}: {error}")
            if self.path == "/v1/completions":
                time.sleep(body["seed"] % 4 * 0.01)
                tokens = [40 + body["seed"] % 40] * body["max_tokens"]
                said = {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": [-1.0] * len(tokens)}}]}
                with lock:
                    under_way[0] -= 1
            self.send_response(500 if self.path == refuses else 200)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

        def log_message(self, *args):
            pass

    with serving(Handler) as url:
        yield url, calls, wrong


@pytest.mark.parametrize("colocated", [False, True])
def test_of_several_processes_one_loads_the_server_while_no_other_asks(tmp_path, colocated):
    with stub(colocated) as (url, calls, wrong):

        def work(rank: int) -> None:
            engine, vlm = VLLMEngine(url, str(tmp_path / "weights"), colocated=colocated), wide_vlm()
            for step in range(4):
                for call in range(2):
                    asked = [Prompt(None, prompt(), True, None, seed=n) for n in range(0 if rank == call == 1 else 3)]
                    rollouts = engine.write(vlm, asked, tiny_tokenizer(), Sampling(2, 1.0), 2, None, 2, step)
                    assert len(rollouts) == 2 * len(asked)
            engine.write(vlm, [], tiny_tokenizer(), Sampling(2, 1.0), 2, None, 2, 3)  # nobody asks: let it sleep

        in_ranks(work, tmp_path)
        assert not wrong
        assert calls["/collective_rpc"] == calls["/reset_prefix_cache"] == 4
        assert calls["/v1/completions"] == 4 * 3 * 3 * 2
        assert calls["/wake_up"] == calls["/sleep?level=1"] == 8 * colocated


@pytest.mark.parametrize("broken", ["server", "folder"])
def test_what_the_loading_process_cannot_do_fails_in_all(tmp_path, broken):
    (tmp_path / "file").touch()
    with stub(refuses="/collective_rpc" if broken == "server" else "") as (url, calls, _):

        def work(rank: int) -> None:
            engine = VLLMEngine(url, str(tmp_path / ("weights" if broken == "server" else "file/weights")))
            said = "/collective_rpc: answered 500" if broken == "server" else "file/weights"
            with pytest.raises(DataError, match=said):
                engine.write(wide_vlm(), [], tiny_tokenizer(), Sampling(2, 1.0), 2, None, 2, 0)

        in_ranks(work, tmp_path)
        assert calls["/collective_rpc"] == (broken == "server")


@pytest.mark.parametrize("ahead", [False, True])
def test_processes_with_unequal_refills_train_beside_a_colocated_server(tmp_path, monkeypatch, ahead):
    with stub(colocated=True) as (url, calls, wrong):

        def work(rank: int) -> None:
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            engine = VLLMEngine(url, str(tmp_path / "weights"), colocated=True)
            stage = stage_of(rewards=RewardRouter({"parity": Parity()}), plan={"engine": engine, "ahead": ahead})
            data = data_of(tmp_path / f"{rank}", Questions(12), prompts_per_step=2, refills=3)
            strategy = DDPStrategy(process_group_backend="gloo")
            fit(stage, data, tmp_path, 3, devices=2, strategy=strategy, use_distributed_sampler=False)

        in_ranks(work, tmp_path)
        assert not wrong
        assert calls["/collective_rpc"] == 3
        assert calls["/wake_up"] == calls["/sleep?level=1"] > 3 + ahead


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
