"""Tokenizers: any fast Hugging Face tokenizer with the template's special tokens, or a small BPE trained offline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bluelm_lightning.data.chat import END, PAD, SPECIAL_TOKENS
from bluelm_lightning.errors import ConfigError


def load_tokenizer(path: str | Path) -> Any:
    """A fast tokenizer from a local folder or a Hugging Face id, with every special token of the template as one token.

    Raises:
        ConfigError: the folder is missing or holds no fast tokenizer.
    """
    from transformers import AutoTokenizer

    local = Path(path).is_absolute() or str(path).startswith((".", "runs/"))
    if local and not Path(path).is_dir():
        raise ConfigError(f"folder {path} does not exist; give a folder or a Hugging Face id", "data.tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), use_fast=True)
    except Exception as error:  # a damaged file ends in anything, down to a bare Exception from Rust
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(f"no tokenizer at {path}: {reason}", "data.tokenizer") from error
    if not tokenizer.is_fast:
        raise ConfigError(f"{path} has no fast tokenizer; convert it to tokenizer.json first", "data.tokenizer")
    return add_special_tokens(tokenizer)


def add_special_tokens(tokenizer: Any) -> Any:
    """Add the template's special tokens that are not there yet; the decoder's ``vocab_size`` must cover them."""
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[2:], "eos_token": END, "pad_token": PAD})
    return tokenizer


def vocabulary_hash(tokenizer: Any) -> str:
    """Changes with any token or its number: batches of another vocabulary are other batches."""
    return hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()[:16]


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path, words: Sequence[str] = ()) -> Any:
    """Train a byte-level BPE in which every digit is a token of its own, and save it to ``folder``.

    Args:
        texts: training text.
        vocab_size: at most this many tokens, special tokens included; at least 256 + the special tokens.
        folder: where ``tokenizer.json`` goes.
        words: each with the space before it is one token more, wherever it stands.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ConfigError(f"{vocab_size} is below {smallest} (bytes and special tokens); raise it", "vocab_size")
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(texts, trainer)
    tokenizer = add_special_tokens(PreTrainedTokenizerFast(tokenizer_object=model))
    tokenizer.add_tokens([AddedToken(f" {word}", normalized=False) for word in words])
    tokenizer.save_pretrained(str(folder))
    return tokenizer
