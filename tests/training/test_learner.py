"""A learner lowers a loss as PyTorch's own Adam does, and skips steps that are not finite."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mirrorgan_fast.training.learner import Learner


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
    assert learner.skipped == 1
    (loss,) = losses(network, 1)
    learner.lower(loss)
    assert not torch.equal(network.weight, before[0]["weight"])
    assert learner.skipped == 1


def test_frozen_networks_pass_gradients_on_and_have_none() -> None:
    network, other = nn.Linear(5, 2), nn.Linear(3, 5)
    learner = Learner(network, 0.01)
    with learner.frozen():
        network(other(torch.randn(4, 3))).sum().backward()
    assert other.weight.grad is not None
    assert network.weight.grad is None
    assert all(p.requires_grad for p in network.parameters())
