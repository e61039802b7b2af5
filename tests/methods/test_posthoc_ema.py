"""Averages of any length, made afterwards, against numpy and against averages that were tracked."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray.errors import Interrupted, SettingError
from ht_ray.mechanisms import PowerAverages, named_tensors, posthoc_coefficients, power_exponent
from ht_ray.methods import HareTortoise, PosthocEMA
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    ModelConfig,
    Pack,
    TrainingConfig,
    TrainingRun,
    fit,
    load_data,
    make_model,
    make_stream,
)

DATA = load_data(DataConfig("digits", train_limit=256, test_limit=50))
STREAM = make_stream(DATA.train_labels, 10, ContinualConfig(phases=2, epochs=3), seed=0)
# Packs round otherwise, and Adam with its usual epsilon makes steps of that.
TRAINING = TrainingConfig(batch_size=32, eps=1e-6)


def made() -> nn.Module:
    return make_model(ModelConfig("mlp", hidden=(16, 12)), shape=DATA.shape, num_classes=10, seed=0)


def profile(sigma_rel: float, step: int, length: int) -> np.ndarray:
    """The share of each step's weights in an average, by running the recursion on unit vectors."""
    exponent = max(np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2]).real)
    held = np.zeros(length)
    for now in range(1, step + 1):
        momentum = (1 - 1 / now) ** (exponent + 1)
        held *= momentum
        held[now - 1] += 1 - momentum
    return held


def test_the_exponent_is_the_root_of_the_papers_cubic() -> None:
    for sigma_rel in (0.001, 0.05, 0.1, 0.25, 0.288):
        cubic = np.roots([1, 7, 16 - sigma_rel**-2, 12 - sigma_rel**-2])  # equation of appendix C
        assert power_exponent(sigma_rel) == pytest.approx(max(cubic.real), rel=1e-9)
    assert power_exponent(12**-0.5) == pytest.approx(0.0, abs=1e-6)
    for wrong in (0.0, 0.3, -0.1, float("nan")):
        with pytest.raises(SettingError, match=r"sigma_rel = .*: accepted is a number with"):
            power_exponent(wrong)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.15, 0.25])
def test_coefficients_are_those_of_least_squares_in_numpy(sigma_rel: float) -> None:
    length = 2000
    steps = [500, 500, 1000, 1000, 2000, 2000]
    tracked = [0.05, 0.1] * 3
    profiles = np.stack([profile(own, step, length) for own, step in zip(tracked, steps, strict=True)], 1)
    expected = np.linalg.lstsq(profiles, profile(sigma_rel, length, length), rcond=None)[0]
    found = posthoc_coefficients(steps, tracked, length, sigma_rel)
    assert sum(found) == pytest.approx(1.0)
    # The formula has integrals where the recursion has sums; the sum of the factors is made 1 after.
    assert found == pytest.approx(expected / expected.sum(), abs=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("sigma_rel", [0.03, 0.08, 0.15, 0.25])
def test_an_average_that_was_not_tracked_is_close_to_one_that_was(sigma_rel: float) -> None:
    net = made()
    method = PosthocEMA(net, interval=5, unit="steps")
    tracked = PowerAverages(net, (sigma_rel, 0.01))
    draw, at = torch.Generator().manual_seed(0), {}
    for step in range(1, 201):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=draw)
        method.after_step()
        tracked.update(net)
        if step in (100, 200):
            at[step] = {name: value.clone() for name, value in tracked.copies[0].tensors.items()}
    for step, expected in at.items():
        found = dict(named_tensors(method.network(sigma_rel, step)))
        apart = [
            sum((found[name] - other[name]).square().sum() for name in expected) for other in (expected, values(net))
        ]
        assert apart[0] < 1e-3 * apart[1], step
    for place, own in enumerate((0.05, 0.1)):  # those that are tracked, as they are
        for name, value in method.averages.synthesize(net, own).items():
            assert torch.allclose(value, method.averages.copies[place][name], atol=1e-4), name


def values(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(module)}


def test_what_is_not_averaged_is_the_networks() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net.register_buffer("mask", torch.tensor([1.0, 0.0]))
    method = PosthocEMA(net, interval=2, unit="steps")
    for _ in range(8):
        net(torch.randn(5, 3)).sum().backward()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        method.after_step()
    net.mask[0] = 0.3
    before = values(net)
    average = method.network(0.2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in named_tensors(net))
    assert not average.training and all(parameter.grad is None for parameter in average.parameters())
    assert torch.equal(average.mask, net.mask) and average[1].num_batches_tracked == 8
    assert not torch.equal(average[1].running_mean, net[1].running_mean)
    net[2] = nn.Linear(4, 3)
    with pytest.raises(ValueError, match=r"at step \d the network had another form: '2.weight'"):
        method.grown()
        method.network(0.2)


def test_what_is_refused() -> None:
    net = made()
    with pytest.raises(SettingError, match=r"sigma_rels = 0.5: accepted"):
        PosthocEMA(net, sigma_rels=(0.05, 0.5))
    with pytest.raises(SettingError, match="two or more different numbers"):
        PosthocEMA(net, sigma_rels=(0.05, 0.05))
    method = PosthocEMA(net)
    with pytest.raises(SettingError, match="step = 0: accepted is a step with a snapshot: there is none yet"):
        method.network(0.1)
    method.after_step()
    with pytest.raises(SettingError, match="step = 7: accepted is a step with a snapshot: 1"):
        method.network(0.1, 7)


def trained(path: Path | None = None, **chosen: Any) -> tuple[list[Any], PosthocEMA, nn.Module]:
    model = made()
    method = PosthocEMA(model)
    both = HareTortoise(model, momentum=0.9, reset_interval=2) + method
    return fit(model, DATA, STREAM, method=both, training=TRAINING, checkpoint=path, **chosen), method, model


def test_training_does_not_notice_it_and_goes_on_with_it(tmp_path: Path) -> None:
    rows, method, model = trained()
    alone = made()
    assert rows == fit(
        alone, DATA, STREAM, method=HareTortoise(alone, momentum=0.9, reset_interval=2), training=TRAINING
    )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), alone.parameters(), strict=True))
    steps = list(method.averages.snapshots)
    assert len(steps) == 6 and steps[-1] == method.averages.steps
    for _ in range(4):
        with pytest.raises(Interrupted):
            trained(tmp_path / "state.pt", stop=lambda: True)
    _, again, _ = trained(tmp_path / "state.pt")
    for step in steps:
        for name, value in method.averages.synthesize(model, 0.2, step).items():
            assert torch.equal(value, again.averages.synthesize(model, 0.2, step)[name])


def test_the_strategy_and_the_pack_keep_the_same_snapshots() -> None:
    from ht_ray.avalanche import MethodPlugin, make_strategy, stream_benchmark

    model = made()
    plugin = MethodPlugin(PosthocEMA)
    strategy = make_strategy(model, DATA, training=TRAINING, epochs=3, plugins=[plugin])
    for experience in stream_benchmark(DATA, STREAM).train_stream:
        strategy.train(experience, eval_streams=[])
    alone = made()
    method = PosthocEMA(alone)
    fit(alone, DATA, STREAM, method=method, training=TRAINING)
    packed = [PosthocEMA(made()) for _ in range(2)]
    pack = Pack([TrainingRun(one.module, DATA, STREAM, method=one, training=TRAINING) for one in packed])
    while pack.runs:
        pack.train_phase()
    expected = values(method.network(0.2))
    kept = plugin.method
    assert isinstance(kept, PosthocEMA)
    assert all(torch.equal(value, expected[name]) for name, value in values(kept.network(0.2)).items())
    for one in packed:
        assert list(one.averages.snapshots) == list(method.averages.snapshots)
        for name, value in values(one.network(0.2)).items():
            assert torch.allclose(value, expected[name], rtol=1e-2, atol=1e-3), name
    assert copy.deepcopy(method).averages.steps == method.averages.steps


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"interval": 2}, [2, 3, 5, 6]),  # of phases of three epochs, a step each
        ({"interval": 9}, [3, 6]),
        ({"interval": 4, "unit": "steps"}, [4]),
        ({"interval": None}, []),
    ],
)
def test_when_snapshots_are_kept(settings: dict[str, Any], kept: list[int]) -> None:
    method = PosthocEMA(nn.Linear(1, 1), **settings)
    for _ in range(2):
        method.before_phase()
        for epoch in range(1, 4):
            method.after_step()
            method.end_epoch(last=epoch == 3)
    assert list(method.averages.snapshots) == kept
