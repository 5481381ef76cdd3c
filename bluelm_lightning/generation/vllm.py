"""VLLMEngine: rollouts written by a vLLM server, with the same records, budgets and log-probabilities as our engine.

Start the server in an environment of its own, with the decoder's folder (``decoder.model.save_pretrained``)::

    VLLM_SERVER_DEV_MODE=1 vllm serve FOLDER --served-model-name policy --enable-prompt-embeds \\
        --logprobs-mode processed_logprobs [--enable-sleep-mode]

Vision tower and projector stay here: pictures travel as prompt embeddings. A budget is kept token by token: the rule of
:class:`BudgetState` cuts an answer into stretches in which nothing is forced and the same tokens are ruled out; each is
one request that stops where the next begins (the server's prefix cache holds what came before).
"""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from bluelm_lightning.components.adapters import merged_state
from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data.packing import pack
from bluelm_lightning.errors import ConfigError, DataError
from bluelm_lightning.generation.budget import BudgetState, ThinkingBudget
from bluelm_lightning.generation.decode import Written, forbidden
from bluelm_lightning.generation.engine import RolloutEngine, evaluating, rollout_of
from bluelm_lightning.generation.sampling import Sampling
from bluelm_lightning.generation.together import everyone, once
from bluelm_lightning.types import Prompt, Rollout

_NEVER = -100.0  # logit bias: a probability of e^-100


class VLLMEngine(RolloutEngine):
    """Asks a vLLM server for rollouts.

    Before the first rollouts of an optimizer step the decoder is written to ``weights_dir``, which the server must see,
    and the server reloads it. A rollout is reproducible by its prompt's seed as far as the server's arithmetic is.
    Of several processes that train together the first alone does this, and wakes a server or lets it sleep, while no
    other has a request under way; if that fails, it fails in all.

    Args:
        url: the server, ``http://host:8000``.
        weights_dir: folder for the weights, shared with the server.
        model: name under which the server knows the model.
        colocated: the server shares this process's accelerator: it sleeps (``--enable-sleep-mode``) while the policy is
            trained. Default: it has its own.
        concurrency: requests at the same time.
        timeout_s: seconds a request may take.

    Raises:
        ConfigError: the address is none.
    """

    def __init__(
        self,
        url: str,
        weights_dir: str,
        model: str = "policy",
        colocated: bool = False,
        concurrency: int = 64,
        timeout_s: float = 600.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url!r} is no http address", "model.plan.engine.url")
        self.url, self.weights_dir, self.model = url.rstrip("/"), Path(weights_dir), model
        self.colocated, self.concurrency, self.timeout_s = colocated, concurrency, timeout_s
        self._loaded: int | None = None  # step of the weights that the server holds
        here = urlsplit(self.url).hostname in ("localhost", "127.0.0.1", "::1")  # each machine's own
        self._server = f"{self.url} on {socket.gethostname()}" if here else self.url

    @torch.no_grad()
    def write(
        self,
        vlm: VisionLanguageModel,
        prompts: Sequence[Prompt],
        tokenizer: Any,
        sampling: Sampling,
        group_size: int,
        budget: ThinkingBudget | None,
        batch_size: int,
        step: int,
    ) -> list[Rollout]:
        """See :func:`roll_out`; every process must call it equally often, if need be without prompts.

        Raises:
            DataError: the server cannot be reached, or refuses.
        """
        if self.colocated and not any(everyone(bool(prompts))):
            return []
        if self.colocated or self._loaded != step:
            once(self._server, lambda: self._make_ready(vlm, step))
            self._loaded = step
        never = forbidden(vlm.vocab_size, tokenizer).nonzero().flatten().tolist()
        jobs = []
        with evaluating(vlm), ThreadPoolExecutor(self.concurrency) as pool:
            for group, prompt in enumerate(prompts):
                start = self._start(vlm, prompt)
                rule = budget.of(prompt.budget) if budget is not None else None
                for copy in range(group_size):
                    fixed = (vlm, tokenizer, sampling, rule, never)
                    jobs.append((prompt, group, pool.submit(self._answer, start, (prompt.seed, copy), *fixed)))
            written = [(job.result(), prompt, group) for prompt, group, job in jobs]
        if self.colocated:
            once(self._server, lambda: self._post("/sleep?level=1", {}))
        return [rollout_of(item, prompt, group, tokenizer, step) for item, prompt, group in written]

    def _start(self, vlm: VisionLanguageModel, prompt: Prompt) -> Tensor | list[int]:
        """Token ids, or for a prompt with pictures its embeddings float[T, D]."""
        encoded = prompt.encoded
        if not len(encoded.tiles):
            return encoded.ids.tolist()
        batch = pack([[encoded]], len(encoded), 0).to(vlm.decoder.output_weight.device)
        return vlm.embed(batch)[0].cpu()

    @torch.no_grad()
    def _answer(
        self,
        start: Tensor | list[int],
        seed: tuple[int, int],
        vlm: VisionLanguageModel,
        tokenizer: Any,
        sampling: Sampling,
        rule: ThinkingBudget | None,
        never: list[int],
    ) -> Written:
        """One answer, stretch by stretch."""
        out, state = Written(), BudgetState([rule], sampling.max_new_tokens, tokenizer)
        while len(out.ids) < sampling.max_new_tokens and out.ids[-1:] != [state.tokens.end]:
            put = int(state.forced()[0])
            if put >= 0:
                tokens, logprobs = [put], [0.0]
            else:
                count, stops, banned = stretch(state)
                settings = {"max_tokens": count, "stop_token_ids": stops, "seed": _mixed(*seed, len(out.ids))}
                settings["logit_bias"] = dict.fromkeys(map(str, [*never, *banned]), _NEVER)
                tokens, logprobs = self._complete(start, out.ids, vlm, sampling, settings)
            for token, logprob in zip(tokens, logprobs):
                out.ids.append(token)
                out.logprobs.append(logprob)
                out.forced.append(put >= 0)
                state.advance(torch.tensor([token]))
        return out

    def _complete(
        self,
        start: Tensor | list[int],
        written: list[int],
        vlm: VisionLanguageModel,
        sampling: Sampling,
        settings: dict[str, Any],
    ) -> tuple[list[int], list[float]]:
        body = {"model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p, "logprobs": 0}
        body |= {"top_k": sampling.top_k or -1, "ignore_eos": True, "return_token_ids": True, **settings}
        if isinstance(start, list):
            body["prompt"] = start + written
        else:
            device = vlm.decoder.output_weight.device
            later = vlm.decoder.embed(torch.tensor(written, dtype=torch.long, device=device)).cpu()
            file = io.BytesIO()
            torch.save(torch.cat([start, later]), file)
            body["prompt_embeds"] = base64.b64encode(file.getvalue()).decode()
        choice = json.loads(self._post("/v1/completions", body))["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    def _make_ready(self, vlm: VisionLanguageModel, step: int) -> None:
        if self.colocated:
            self._post("/wake_up", {})
        if self._loaded != step:
            self._load(vlm)

    def _load(self, vlm: VisionLanguageModel) -> None:
        """The decoder's present weights into the server."""
        new = self.weights_dir.with_name(self.weights_dir.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        model: Any = vlm.decoder.model
        model.save_pretrained(new, state_dict=merged_state(model))
        shutil.rmtree(self.weights_dir, ignore_errors=True)
        new.rename(self.weights_dir)  # a server that reads never sees half a folder
        where = {"weights_path": str(self.weights_dir.resolve())}
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": where})
        self._post("/reset_prefix_cache", {})

    def _post(self, path: str, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                return reply.read()
        except urllib.error.HTTPError as error:
            said = error.read()[:300].decode(errors="replace")
            raise DataError(f"answered {error.code}: {said}", f"vLLM {self.url}{path}") from error
        except OSError as error:
            raise DataError(f"{error}; start the server, or correct engine.url", f"vLLM {self.url}{path}") from error


def stretch(state: BudgetState) -> tuple[int, list[int], list[int]]:
    """How far one row may be written before the rule changes: most tokens, where to stop, what is ruled out."""
    tokens, left = state.tokens, state.max_new_tokens - state.step
    blocked = state.blocked()[0]
    stops = [tokens.end, tokens.think, tokens.end_think]
    banned = [token for token, no in zip((tokens.end, tokens.think), blocked.tolist()) if no]
    if not bool(state.bound[0]):
        return left, [tokens.end], banned
    close, text = int(state.last_close[0]), int(state.text[0])
    if bool(state.inside[0]):
        left = min(left, int(state.limit[0]) - text - int(state.used[0]), close - text - 1 - state.step)
    elif not bool(blocked[1]):
        left = min(left, close - 1 - state.step)  # from there on thinking cannot be opened any more
    return left, stops, banned


def _mixed(seed: int, copy: int, place: int) -> int:
    return (seed * 0x9E3779B97F4A7C15 + copy * 0xBF58476D1CE4E5B9 + place * 0x94D049BB133111EB) % (1 << 62)
