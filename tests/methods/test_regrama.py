"""ReGraMa: scores against gradients written out in numpy, what is reset, off, state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.errors import SettingError
from ht_ray.methods import MethodConfig
from ht_ray.methods.regrama import ReGraMa


def watched(method: ReGraMa, net: nn.Module, inputs: torch.Tensor) -> None:
    with method.watch():
        loss = functional.mse_loss(net(inputs), torch.ones(len(inputs), 2, dtype=inputs.dtype))
    loss.backward()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


@pytest.mark.parametrize("inplace", [False, True])
def test_scores_are_gradients_before_the_activation(inplace: bool) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(inplace=inplace), nn.Linear(9, 2)).double()
    inputs = torch.randn(16, 4).double()
    w0, b0, w1, b1 = (parameter.detach().numpy() for parameter in net.parameters())
    pre = inputs.numpy() @ w0.T + b0
    out = np.maximum(pre, 0) @ w1.T + b1
    gradient = np.abs(((2 * (out - 1) / out.size) @ w1) * (pre > 0)).mean(0)
    score = gradient / gradient.mean()
    threshold = float(np.sort(score)[3] + 1e-9)
    method = ReGraMa(net, threshold=threshold)
    watched(method, net, inputs)
    np.testing.assert_allclose(method._gradients["1"].numpy() / len(inputs), gradient, rtol=1e-12)
    assert method.dormant()["1"].tolist() == (score <= threshold).tolist()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert method.apply() == {"1": 4}
    reset = torch.from_numpy(score <= threshold)
    assert (net[2].weight[:, reset] == 0).all() and torch.equal(net[2].weight[:, ~reset], before["2.weight"][:, ~reset])
    assert torch.equal(net[0].weight[~reset], before["0.weight"][~reset])
    assert not (net[0].weight[reset] == before["0.weight"][reset]).any()


class Functions(nn.Module):
    """Convolutions whose activations are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 5, 3), nn.Linear(5 * 16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def test_maps_behind_functions() -> None:
    torch.manual_seed(0)
    net, inputs = Functions(), torch.randn(7, 1, 6, 6)
    method = ReGraMa(net)
    watched(method, net, inputs)
    pre = net.conv(inputs).detach().requires_grad_()
    functional.mse_loss(net.head(torch.tanh(pre).flatten(1)), torch.ones(7, 2)).backward()
    (seen,) = method._gradients.values()
    torch.testing.assert_close(seen, pre.grad.abs().sum((0, 2, 3)))


def test_it_acts_when_due_and_off_is_nothing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 2))
    method, off = ReGraMa(net, interval=3, unit="steps"), ReGraMa(net, interval=None)
    for _ in range(7):
        watched(method, net, torch.randn(8, 4))
        method.after_step()
        off.after_step()
    assert (method.applications, off.applications, off.dormant()) == (2, 0, {})
    again = ReGraMa(net, interval=3, unit="steps")
    again.load_state_dict(method.state_dict())
    assert again.state_dict() == method.state_dict()
    with pytest.raises(RuntimeError, match="no gradient of 1 was seen"):
        again.apply()
    with pytest.raises(SettingError, match="ReGraMa: threshold = -1"):
        ReGraMa(net, threshold=-1)
    assert MethodConfig("regrama", regrama_threshold=0.5).regrama_threshold == 0.5
