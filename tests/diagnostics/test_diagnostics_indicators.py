"""The indicators together: names, values, when they are due, and what is kept."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ht_ray.diagnostics import (
    INDICATOR_GROUPS,
    INDICATORS,
    Indicator,
    IndicatorConfig,
    Indicators,
    dormant_ratios,
    feature_matrix,
    gradient_covariance,
    grama_ratios,
    hessian_eigenvalues,
    local_redundancy,
    loss_gradients,
    plasticity_probe,
    ranks,
    register_indicator,
    weight_distance,
    weight_magnitude,
    zero_activation_ratio,
)
from ht_ray.errors import SettingError
from ht_ray.report.style.formats import DETAILS, INDICATOR_TITLES
from ht_ray.vision.models import ModelConfig, make_model

_SHAPE = (1, 8, 8)


def _network() -> nn.Module:
    return make_model(ModelConfig("mlp", hidden=(12, 8)), shape=_SHAPE, num_classes=4, seed=0)


def _batch(number: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(number, *_SHAPE, generator=draws), torch.randint(4, (number,), generator=draws)


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def _move(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.ones_like(parameter), alpha=0.01)


def test_groups_hold_every_record_once():
    assert [name for names in INDICATOR_GROUPS.values() for name in names] == list(INDICATORS)
    assert all(record.name == name and name in INDICATOR_GROUPS[record.group] for name, record in INDICATORS.items())


def test_reports_have_the_titles_of_the_records():
    """The report runs without torch: it has a table of its own, which is this one."""
    assert {name: record.title for name, record in INDICATORS.items()} == INDICATOR_TITLES
    assert {name for name, record in INDICATORS.items() if record.detail} == DETAILS


@patch.dict(INDICATORS)
@patch.dict(INDICATOR_GROUPS)
def test_an_indicator_is_added_by_one_record():
    record = Indicator(
        name="layers",
        title="layers",
        group="shape",
        definition="number of modules",
        plastic="unclear",
        source="a test",
        measure=lambda m: torch.tensor(float(len(list(m.module.modules())))),
    )
    with pytest.raises(SettingError, match=r"IndicatorConfig\.names = 'shape'"):
        IndicatorConfig(names=("shape",))
    assert register_indicator(record) is record
    net = _network()
    indicators = Indicators(IndicatorConfig(names=("weights", "shape")), net, *_batch(), num_classes=4, seed=0)
    values = indicators.measure()
    assert list(values) == ["weight_magnitude", "weight_distance", "layers"]
    assert values["layers"] == len(list(net.modules()))
    with pytest.raises(SettingError, match="'layers': accepted is a name that no other"):
        register_indicator(record)


def test_values_are_those_of_the_functions():
    net = _network()
    inputs, labels = _batch()
    config = IndicatorConfig(every=1, names=tuple(INDICATOR_GROUPS), eigenvalues=3, probe_steps=4, covariance_samples=8)
    indicators = Indicators(config, net, inputs, labels, make_optimizer=_sgd, num_classes=4, seed=5)
    initial = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    _move(net)
    values = indicators.measure()
    features = feature_matrix(net, inputs)
    dormant = dormant_ratios(net, inputs, (0.0, 0.025))
    gradients = loss_gradients(net, inputs, labels)
    curvature = hessian_eigenvalues(net, inputs, labels, k=3, seed=5)
    covariance = gradient_covariance(net, inputs, labels, samples=8)
    probe = plasticity_probe(net, _sgd, inputs, num_classes=4, steps=4, seed=5)
    expected = {
        "weight_magnitude": weight_magnitude(net)["all"],
        "weight_distance": weight_distance(net, initial)["all"],
        "zero_activation_ratio": zero_activation_ratio(features),
        **ranks(features)._asdict(),
        "dormant_ratio": dormant[0.025]["all"],
        "dead_unit_ratio": dormant[0.0]["all"],
        "zero_gradient_ratio": gradients.zero_ratio,
        "gradient_norm": gradients.norm,
        "grama_ratio": grama_ratios(net, inputs, labels)[0.01]["all"],
        "hessian_max": curvature.values[0],
        "hessian_2": curvature.values[1],
        "hessian_3": curvature.values[2],
        "hessian_min": curvature.smallest,
        "hessian_residual": curvature.residuals.max(),
        "gradient_cosine": covariance.cosine,
        "gradient_interference": covariance.interference,
        "local_redundancy": local_redundancy(net, inputs, num_classes=4, seed=5),
        "probe_loss": probe.loss,
        "probe_baseline": probe.baseline,
        "probe_gap": probe.gap,
    }
    assert list(values) == list(expected)
    assert set(values) < set(INDICATORS)
    for name, value in expected.items():
        assert type(values[name]) is float
        assert values[name] == pytest.approx(float(value), rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("group", INDICATOR_GROUPS)
def test_a_group_alone_has_the_values_it_has_among_all(group):
    net = _network()
    inputs, labels = _batch()
    both = []
    for names in ((group,), tuple(INDICATOR_GROUPS)):
        config = IndicatorConfig(names=names, probe_steps=2, hessian_iterations=6)
        both.append(Indicators(config, net, inputs, labels, make_optimizer=_sgd, num_classes=4, seed=0).measure())
    assert set(both[0]) <= set(INDICATOR_GROUPS[group])
    assert both[0] == {name: both[1][name] for name in both[0]}


def test_the_batch_is_drawn_by_the_seed():
    net = _network()
    inputs, labels = _batch(40)

    def drawn(seed: int) -> Indicators:
        return Indicators(IndicatorConfig(samples=10), net, inputs, labels, num_classes=4, seed=seed)

    assert len(drawn(0).labels) == 10
    assert torch.equal(drawn(0).inputs, drawn(0).inputs)
    assert not torch.equal(drawn(0).inputs, drawn(1).inputs)
    # Each sample keeps its label.
    for image, label in zip(drawn(0).inputs, drawn(0).labels, strict=True):
        row = (inputs == image).flatten(1).all(1).nonzero().item()
        assert labels[row] == label


def test_due():
    net = _network()
    inputs, labels = _batch()
    for every, expected in ((0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (9, [5])):
        indicators = Indicators(IndicatorConfig(every=every), net, inputs, labels, num_classes=4, seed=0)
        assert [epoch for epoch in range(1, 6) if indicators.due(epoch, last=epoch == 5)] == expected


def test_continued_from_a_saved_state():
    inputs, labels = _batch()
    config = IndicatorConfig(names=("weights", "probe"), probe_steps=2)

    def make(net: nn.Module) -> Indicators:
        return Indicators(config, net, inputs, labels, make_optimizer=_sgd, num_classes=4, seed=0)

    net = _network()
    first = make(net)
    _move(net)
    before = first.measure()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = make(net)
    assert second.measure()["weight_distance"] == 0.0
    second.load_state_dict(torch.load(file, weights_only=True))
    assert second.measure() == before
    _move(net)
    assert second.measure() == first.measure()


def test_several_inputs():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = nn.Linear(5, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 2))

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.head(self.backbone(torch.cat([a, b], dim=1)))

    inputs = (torch.randn(16, 3), torch.randn(16, 2))
    config = IndicatorConfig(samples=10, names=tuple(INDICATOR_GROUPS), probe_steps=2, chunk_size=4)
    indicators = Indicators(config, Pair(), inputs, torch.randint(2, (16,)), make_optimizer=_sgd, num_classes=2, seed=0)
    assert all(math.isfinite(value) for value in indicators.measure().values())


def test_regression():
    net = nn.Sequential()
    net.add_module("encoder", nn.Sequential(nn.Linear(3, 8), nn.Tanh()))
    net.add_module("head", nn.Linear(8, 1))
    inputs = torch.randn(16, 3)
    config = IndicatorConfig(names=("features", "gradients", "curvature", "covariance"))
    indicators = Indicators(config, net, inputs, inputs[:, :1], num_classes=1, seed=0, loss=nn.functional.mse_loss)
    assert all(math.isfinite(value) for value in indicators.measure().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    net = _network().to(dtype)
    inputs, labels = _batch()
    names = ("weights", "features", "units", "gradients", "covariance", "probe")
    config = IndicatorConfig(names=names, probe_steps=2)
    indicators = Indicators(config, net, inputs.to(dtype), labels, make_optimizer=_sgd, num_classes=4, seed=0)
    assert all(math.isfinite(value) for value in indicators.measure().values())


def test_a_network_that_diverged_has_no_values_and_raises_nothing():
    net = _network()
    inputs, labels = _batch()
    config = IndicatorConfig(names=tuple(INDICATOR_GROUPS), probe_steps=2)
    indicators = Indicators(config, net, inputs, labels, make_optimizer=_sgd, num_classes=4, seed=0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(float("nan"))
    values = indicators.measure()
    assert {name for name, value in values.items() if math.isfinite(value)} == {"probe_baseline"}


@pytest.mark.gpu
def test_on_a_gpu():
    net = _network()
    inputs, labels = _batch()
    config = IndicatorConfig(names=tuple(INDICATOR_GROUPS), probe_steps=2)
    indicators = Indicators(config, net, inputs, labels, make_optimizer=_sgd, num_classes=4, seed=0)
    on_cpu = indicators.measure()
    net.cuda()
    before = torch.cuda.get_rng_state()
    assert indicators.measure() == pytest.approx(on_cpu, rel=1e-3, abs=1e-4)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": -1}, "IndicatorConfig.every = -1"),
        ({"samples": 1}, "IndicatorConfig.samples = 1"),
        ({"names": ()}, "one or more"),
        ({"names": ("units", "units")}, "different"),
        ({"eigenvalues": 11}, "IndicatorConfig.eigenvalues = 11"),
        ({"eigenvalues": 5, "hessian_iterations": 4}, "IndicatorConfig.hessian_iterations = 4"),
        ({"srank_delta": 1.0}, "IndicatorConfig.srank_delta"),
        ({"dormant_threshold": -0.1}, "IndicatorConfig.dormant_threshold"),
        ({"probe_steps": 0}, "IndicatorConfig.probe_steps"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(SettingError, match=message):
        IndicatorConfig(**settings)


def test_what_is_missing_is_said_at_once():
    net = _network()
    inputs, labels = _batch()
    with pytest.raises(SettingError, match="needs make_optimizer"):
        Indicators(IndicatorConfig(names=("probe",)), net, inputs, labels, num_classes=4, seed=0)
    with pytest.raises(SettingError, match="19 labels for 20 inputs"):
        Indicators(IndicatorConfig(), net, inputs, labels[1:], num_classes=4, seed=0)
    with pytest.raises(SettingError, match="name the backbone"):
        Indicators(IndicatorConfig(), nn.Sequential(nn.Linear(64, 4)), inputs, labels, num_classes=4, seed=0)

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(64, 4))

    with pytest.raises(SettingError, match="needs fresh"):
        config = IndicatorConfig(names=("probe",))
        Indicators(config, Stubborn(), inputs, labels, make_optimizer=_sgd, num_classes=4, seed=0)


def test_importing_takes_torch_alone():
    heavy = ("torchvision", "ray", "avalanche", "sklearn", "matplotlib", "ht_ray.vision")
    code = f"import sys, ht_ray.diagnostics; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_saved_gradients_of_training_are_not_used():
    """A gradient left over from training does not reach the measurement."""
    net = _network()
    inputs, labels = _batch()
    indicators = Indicators(IndicatorConfig(), net, inputs, labels, num_classes=4, seed=0)
    before = indicators.measure()
    cross_entropy(net.eval()(inputs), labels).backward()
    assert indicators.measure() == before
