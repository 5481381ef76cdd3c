"""Batched generation: prompts are prefilled packed, without padding, then decoded together, and leave when finished."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from bluelm_lightning.components.vlm import VisionLanguageModel
from bluelm_lightning.data import chat
from bluelm_lightning.data.packing import pack
from bluelm_lightning.types import Encoded, Generation


class KVCache:
    """Keys and values of a batch of sequences of different lengths, right-padded: [rows, heads, capacity, width].

    Transformers layers call :meth:`update`. While prefilling, the packed row passes through and is kept; after
    :meth:`unpack`, every update writes one token a row at that row's own length.

    Args:
        layers: number of layers.
    """

    def __init__(self, layers: int) -> None:
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.lengths: Tensor | None = None  # int64[rows], tokens held

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.lengths is None:
            self.keys[layer], self.values[layer] = keys, values
            return keys, values
        rows = torch.arange(len(self.lengths), device=keys.device)
        self.keys[layer][rows, :, self.lengths] = keys[:, :, 0]
        self.values[layer][rows, :, self.lengths] = values[:, :, 0]
        return self.keys[layer], self.values[layer]

    def get_seq_length(self, layer: int = 0) -> int:
        return 0  # positions and masks are always given

    def unpack(self, bounds: list[int], room: int) -> None:
        """From one packed row [1, H, T, d] to right-padded rows with ``room`` for new tokens."""
        lengths = [end - start for start, end in pairwise(bounds)]
        for store in (self.keys, self.values):
            for layer, flat in enumerate(store):
                out = flat.new_zeros(len(lengths), flat.shape[1], max(lengths) + room, flat.shape[3])
                for row, (start, length) in enumerate(zip(bounds, lengths)):
                    out[row, :, :length] = flat[0, :, start : start + length]
                store[layer] = out
        self.lengths = torch.tensor(lengths, device=self.keys[0].device)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        assert self.lengths is not None
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.lengths = self.lengths[rows]


@torch.no_grad()
def generate(
    vlm: VisionLanguageModel,
    prompts: list[Encoded],
    tokenizer: Any,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Generation]:
    """Continue each prompt until ``</s>`` or the limit.

    Args:
        vlm: the model; the mode of each module is restored afterwards, and the global random state is not touched.
        prompts: encoded prompts.
        tokenizer: the prompts' tokenizer.
        max_new_tokens: limit of new tokens a prompt.
        temperature: 0 = greedy.
        batch_size: prompts decoded together; long and short ones are grouped by length.
        seed: of the sampling.

    Returns:
        One :class:`Generation` a prompt, in the order given.
    """
    modes = {module: module.training for module in vlm.modules()}  # a frozen tower may be in eval mode on its own
    vlm.eval()
    device = vlm.decoder.output_weight.device
    sampler = torch.Generator(device=device).manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    results: dict[int, Generation] = {}
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids = _decode([prompts[i] for i in rows], vlm, tokenizer, max_new_tokens, temperature, sampler, device)
            results.update(zip(rows, (_result(row, tokenizer) for row in ids)))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return [results[i] for i in range(len(prompts))]


def _decode(
    prompts: list[Encoded],
    vlm: VisionLanguageModel,
    tokenizer: Any,
    max_new_tokens: int,
    temperature: float,
    sampler: torch.Generator,
    device: torch.device,
) -> list[list[int]]:
    forbidden = _forbidden(vlm, tokenizer, device)
    cache = KVCache(vlm.decoder.cache_shape()[0])
    batch = pack([prompts], sum(map(len, prompts)), tokenizer.pad_token_id).to(device)
    hidden = vlm(batch, cache=cache)
    bounds = batch.cu_seqlens.tolist()
    cache.unpack(bounds, max_new_tokens)
    last = hidden[0, batch.cu_seqlens[1:].long() - 1]
    alive = torch.arange(len(prompts), device=device)
    out: list[list[int]] = [[] for _ in prompts]
    for step in range(max_new_tokens):
        tokens = _choose(last @ vlm.decoder.output_weight.T, forbidden, temperature, sampler)
        for row, token in zip(alive.tolist(), tokens.tolist()):
            out[row].append(token)
        going = (tokens != tokenizer.eos_token_id).nonzero().flatten()
        if not len(going) or step + 1 == max_new_tokens:
            break
        if len(going) < len(alive):
            alive, tokens = alive[going], tokens[going]
            cache.keep(going)
        last = _step(vlm, cache, tokens)
    return out


def _step(vlm: VisionLanguageModel, cache: KVCache, tokens: Tensor) -> Tensor:
    """One token a row through the decoder: tokens int64[R] -> hidden float[R, D]."""
    assert cache.lengths is not None
    positions = cache.lengths[:, None]
    places = torch.arange(cache.keys[0].shape[2], device=tokens.device)
    mask = (places[None] <= positions)[:, None, None]
    hidden = vlm.decoder(vlm.decoder.embed(tokens[:, None]), positions, cache=cache, mask=mask)
    cache.lengths = cache.lengths + 1
    return hidden[:, 0]


def _choose(logits: Tensor, forbidden: Tensor, temperature: float, sampler: torch.Generator) -> Tensor:
    logits = logits.float().masked_fill(forbidden, float("-inf"))
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=sampler)[:, 0]


def _forbidden(vlm: VisionLanguageModel, tokenizer: Any, device: torch.device) -> Tensor:
    """bool[V]: turn markers, image tokens and padding rows of the vocabulary are never sampled."""
    allowed = {chat.THINK, chat.END_THINK, chat.END}
    ids = [tokenizer.convert_tokens_to_ids(token) for token in chat.SPECIAL_TOKENS if token not in allowed]
    mask = torch.zeros(vlm.vocab_size, dtype=torch.bool, device=device)
    mask[len(tokenizer) :] = True
    mask[ids] = True
    return mask


def _result(ids: list[int], tokenizer: Any) -> Generation:
    finished = bool(ids) and ids[-1] == tokenizer.eos_token_id
    kept = ids[:-1] if finished else ids
    text = tokenizer.decode(kept, skip_special_tokens=False)
    thinking, answer = chat.parse_generation(text)
    return Generation(kept, text, thinking, answer if finished else None, len(kept), finished)
