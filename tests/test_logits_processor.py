"""The budget inside transformers' own ``generate`` writes what our engine writes."""

import pytest
import torch
from test_budget import LIMIT, RESERVE, TOKENS, talkative
from tiny import prompt, tiny_tokenizer

from bluelm_lightning.generation import BudgetLogitsProcessor, ThinkingBudget, generate
from bluelm_lightning.generation.budget import count_thinking


class Only:
    """Leaves the tokens that our engine would choose from."""

    def __init__(self, mask):
        self.mask = mask

    def __call__(self, input_ids, scores):
        return scores.masked_fill(self.mask, float("-inf"))


@pytest.mark.parametrize("closing", ["", "so"])
def test_it_writes_what_our_engine_writes(monkeypatch, closing):
    from transformers import LogitsProcessorList

    vlm, mask = talkative(monkeypatch)
    with torch.no_grad():
        vlm.decoder.output_weight[TOKENS.think] *= 30  # so that some rows think early when greedy
    budgets = [ThinkingBudget(n, RESERVE, closing) for n in (0, 3, 8)] + [None]
    first = prompt("a" * 9)
    ours = generate(vlm, [first] * 4, tiny_tokenizer(), LIMIT, budget=budgets)
    rule = BudgetLogitsProcessor(budgets, LIMIT, tiny_tokenizer())
    model = vlm.decoder.model.eval()
    model.set_attn_implementation("eager")
    theirs = model.generate(
        first.ids.repeat(4, 1),
        attention_mask=torch.ones(4, len(first), dtype=torch.long),
        max_new_tokens=LIMIT,
        do_sample=False,
        logits_processor=LogitsProcessorList([Only(mask), rule]),
        eos_token_id=TOKENS.end,
        pad_token_id=0,
    )[:, len(first) :]
    for mine, row in zip(ours, theirs):
        ended = (row == TOKENS.end).nonzero().flatten()
        assert mine.ids == row[: int(ended[0]) if len(ended) else LIMIT].tolist()
    spent = [count_thinking(row, TOKENS) for row in theirs]
    assert spent[0] == 0
    assert spent[1] == 3
    assert spent[2] == 8


def test_another_number_of_rows_is_an_error():
    rule = BudgetLogitsProcessor([ThinkingBudget(3)], 32, tiny_tokenizer())
    with pytest.raises(ValueError, match="1 budgets for 2 rows"):
        rule(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 300))
