"""The same tiny policy, reference and pairs: our DPO loss, margins and gradient are TRL's."""

import copy

import pytest
import torch
from tiny import VOCAB, tiny_decoder, tiny_tokenizer, worst

from bluelm_lightning.components import LanguageModel
from bluelm_lightning.data.packing import pack
from bluelm_lightning.stages import DPOStage
from bluelm_lightning.types import IGNORE, Encoded

LENGTHS = [(5, 7), (5, 3), (4, 2), (4, 6), (6, 4), (6, 4)]  # prompt, answer; preferred and other by turns
CASES = {"sigmoid": (0.1, 0.0), "conservative": (0.7, 0.1)}  # beta, label smoothing


def decoders():
    """Policy and reference, with weights far enough apart for margins of some nats."""
    policy, reference = tiny_decoder(seed=1), tiny_decoder(seed=1)
    with torch.no_grad():
        torch.manual_seed(2)
        for parameter in policy.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy, reference


def plain(decoder):
    """The same weights in transformers' own class and attention."""
    from transformers import LlamaForCausalLM

    config = copy.deepcopy(decoder.model.config)
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config)
    model.load_state_dict(decoder.model.state_dict())
    return model


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    def build(policy, reference, beta: float):
        arguments = DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=beta,
            per_device_train_batch_size=3,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
        )
        data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3)
        tokenizer = tiny_tokenizer()
        return DPOTrainer(
            plain(policy), plain(reference), args=arguments, train_dataset=data, processing_class=tokenizer
        )

    return build


def documents() -> list[Encoded]:
    """Random ids; the two of a pair share their prompt."""
    rng, made = torch.Generator().manual_seed(3), []
    for number, (prompt, answer) in enumerate(LENGTHS):
        ids = torch.randint(11, VOCAB, (prompt + answer,), generator=rng)
        if number % 2:
            ids[:prompt] = made[-1].ids[:prompt]
        labels = torch.full_like(ids, IGNORE)
        labels[prompt - 1 : -1] = ids[prompt:]
        empty = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
        made.append(Encoded(f"p{number // 2}", "pairs", ids, labels, empty, torch.zeros(0, dtype=torch.long)))
    return made


def padded(made: list[Encoded], first: int = 0, last: int | None = None) -> dict[str, torch.Tensor]:
    """Documents from ``first`` to ``last`` as TRL lays them out: the preferred ones, then the others, right-padded."""
    numbers = range(len(made))[first:last]
    order, length = [*numbers[0::2], *numbers[1::2]], max(len(made[n]) for n in numbers)
    inputs = {
        key: torch.zeros(len(order), length, dtype=torch.long)
        for key in ("input_ids", "attention_mask", "completion_mask")
    }
    for row, number in enumerate(order):
        prompt, answer = LENGTHS[number]
        inputs["input_ids"][row, : prompt + answer] = made[number].ids
        inputs["attention_mask"][row, : prompt + answer] = 1
        inputs["completion_mask"][row, prompt : prompt + answer] = 1
    return inputs


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_equal_trl(trainer_of, case):
    (beta, smoothing), made = CASES[case], documents()
    policy, reference = decoders()
    stage = DPOStage(LanguageModel(policy), beta, smoothing)
    stage.reference.decoder.load_state_dict(reference.state_dict())
    batch = pack([made[:4], made[4:]], 60, 0)
    ahead = stage.ahead(batch)
    mine = stage.loss_of(ahead).mean()
    mine.backward()
    trainer = trainer_of(policy, reference, beta)
    if smoothing:  # "sigmoid" knows none in TRL 1.16, "robust" is another loss; "aot" of one pair, with nothing to sort
        trainer.loss_types, trainer.label_smoothing = ["aot"], smoothing
        parts = [padded(made, n, n + 2) for n in range(0, len(made), 2)]
    else:
        parts = [padded(made)]
    wanted = torch.stack([trainer._compute_loss(trainer.model.train(), part, False) for part in parts]).mean()
    wanted.backward()
    assert float(ahead.detach().abs().max()) > 0.1  # policy and reference differ
    assert float(mine.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)  # worst seen 2e-7
    theirs = dict(trainer.model.named_parameters())
    for name, parameter in policy.model.named_parameters():
        assert worst(parameter.grad, theirs[name].grad) < 1e-5  # worst seen 8e-7: packed against padded
