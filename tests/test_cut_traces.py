"""A trace that is cut teaches the answer, and not to stop early; which ones are cut depends on the reference alone."""

import pytest
from tiny import question, tiny_encoder, tiny_tokenizer
from tiny_data import Talks, flat, loader_of

from bluelm_lightning.data.fetch import SampleFetcher
from bluelm_lightning.data.loader import PackedLoader, PackingPlan
from bluelm_lightning.data.mixture import Mixture
from bluelm_lightning.types import IGNORE, Ref


def thought(trace: str = "1234567890", answer: str = "8"):
    sample = question(answer=answer)
    sample.messages[-1]["thinking"] = trace
    return sample


def learnt(encoded) -> str:
    """What carries loss, as text."""
    return tiny_tokenizer().decode(encoded.labels[encoded.labels != IGNORE])


@pytest.mark.parametrize(
    ("cut", "wanted"),
    [
        (None, "<think>1234567890</think>8</s>"),
        (0.5, "<think>123458</s>"),
        (0.0, "<think>8</s>"),
        (0.25, "<think>128</s>"),
        (0.99, "<think>12345678908</s>"),
    ],
)
def test_the_answer_is_learnt_and_the_early_end_is_not(cut, wanted):
    encoded = tiny_encoder()(thought(), cut)
    assert learnt(encoded) == wanted
    text = tiny_tokenizer().decode(encoded.ids)
    assert text.count("</think>") == 1  # it stands there all the same
    assert text.endswith("</think>8</s>")


def test_without_a_trace_there_is_nothing_to_cut():
    plain = question(answer="8")
    assert flat(tiny_encoder()(plain, 0.3)) == flat(tiny_encoder()(plain))


def test_every_turn_of_a_conversation_is_cut():
    sample = thought()
    sample.messages += [dict(turn) for turn in sample.messages]
    assert learnt(tiny_encoder()(sample, 0.5)) == "<think>123458</s>" * 2


class Traces:
    name = "traces"

    def __len__(self):
        return 400

    def __getitem__(self, index):
        return thought()


def test_the_share_of_cut_traces_and_their_places():
    fetcher = SampleFetcher([Traces()], tiny_encoder(), 0, cut_shares=[0.4])
    written = [learnt(fetcher.fetch(Ref(0, 0, n))) for n in range(400)]
    cut = [text for text in written if "</think>" not in text]
    assert 0.33 < len(cut) / 400 < 0.47  # 0.4 with a standard error of 0.025
    assert len(set(cut)) == 11  # of ten tokens none to all are kept
    assert written == [learnt(fetcher.fetch(Ref(0, 0, n))) for n in range(400)]
    assert written != [learnt(fetcher.fetch(Ref(0, 1, n))) for n in range(400)]  # other places in another pass


def test_workers_cut_and_state_the_same():
    def batches(workers: int):
        fetcher = SampleFetcher([Talks(20)], tiny_encoder(), 0, cut_shares=[0.5], stated_shares=[0.5])
        return [flat(b) for b in PackedLoader(fetcher, Mixture([20], epochs=[1]), PackingPlan(96), 0, workers)]

    whole = [flat(batch) for batch in loader_of([Talks(20)], rows=1)]
    assert batches(0) == batches(2)
    assert batches(0) != whole
