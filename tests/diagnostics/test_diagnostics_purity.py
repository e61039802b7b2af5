"""Measuring leaves no trace: in training, after an error, under no_grad and in inference mode."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ht_ray.diagnostics import (
    INDICATOR_GROUPS,
    IndicatorConfig,
    Indicators,
    dormant_ratios,
    feature_matrix,
    gradient_covariance,
    gradient_norm,
    grama_ratios,
    hessian_eigenvalues,
    local_redundancy,
    plasticity_probe,
    zero_gradient_ratio,
)
from ht_ray.vision.models import ModelConfig, make_model

_SHAPE = (1, 8, 8)
_ALL = IndicatorConfig(
    every=1, samples=12, names=tuple(INDICATOR_GROUPS), hessian_iterations=6, covariance_samples=6, probe_steps=2
)


def _mlp() -> nn.Module:
    return make_model(ModelConfig("mlp", hidden=(12, 8), dropout=0.3), shape=_SHAPE, num_classes=4, seed=0)


def _conv() -> nn.Module:
    backbone = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.MaxPool2d(2), nn.Flatten()
    )
    return nn.Sequential(OrderedDict(encoder=backbone, fc=nn.Linear(36, 4)))


def _vit() -> nn.Module:
    return make_model(ModelConfig("vit_tiny", width=0.1), shape=_SHAPE, num_classes=4, seed=0)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(24, *_SHAPE, generator=draws), torch.randint(4, (24,), generator=draws)


def _indicators(net: nn.Module, make_optimizer: object, **options: object) -> Indicators:
    inputs, labels = _batch()
    return Indicators(_ALL, net, inputs, labels, make_optimizer=make_optimizer, num_classes=4, seed=0, **options)


def _state(net: nn.Module) -> list[object]:
    """Everything that a measurement could leave behind, with values."""
    state: list[object] = [torch.get_rng_state()]
    for name, part in net.named_modules():
        state += [name, part.training, len(part._forward_hooks), len(part._forward_pre_hooks), list(part._buffers)]
    for tensor in (*net.parameters(), *net.buffers()):
        state += [id(tensor), tensor.detach().clone(), tensor.requires_grad]
        state.append(None if tensor.grad is None else (id(tensor.grad), tensor.grad.clone()))
    return state


def _same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("make", [_mlp, _conv, _vit])
def test_training_is_the_same_bit_by_bit_with_all_indicators(make: Callable[[], nn.Module]):
    inputs, labels = _batch()
    torch.manual_seed(0)
    start = make()
    ends = []
    for measured in (True, False):
        net = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        indicators = _indicators(net, optimizer)
        torch.manual_seed(1)
        for _ in range(2):
            net.train()
            for rows in torch.randperm(24).split(8):
                optimizer.zero_grad()
                cross_entropy(net(inputs[rows]), labels[rows]).backward()
                optimizer.step()
            if measured:
                values = indicators.measure()
                assert all(value == value for value in values.values()), values
        moments = [value for state in optimizer.state.values() for value in state.values()]
        tensors = [*net.parameters(), *net.buffers()]
        ends.append([tensors, [p.grad for p in net.parameters()], moments, torch.get_rng_state()])
    assert _same(*ends)


@pytest.mark.parametrize("make", [_mlp, _conv, _vit])
def test_modes_gradients_and_hooks_stay(make: Callable[[], nn.Module]):
    net = make()
    inputs, labels = _batch()
    cross_entropy(net(inputs), labels).backward()
    net.train()
    next(iter(net.children())).eval()  # a part that is kept in evaluation mode
    next(net.parameters()).requires_grad_(False)
    net.register_forward_hook(lambda *_: None)
    indicators = _indicators(net, torch.optim.SGD)
    before = _state(net)
    first = indicators.measure()
    assert _same(before, _state(net))
    with torch.inference_mode():
        assert indicators.measure() == first
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert indicators.measure() == first
    net.eval()
    assert indicators.measure() == first


class _Failing(nn.Module):
    """Passes its input on a number of times, and draws, and counts in a buffer; then it fails."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.times = times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.rand(1)
        self.calls += 1
        self.extra = None
        if self.calls > self.times:
            raise KeyError("on purpose")
        return x


_MEASURES: dict[str, Callable[[nn.Module, torch.Tensor, torch.Tensor], object]] = {
    "features": lambda net, x, y: feature_matrix(net, x, chunk_size=3),
    "units": lambda net, x, y: dormant_ratios(net, x, chunk_size=3),
    "zero gradients": lambda net, x, y: zero_gradient_ratio(net, x, y, chunk_size=3),
    "norm": lambda net, x, y: gradient_norm(net, x, y, chunk_size=3),
    "covariance": lambda net, x, y: gradient_covariance(net, x, y, samples=6, chunk_size=2),
    "curvature": lambda net, x, y: hessian_eigenvalues(net, x, y, chunk_size=3),
    "unit gradients": lambda net, x, y: grama_ratios(net, x, y, chunk_size=3),
    "redundancy": lambda net, x, y: local_redundancy(net, x, num_classes=4, chunk_size=3),
    "probe": lambda net, x, y: plasticity_probe(net, torch.optim.SGD, x, num_classes=4),
}


@pytest.mark.parametrize("times", [0, 2])
@pytest.mark.parametrize("name", _MEASURES)
def test_an_error_leaves_no_trace(name: str, times: int):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
    net = nn.Sequential(OrderedDict(backbone=backbone, failing=_Failing(times), head=nn.Linear(6, 4)))
    inputs, labels = _batch()
    net.head(backbone(inputs)).sum().backward()
    before = _state(net)
    with pytest.raises(KeyError, match="on purpose"):
        _MEASURES[name](net, inputs, labels)
    assert _same(before, _state(net))


def test_buffers_that_change_in_evaluation_mode_are_put_back():
    net = nn.Sequential(OrderedDict(backbone=_Failing(10**6), head=nn.Linear(2, 2)))
    before = _state(net)
    gradient_norm(net, torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
    assert _same(before, _state(net))
    assert net.backbone.calls.item() == 0
