"""DASH against a computation by numpy, without a trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.errors import SettingError
from ht_ray.methods import DASH, HareTortoise, Phase

X = torch.randn(3, 6, 2, 5, 5, generator=torch.Generator().manual_seed(1))
Y = torch.randint(0, 4, (3, 6), generator=torch.Generator().manual_seed(2))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))


def losses(net):
    for inputs, labels in zip(X, Y, strict=True):
        yield functional.cross_entropy(net(inputs.to(net[4].weight)), labels)


def shrunk(weight: np.ndarray, gradients: list[np.ndarray], alpha: float, floor: float) -> np.ndarray:
    """By the authors' algorithm, vector by vector."""
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = (1 - alpha) * average - alpha * gradient
    out = weight.copy()
    places = np.ndindex(*weight.shape[: 2 if weight.ndim == 4 else weight.ndim - 1])
    for place in places:
        w, a = weight[place].ravel(), average[place].ravel()
        cosine = w @ a / max(np.linalg.norm(w) * np.linalg.norm(a), 1e-300)
        out[place] *= np.clip(cosine, floor, 1)
    return out


def test_weights_after_it_to_1e_6() -> None:
    net = network().double()
    before = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in before}
    apart = network().double().train()
    for loss in losses(apart):
        apart.zero_grad()
        loss.backward()
        for name, p in apart.named_parameters():
            gradients[name].append(p.grad.numpy().copy())
    DASH(net, alpha=0.3, floor=0.05).before_phase(Phase(1, losses=losses))
    kinds = set()
    for name, p in net.named_parameters():
        value = p.detach().numpy()
        if name.startswith("1."):
            np.testing.assert_array_equal(value, before[name])
        elif name != "0.bias":  # before BatchNorm: its gradient is rounding
            np.testing.assert_allclose(value, shrunk(before[name], gradients[name], 0.3, 0.05), atol=1e-6, err_msg=name)
            ratio = np.abs(value / before[name]).ravel()
            kinds |= {"floor"} if np.isclose(ratio, 0.05).any() else set()
            kinds |= {"between"} if ((ratio > 0.06) & (ratio < 1)).any() else set()
    assert kinds == {"floor", "between"}


def test_it_leaves_no_trace_but_the_weights() -> None:
    net = network().eval()
    net[0].requires_grad_(False)
    frozen = net[0].weight.clone()
    buffers = [b.clone() for b in net.buffers()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    before = net[4].weight.detach().clone()

    def drawing(copied):
        assert copied.training and copied is not net
        torch.rand(1)  # as a loader does that draws from the global generator
        return losses(copied)

    DASH(net).before_phase(Phase(1, losses=drawing))
    assert torch.equal(state, torch.get_rng_state())
    assert not net.training and all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(net[0].weight, frozen) and not torch.equal(net[4].weight, before)


def test_it_is_off_in_the_first_phase_and_with_a_floor_of_1() -> None:
    net = network()
    before = [p.detach().clone() for p in net.parameters()]
    DASH(net).before_phase(Phase(0, losses=losses))
    DASH(net).before_phase(Phase(1, begins=False, losses=losses))
    DASH(net, floor=1.0).before_phase(Phase(1))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_tortoise_shrinks_by_the_same_factors_and_the_optimiser_forgets() -> None:
    net = network()
    both = DASH(net, floor=0.2) + HareTortoise(net, momentum=0.5)
    optimizer = torch.optim.AdamW(net.parameters())
    sum(losses(net)).backward()
    optimizer.step()
    fast, slow = net[4].weight.detach().clone(), both.tortoise.weights["4.weight"].clone()
    assert not torch.equal(fast, slow)
    both.before_phase(Phase(1, losses=losses), optimizer)
    factors = (net[4].weight / fast).mean(1, keepdim=True)
    torch.testing.assert_close(both.tortoise.weights["4.weight"], factors.detach() * slow)
    assert set(optimizer.state) == {net[1].weight, net[1].bias}


def test_a_loop_without_losses_is_told() -> None:
    with pytest.raises(SettingError, match="DASH: it needs gradients of the coming phase"):
        DASH(network()).before_phase(Phase(1))


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"floor": 1.5}, {"optimizer_state": "new"}])
def test_bad_settings_are_refused(bad) -> None:
    with pytest.raises(SettingError, match=f"DASH: {next(iter(bad))}"):
        DASH(nn.Linear(1, 1), **bad)
