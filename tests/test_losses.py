"""The chunked loss equals full logits in value and gradients. Errors are relative to the largest value."""

import pytest
import torch
from tiny import worst

from bluelm_lightning.stages.distill_losses import DistillPlan, distillation_loss, teacher_distribution
from bluelm_lightning.stages.losses import linear_cross_entropy, reference_cross_entropy

ROWS, WIDTH, VOCAB = 50, 32, 199


def inputs(dtype=torch.float32, rows: int = ROWS):
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=rng).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=rng).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, VOCAB, (rows,), generator=rng)


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("chunk_rows", [1, 7, 25, 50, 1000, None])
def test_value_and_gradients_equal_full_logits(chunk_rows):
    hidden, weight, labels = inputs()
    loss, each = linear_cross_entropy(hidden, weight, labels, chunk_rows=chunk_rows)
    wanted = reference_cross_entropy(hidden, weight, labels)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)  # worst seen 1.2e-7
    assert each.mean().item() == pytest.approx(wanted.item(), rel=1e-6)
    assert not each.requires_grad
    pairs = zip(gradients(loss, hidden, weight), gradients(wanted, hidden, weight))
    assert max(worst(mine, full) for mine, full in pairs) < 3e-6  # worst seen 9.5e-7


def test_by_hand():
    """Logits (0, ln 3): the losses are -ln(1/4) and -ln(3/4), the gradients of the logits softmax minus one."""
    hidden = torch.ones(2, 1, requires_grad=True)
    weight = torch.tensor([[0.0], [1.0986123]], requires_grad=True)
    loss, each = linear_cross_entropy(hidden, weight, torch.tensor([0, 1]))
    assert each.tolist() == pytest.approx([1.3862944, 0.2876821])
    assert loss.item() == pytest.approx((1.3862944 + 0.2876821) / 2)
    _, of_weight = gradients(loss, hidden, weight)
    assert of_weight.flatten().tolist() == pytest.approx([(-0.75 + 0.25) / 2, (0.75 - 0.25) / 2])


def test_weights_of_the_sum_and_the_gradient_from_above():
    hidden, weight, labels = inputs()
    scale = torch.rand(ROWS)
    loss, each = linear_cross_entropy(hidden, weight, labels, scale, chunk_rows=7)
    full = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="none")
    assert loss.item() == pytest.approx((full * scale).sum().item(), rel=1e-6)
    assert worst(each, full) < 2e-6  # worst seen 6.8e-7
    pairs = zip(gradients(3 * loss, hidden, weight), gradients(3 * (full * scale).sum(), hidden, weight))
    assert max(worst(mine, wanted) for mine, wanted in pairs) < 2e-6  # worst seen 6.8e-7


def test_large_logits_do_not_overflow():
    hidden, weight, labels = inputs()
    loss, _ = linear_cross_entropy(1000 * hidden, weight, labels)
    assert loss.item() == pytest.approx(reference_cross_entropy(1000 * hidden, weight, labels).item(), rel=1e-6)
    assert all(g.isfinite().all() for g in gradients(loss, hidden, weight))


@pytest.mark.parametrize("mode", ["autocast", "bf16"])
def test_half_precision_is_near_float32(mode):
    dtype = torch.bfloat16 if mode == "bf16" else torch.float32
    hidden, weight, labels = inputs(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        loss, each = linear_cross_entropy(hidden, weight, labels, chunk_rows=7)
    assert each.dtype == loss.dtype == torch.float32
    mine = gradients(loss, hidden, weight)
    assert [g.dtype for g in mine] == [dtype, dtype]
    exact = [t.detach().float().requires_grad_() for t in (hidden, weight)]
    wanted = reference_cross_entropy(*exact, labels)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-3)  # worst seen 1.4e-4
    pairs = zip(mine, gradients(wanted, *exact))
    # bf16 keeps 8 bits: logits of up to 20 are off by up to 0.06, and so are the probabilities
    assert max(worst(a.float(), b) for a, b in pairs) < 2.5e-2  # worst seen 1.3e-2


@pytest.mark.parametrize("distilled", [False, True])
def test_float16_gradients_are_not_rounded_to_nothing_before_the_scaler_meets_them(distilled):
    """A student near its teacher, a large vocabulary, many positions: differences far below the range of float16."""
    rng = torch.Generator().manual_seed(0)
    states, head = torch.randn(1024, 16, generator=rng), torch.randn(8192, 16, generator=rng) * 0.02
    teacher, labels = head + 1e-3 * torch.randn(head.shape, generator=rng), torch.randint(8192, (1024,), generator=rng)

    def found(half):
        hidden, weight = states.clone().requires_grad_(), head.clone().requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=half):
            if distilled:
                said = lambda part: teacher_distribution((states[part] @ teacher.T).float(), DistillPlan())  # noqa: E731
                loss, *_ = distillation_loss(hidden, weight, labels, said, DistillPlan(), 1 / 1024)
            else:
                loss, _ = linear_cross_entropy(hidden, weight, labels)
        above = 2.0**16 if half else 1.0
        return [g / above for g in gradients(loss * above, hidden, weight)]

    for mine, exact in zip(found(True), found(False)):
        assert (mine - exact).norm() / exact.norm() < (0.05 if distilled else 2e-3)  # worst seen 9e-3 and 3e-4
        assert mine.abs().sum(1).all(), "rows of zeros"


def test_sums_over_many_chunks_are_not_rounded_at_each():
    rng = torch.Generator().manual_seed(0)
    hidden = (torch.randn(4096, 8, generator=rng) + 1).bfloat16().requires_grad_()
    weight, labels = torch.randn(40, 8, generator=rng).bfloat16().requires_grad_(), torch.arange(4096) % 40
    (mine,) = gradients(linear_cross_entropy(hidden, weight, labels, chunk_rows=8)[0], weight)
    (exact,) = gradients(
        reference_cross_entropy(hidden.detach().float(), wide := weight.detach().float().requires_grad_(), labels), wide
    )
    assert (mine.float() - exact).norm() / exact.norm() < 1e-2  # 1.6e-3; 7e-2 with bfloat16 sums
    assert mine.dtype == torch.bfloat16


def test_no_labels_give_a_loss_of_zero_and_zero_gradients():
    hidden, weight, labels = inputs(rows=0)
    loss, each = linear_cross_entropy(hidden, weight, labels)
    assert (loss.item(), len(each)) == (0.0, 0)
    of_hidden, of_weight = gradients(loss, hidden, weight)
    assert of_hidden.shape == (0, WIDTH)
    assert of_weight.shape == weight.shape
    assert not of_weight.any()


def count_products(run) -> int:
    """Matrix products, as the autograd profiler counts them."""
    with torch.profiler.profile() as profile:
        run()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::mm")


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_side_gets_no_gradient_and_costs_none(frozen):
    hidden, weight, labels = inputs()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    assert count_products(lambda: linear_cross_entropy(hidden, weight, labels)[0].backward()) == 2
    assert (hidden.grad is None) == (frozen == "hidden")
    assert (weight.grad is None) == (frozen == "weight")


def test_validation_computes_no_gradients():
    hidden, weight, labels = inputs()
    said = lambda part: teacher_distribution(torch.zeros(part.stop, VOCAB), DistillPlan())  # noqa: E731
    with torch.no_grad():
        assert count_products(lambda: linear_cross_entropy(hidden, weight, labels)) == 1
        distilled = lambda: distillation_loss(hidden, weight, labels, said, DistillPlan(), 1.0, ROWS)  # noqa: E731
        assert count_products(distilled) == 1
    assert count_products(lambda: linear_cross_entropy(hidden, weight, labels)) == 3
