"""Tiny builders shared by the tests: a model, a tokenizer, pictures and encoded samples, all seeded."""

import io
from functools import lru_cache
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from bluelm_lightning.components import CausalDecoder, MLPProjector, VisionLanguageModel, ViTEncoder
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.tokenizer import train_tokenizer
from bluelm_lightning.types import IGNORE, Encoded, ImageSpec, Sample

VOCAB = 320  # of the model; the tokenizer below has fewer, the rest is padding of the vocabulary
TILE = 16  # pixels
PER_TILE = 4  # visual tokens: 4 x 4 patches, 2 x 2 concatenated
TINY_LM = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


def tiny_vit(seed: int = 0, depth: int = 2, model_name: str = "vit_base_patch16_siglip_224", **options) -> ViTEncoder:
    """4 x 4 patches of a 16-pixel tile, 24 wide."""
    torch.manual_seed(seed)
    shape = {"embed_dim": 24, "depth": depth, "num_heads": 2, "patch_size": 4, **options.pop("shape", {})}
    return ViTEncoder(model_name, options.pop("image_size", TILE), shape=shape, **options)


def tiny_decoder(architecture: str = "llama", seed: int = 0, config: dict | None = None, **options) -> CausalDecoder:
    """Two layers, 32 wide, 4 query heads on 2 key-value heads."""
    torch.manual_seed(seed)
    options = {"vocab_size": VOCAB, **options}
    return CausalDecoder(architecture, {**TINY_LM, **(config or {})}, **options)


def tiny_vlm(architecture: str = "llama", seed: int = 0, config: dict | None = None, **options) -> VisionLanguageModel:
    """About 50 thousand parameters; one tile is 4 tokens."""
    decoder = tiny_decoder(architecture, seed, config, **options)
    return VisionLanguageModel(tiny_vit(seed), MLPProjector(24, 32), decoder)


@lru_cache(maxsize=1)
def tiny_tokenizer():
    """Bytes, digits and the special tokens of the template; one for the session."""
    texts = ["the sum is 12", "a red circle", "how many digits are there?", "yes", "no"]
    with TemporaryDirectory() as folder:
        return train_tokenizer(texts, vocab_size=300, folder=folder)


def png(height: int = TILE, width: int = TILE, seed: int = 0) -> bytes:
    """A picture of noise as PNG bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def question(text: str = "what is it?", answer: str = "a red circle", images: int = 0, **fields) -> Sample:
    """A raw sample: one question with ``images`` pictures before it, and its answer."""
    messages = [{"role": "user", "content": "<image>" * images + text}, {"role": "assistant", "content": answer}]
    pictures = [png(seed=n) for n in range(images)]
    return Sample(**{"id": "s0", "source": "tiny", "messages": messages, "images": pictures, **fields})


def tiny_encoder(**options) -> Encoder:
    return Encoder(tiny_tokenizer(), ImageSpec(TILE, PER_TILE), **options)


def prompt(text: str = "what is it?", images: int = 0, thinking: bool = False) -> Encoded:
    return tiny_encoder().prompt(question(text, images=images), thinking)


def random_doc(length: int, tiles: int = 0, seed: int = 0, labelled: float = 1.0, source: str = "tiny") -> Encoded:
    """Random ids with ``tiles`` tiles at the front; a share of the later positions carries a label."""
    rng = torch.Generator().manual_seed(seed)
    visual = tiles * PER_TILE
    assert length > visual, f"{length} tokens cannot hold {visual} visual tokens and a text"
    ids = torch.randint(11, VOCAB, (length,), generator=rng)
    labels = torch.full_like(ids, IGNORE)
    chosen = torch.rand(length - 1, generator=rng) < labelled
    labels[:-1] = torch.where(chosen, ids[1:], IGNORE)
    labels[:visual] = IGNORE
    pixels = torch.randint(0, 256, (tiles, 3, TILE, TILE), generator=rng, dtype=torch.uint8)
    return Encoded(f"doc{seed}", source, ids, labels, pixels, torch.arange(visual))


def worst(mine: torch.Tensor, wanted: torch.Tensor, floor: float = 0.0) -> float:
    """Largest difference over the largest wanted value (at least ``floor``): what tolerances in the tests bound."""
    return float((mine - wanted).detach().abs().max() / max(float(wanted.detach().abs().max()), floor))


def gradients_of_squares(part: torch.nn.Module, *inputs) -> dict[str, torch.Tensor]:
    """Gradients of the sum of squares of what ``part`` gives."""
    part.zero_grad()
    part(*inputs).square().sum().backward()
    return {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}
