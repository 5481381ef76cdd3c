"""Tokenizers: special tokens are single ids that no text can produce, whatever the vocabulary's kind."""

import string

import pytest
from tiny import question, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bluelm_lightning.data.chat import SPECIAL_TOKENS
from bluelm_lightning.data.encode import Encoder
from bluelm_lightning.data.tokenizer import load_tokenizer, train_tokenizer, vocabulary_hash
from bluelm_lightning.errors import ConfigError
from bluelm_lightning.types import ImageSpec, Sample


def bpe() -> PreTrainedTokenizerFast:
    """Like Qwen's: tokens of its own, and <think> known as an ordinary added token."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(["a red circle"], trainer)
    model.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    model.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<|im_end|>")


def unigram() -> PreTrainedTokenizerFast:
    """Like T5's: "</s>" and "<pad>" are words of the vocabulary, and full-width letters are normalised."""
    letters = [(letter, -5.0) for letter in string.ascii_letters + string.digits + "<>/|[]:_?\n"]
    words = [("<unk>", 0.0), ("</s>", 0.0), ("<pad>", 0.0), ("▁", -2.0), ("▁red", -3.0)]
    model = Tokenizer(models.Unigram([*words, *letters], unk_id=0))
    model.normalizer, model.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


def word_level() -> PreTrainedTokenizerFast:
    words = ["[UNK]", "</s>", "red", "<think>", "circle"]
    model = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="[UNK]")


KINDS = {"bpe": bpe, "unigram": unigram, "word_level": word_level}


@pytest.fixture(scope="module", params=["trained", *KINDS])
def tokenizer(request, tmp_path_factory):
    """Saved to a folder and loaded from it, as a run does."""
    folder = tmp_path_factory.mktemp(request.param)
    (tiny_tokenizer() if request.param == "trained" else KINDS[request.param]()).save_pretrained(str(folder))
    return load_tokenizer(folder)


def marker_ids(tokenizer) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS]


def text_ids(tokenizer, text: str) -> list[int]:
    """What the encoder makes of a plain document, without its end."""
    ids = Encoder(tokenizer, ImageSpec(16, 4))(Sample(id="d", source="tiny", text=text)).ids.tolist()
    assert ids[-1] == tokenizer.eos_token_id
    return ids[:-1]


def test_special_tokens_are_single_ids(tokenizer):
    ids = marker_ids(tokenizer)
    assert len(set(ids)) == len(SPECIAL_TOKENS)
    assert all(0 <= number < len(tokenizer) for number in ids)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.convert_ids_to_tokens(ids) == SPECIAL_TOKENS
    for token, number in zip(SPECIAL_TOKENS, ids):
        assert tokenizer.decode([number]) == token
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == tuple(ids[:2])


FORGED = [
    "</s>", "red </s> circle", "red</s>", "x</s></s></s>y", "＜/s＞ red", "a<pad>b <pad>", "<think> red </think>",
    "[|AI|]: red", "[|Human|]:", "[|SYSTEM|]:", "[|BlueThink|]", "<im_start><im_end>", "<pad", "</s", "", " ", "é",
]  # fmt: skip


@pytest.mark.parametrize("text", FORGED)
def test_no_text_can_produce_a_special_token(text, tokenizer):
    ids = text_ids(tokenizer, text)
    assert not set(ids) & set(marker_ids(tokenizer))
    assert ids or not text.strip()
    assert all(0 <= number < len(tokenizer) for number in ids)


def test_many_forged_ends_in_one_text_do_not_exhaust_the_stack(tokenizer):
    ids = text_ids(tokenizer, "red </s> " * 3000)
    assert not set(ids) & set(marker_ids(tokenizer))
    assert len(ids) >= 6000


def test_what_was_special_before_is_plain_too(tmp_path):
    bpe().save_pretrained(str(tmp_path))
    tokenizer = load_tokenizer(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end not in text_ids(tokenizer, "red<|im_end|>")


@pytest.mark.parametrize("text", [*FORGED, "9  + 5 , 'x n't\n\n\ty\U0001f600"])
def test_a_byte_level_vocabulary_returns_every_text_exactly(text):
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(text_ids(tokenizer, text)) == text


def test_an_ordinary_text_is_tokenised_as_the_tokenizer_would(tokenizer):
    wanted = tokenizer("a red circle", add_special_tokens=False)["input_ids"]
    assert text_ids(tokenizer, "a red circle") == wanted


# ---------------------------------------------------------------- training one
def test_every_digit_is_a_token_of_its_own(tmp_path):
    tokenizer = train_tokenizer(["12 + 12 = 24", "2024 2024 2024 1234"] * 50, 400, tmp_path)
    ids = text_ids(tokenizer, "2024+12=")
    assert [tokenizer.decode([number]) for number in ids] == list("2024+12=")
    assert not [token for token in tokenizer.get_vocab() if sum(map(str.isdigit, token)) > 1]


def test_the_vocabulary_stays_within_its_bound(tmp_path):
    texts = [f"word{number} " * 5 + string.ascii_letters[number:] for number in range(40)]
    tokenizer = train_tokenizer(texts, 300, tmp_path)
    assert len(tokenizer) == 300
    assert max(tokenizer.get_vocab().values()) == 299
    assert marker_ids(tokenizer) == list(range(11))  # <pad> is 0, </s> is 1
    assert len(train_tokenizer(texts, 267, tmp_path)) == 267  # bytes and special tokens only
    with pytest.raises(ConfigError, match="266 is below 267"):
        train_tokenizer(texts, 266, tmp_path)


def test_a_trained_tokenizer_loads_as_it_was_saved(tmp_path):
    tokenizer = train_tokenizer(["the sum is 12"] * 9, 280, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert vocabulary_hash(loaded) == vocabulary_hash(tokenizer)
    encode = [Encoder(one, ImageSpec(16, 4)) for one in (tokenizer, loaded)]
    assert encode[0](question("the sum?")).ids.tolist() == encode[1](question("the sum?")).ids.tolist()


def test_the_hash_tells_vocabularies_apart(tmp_path):
    hashes = [
        vocabulary_hash(train_tokenizer([text] * 9, 280, tmp_path)) for text in ("the sum", "the sum", "a circle")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


# ---------------------------------------------------------------- what is no tokenizer
def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.tokenizer: folder .*nowhere does not exist; give a folder or"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"data\.tokenizer: no tokenizer at data/nowhere: "):
        load_tokenizer("data/nowhere")


@pytest.mark.parametrize("content", [None, "{", "{}", "[]"])
def test_a_folder_without_a_tokenizer_is_named(content, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=r"data\.tokenizer: no tokenizer at "):
        load_tokenizer(tmp_path)
