"""The same tiny model, rollouts and advantages: our losses are TRL's."""

import pytest
import torch
from tiny import tiny_decoder, tiny_tokenizer

from bluelm_lightning.rl.policy_loss import DAPO, GRPO, DrGRPO

LIMIT = 7
LENGTHS = [7, 4, 6, 2]


@pytest.fixture(scope="module")
def trainer_of(tmp_path_factory):
    from datasets import Dataset
    from transformers import LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    def build(loss_type: str, high: float):
        config = tiny_decoder().model.config
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        arguments = GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            loss_type=loss_type,
            epsilon_high=high,
            max_completion_length=LIMIT,
            num_generations=2,
            per_device_train_batch_size=4,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            beta=0.0,
        )
        data = Dataset.from_list([{"prompt": "a"}] * 4)
        return GRPOTrainer(
            LlamaForCausalLM(config),
            reward_funcs=lambda completions, **kwargs: [0.0] * len(completions),
            args=arguments,
            train_dataset=data,
            processing_class=tiny_tokenizer(),
        )

    return build


CASES = {"grpo": (GRPO(), 0.2), "dr_grpo": (DrGRPO(LIMIT), 0.2), "dapo": (DAPO(), 0.28)}


@pytest.mark.parametrize("loss_type", CASES)
def test_loss_and_gradient_equal_trl(trainer_of, loss_type):
    ours, high = CASES[loss_type]
    trainer = trainer_of(loss_type, high)
    model = trainer.model.train()
    rng = torch.Generator().manual_seed(1)
    prompt, completion = (torch.randint(11, 300, (4, n), generator=rng) for n in (5, LIMIT))
    mask = (torch.arange(LIMIT)[None] < torch.tensor(LENGTHS)[:, None]).long()
    advantages = torch.tensor([1.0, -0.5, 0.3, -1.2])
    logits = model(torch.cat([prompt, completion], 1)).logits[:, 4:-1]
    logprobs = logits.log_softmax(-1).gather(2, completion[..., None])[..., 0]
    old = logprobs.detach() + 0.4 * torch.randn(4, LIMIT, generator=rng)  # far enough for clipping on both sides
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": advantages,
        "old_per_token_logps": old,
        "num_items_in_batch": mask.sum(),
    }
    trainer.current_gradient_accumulation_steps = 1
    trainer.args.steps_per_generation = 1
    wanted = trainer._compute_loss(model, inputs)
    keep = mask.bool()
    index = torch.arange(4)[:, None].expand(4, LIMIT)[keep]
    everything = torch.ones(int(keep.sum()), dtype=torch.bool)
    loss, stats = ours(logprobs[keep], old[keep], advantages[index], index, everything, 4, int(keep.sum()))
    assert float(stats["clipped_low"]) > 0
    assert float(stats["clipped_high"]) > 0
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)  # worst seen 2e-7
    weight = model.lm_head.weight
    mine, theirs = (torch.autograd.grad(value, weight, retain_graph=True)[0] for value in (loss, wanted))
    assert (mine - theirs).abs().max() < 1e-6 * theirs.abs().max() + 1e-8  # the same graph but for the order of sums
