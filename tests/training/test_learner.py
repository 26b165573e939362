"""A learner lowers a loss as PyTorch's own Adam does, and skips steps that are not finite."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mirrorgan_fast.training.computation import FP32
from mirrorgan_fast.training.learner import Learner, LossScale


def losses(network: nn.Module, steps: int) -> Any:
    torch.manual_seed(3)
    for _ in range(steps):
        x = torch.randn(8, 5, dtype=torch.float64)
        yield (network(x) ** 2).mean() * 30


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_step_is_adams(clip: float | None, weight_decay: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    network[0].bias.requires_grad_(False)
    expected = copy.deepcopy(network)
    learner = Learner(network, 0.01, (0.5, 0.9), clip=clip, weight_decay=weight_decay)
    for step, loss in enumerate(losses(network, 6)):
        learner.lower(loss, pace=1 - step / 6)
    moments = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in expected.parameters()}
    learned = [p for p in expected.parameters() if p.requires_grad]
    for step, loss in enumerate(losses(expected, 6)):
        gradients = torch.autograd.grad(loss, learned)
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        scale = 1.0 if clip is None else min(1.0, clip / float(norm))
        rate = 0.01 * (1 - step / 6)
        with torch.no_grad():
            for p, gradient in zip(learned, gradients, strict=True):
                first, second = moments[p]
                first.lerp_(scale * gradient, 1 - 0.5)
                second.lerp_((scale * gradient) ** 2, 1 - 0.9)
                p *= 1 - rate * weight_decay
                mean = first / (1 - 0.5 ** (step + 1))
                p -= rate * mean / ((second / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8)
    for ours, theirs in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert torch.equal(network[0].bias, expected[0].bias)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("factor", [torch.nan, torch.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
    clip: float | None, factor: float, assert_same: Callable[[Any, Any], None]
) -> None:
    torch.manual_seed(0)
    network = nn.Linear(5, 2).double()
    learner = Learner(network, 0.01, clip=clip)
    for loss in losses(network, 2):
        learner.lower(loss)
    before = copy.deepcopy((network.state_dict(), learner.adam.state_dict()))
    (loss,) = losses(network, 1)
    learner.lower(loss * factor)
    assert_same((network.state_dict(), learner.adam.state_dict()), before)
    assert learner.failure() == "were not finite in 1 steps"
    (loss,) = losses(network, 1)
    learner.lower(loss)
    assert not torch.equal(network.weight, before[0]["weight"])
    assert learner.failure() == "were not finite in 1 steps"


def test_frozen_networks_pass_gradients_on_and_have_none() -> None:
    network, other = nn.Linear(5, 2), nn.Linear(3, 5)
    learner = Learner(network, 0.01)
    with learner.frozen():
        network(other(torch.randn(4, 3))).sum().backward()
    assert other.weight.grad is not None
    assert network.weight.grad is None
    assert all(p.requires_grad for p in network.parameters())


# --- accumulation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.5])
def test_parts_of_a_batch_are_lowered_as_the_whole(clip: float | None) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    whole = copy.deepcopy(network)
    computation = dataclasses.replace(FP32, accumulate=4)
    in_parts = Learner(network, 0.01, clip=clip, computation=computation)
    at_once = Learner(whole, 0.01, clip=clip)
    for step in range(3):
        x = torch.randn(8, 5, dtype=torch.float64)
        before = copy.deepcopy(network.state_dict())
        for number, part in enumerate(x.chunk(4)):
            torch.testing.assert_close(network.state_dict(), before)
            lowered = in_parts.lower((network(part) ** 2).mean(), pace=1 / (step + 1))
            assert lowered == (number == 3)
        assert at_once.lower((whole(x) ** 2).mean(), pace=1 / (step + 1))
        torch.testing.assert_close(in_parts.norm, at_once.norm)
        torch.testing.assert_close(network.state_dict(), whole.state_dict(), rtol=1e-10, atol=1e-12)


# --- fp16 -----------------------------------------------------------------------------------------

FP16 = dataclasses.replace(FP32, precision="fp16")


class Half(torch.autograd.Function):
    """Rounds numbers and their gradients to float16, as autocast does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.half().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.half().to(grad.dtype)


def test_a_scaled_loss_is_lowered_as_another_is(
    assert_same: Callable[[Any, Any], None],
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2)).double()
    expected = copy.deepcopy(network)
    scaled = Learner(network, 0.01, clip=0.5, computation=FP16)
    plain = Learner(expected, 0.01, clip=0.5)
    for loss in losses(network, 5):
        scaled.lower(loss)
    for loss in losses(expected, 5):
        plain.lower(loss)
    assert_same(dict(network.state_dict()), dict(expected.state_dict()))  # a power of two is exact


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_a_scaled_loss_keeps_small_gradients(precision: str) -> None:
    weight = nn.Linear(1, 1, bias=False)
    nn.init.ones_(weight.weight)
    computation = dataclasses.replace(FP32, precision=precision)
    learner = Learner(weight, 0.01, computation=computation)
    for _ in range(20):
        learner.lower(Half.apply(weight(torch.ones(1, 1))).sum() * 1e-9)
    moved = weight.weight.item() != 1
    assert moved == (precision == "fp16")
    assert learner.failure() is None


def test_an_overflow_lowers_the_scale_and_ten_in_a_row_fail(
    assert_same: Callable[[Any, Any], None],
) -> None:
    weight = nn.Linear(1, 1, bias=False)
    learner = Learner(weight, 0.01, computation=FP16)
    assert learner.loss_scale is not None

    def lower(factor: float) -> None:
        learner.lower(Half.apply(weight(torch.ones(1, 1))).sum() * factor)

    lower(1.0)  # 2**16 is more than float16 has: the first step is skipped
    assert (float(learner.loss_scale.scale), learner.failure()) == (2.0**15, None)
    lower(1.0)
    before = copy.deepcopy([dict(weight.state_dict()), learner.adam.state_dict()["state"]])
    for count in range(1, 10):
        lower(1e9)
        assert float(learner.loss_scale.scale) == 2.0 ** (15 - count)
        assert learner.failure() is None
    assert float(learner.norm) == 0
    assert_same([dict(weight.state_dict()), learner.adam.state_dict()["state"]], before)
    lower(1.0)  # one that is finite: the count starts again
    for _ in range(9):
        lower(1e9)
        assert learner.failure() is None or float(learner.loss_scale.scale) == 1
    lower(1e9)
    assert "at every scale" in str(learner.failure())


def test_an_overflow_at_the_lowest_scale_fails() -> None:
    weight = nn.Linear(1, 1, bias=False)
    learner = Learner(weight, 0.01, computation=FP16)
    assert learner.loss_scale is not None
    learner.loss_scale.scale.fill_(2.0)
    for failed in (False, True):
        learner.lower(weight(torch.ones(1, 1)).sum() * torch.inf)
        assert (learner.failure() is not None) == failed
    learner.lower(weight(torch.ones(1, 1)).sum())
    assert learner.failure() is not None  # also when it is looked at later


def test_statistics_that_are_not_finite_are_set_back() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    learner = Learner(network, 0.01, computation=FP16)
    norm = network[1]
    for _ in range(3):
        learner.lower(network(torch.randn(8, 3)).square().mean())
    before = norm.running_mean.clone(), norm.running_var.clone()
    norm.running_mean[1], norm.running_var[2] = torch.inf, torch.nan
    learner.lower(network(torch.randn(8, 3)).square().mean())
    statistics = (norm.running_mean, norm.running_var)
    for after, earlier, place in zip(statistics, before, (1, 2), strict=True):
        assert after.isfinite().all()
        assert after[place] == earlier[place]
        assert after[0] != earlier[0]  # the others move on
    norm.running_mean[3] = torch.inf  # by another forward pass
    learner.mend_statistics()
    assert norm.running_mean.isfinite().all()


def test_the_scale_doubles_after_many_good_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "_DOUBLED_AFTER", 3)
    weight = nn.Linear(1, 1, bias=False)
    learner = Learner(weight, 0.01, computation=FP16)
    assert learner.loss_scale is not None
    scales = []
    for step in range(8):
        learner.lower(weight(torch.ones(1, 1)).sum() * (torch.inf if step == 4 else 1.0))
        scales.append(float(learner.loss_scale.scale) / 2**16)
    assert scales == [1, 1, 2, 2, 1, 1, 1, 2]
