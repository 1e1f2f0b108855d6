"""Shared RMSProp, by hand."""

from __future__ import annotations

import torch
from torch import nn

from networks.optimizer import SharedRMSProp


def test_two_steps_of_shared_rmsprop_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    optimizer = SharedRMSProp(net, decay=0.75, epsilon=0.5)
    optimizer.step([torch.tensor([[2.0]])], learning_rate=0.3)
    # g = 0.25 * 4 = 1; weight = 1 - 0.3 * 2 / (1 + 0.5)
    torch.testing.assert_close(net.weight.detach(), torch.tensor([[0.6]]))
    optimizer.step([torch.tensor([[-4.0]])], learning_rate=0.1)
    # g = 0.75 * 1 + 0.25 * 16 = 4.75; weight = 0.6 + 0.1 * 4 / (2.17945 + 0.5)
    torch.testing.assert_close(net.weight.detach(), torch.tensor([[0.749284]]))
    torch.testing.assert_close(optimizer.state_dict()["0"], torch.tensor([[4.75]]))


def test_weights_and_statistics_lie_in_shared_memory_and_are_restored() -> None:
    net, other = nn.Linear(2, 3), nn.Linear(2, 3)
    optimizer, copy = SharedRMSProp(net, 0.9, 1e-5), SharedRMSProp(other, 0.9, 1e-5)
    assert all(parameter.is_shared() for parameter in net.parameters())
    optimizer.step([torch.ones(3, 2), torch.ones(3)], 0.1)
    saved = optimizer.state_dict()
    optimizer.step([torch.ones(3, 2), torch.ones(3)], 0.1)
    assert not torch.equal(saved["0"], optimizer.state_dict()["0"])
    copy.load_state_dict(saved)
    assert all(torch.equal(saved[name], square_avg) for name, square_avg in copy.state_dict().items())
