"""The moving average of a generator stays finite."""

import torch
from torch import nn

from mirrorgan_fast.training.average import MovingAverage


def test_statistics_that_are_not_finite_are_set_back() -> None:
    """A step that overflows in fp16 changes no weight, but it leaves them in the batch norms."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = MovingAverage(network, 0.9)
    for step in range(3):
        network(torch.randn(8, 3))
        average.update(network, step)
    before = average.network[1].running_mean.clone()
    network[1].running_mean[1] = torch.inf
    network[1].running_var[2] = torch.nan
    average.update(network, 3)
    for state in (network.state_dict(), average.network.state_dict()):
        for name, tensor in state.items():
            assert tensor.isfinite().all(), name
    assert average.network[1].running_mean[1] == before[1]
    assert network[1].running_mean[1] == before[1]
    assert average.network[1].running_mean[0] != before[0]  # the others move on
    assert int(average.network[1].num_batches_tracked) == 3
