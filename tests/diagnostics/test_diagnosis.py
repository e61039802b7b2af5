"""The signs of lost plasticity that a diagnosis finds: networks that were made to show one, and one that shows none."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ht_ray.diagnostics import INDICATORS, SIGNS, Diagnosis, diagnose
from ht_ray.errors import SettingError
from ht_ray.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(0)
    return torch.randn(128, 16, generator=draws), torch.randint(5, (128,), generator=draws)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return make()


def found(network: nn.Module, batch: tuple[Tensor, Tensor], **more: object) -> Diagnosis:
    options = {"fresh": make, "fresh_networks": 3, "probe_steps": 60, "backbone": "3", **more}
    return diagnose(network, *batch, **options)  # type: ignore[arg-type]


def strengths(diagnosis: Diagnosis) -> dict[str, str]:
    return {finding.sign.name: finding.strength for finding in diagnosis.findings}


def test_a_fresh_network_shows_no_sign(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    diagnosis = found(network, batch)
    assert set(strengths(diagnosis).values()) == {"none"}
    assert diagnosis.signs == () and diagnosis.strength == "none"
    assert diagnosis.loss == pytest.approx(nn.functional.cross_entropy(network(batch[0]), batch[1]).item(), rel=1e-5)
    assert "No sign of lost plasticity" in str(diagnosis)
    # Without a factory the layers initialise themselves again.
    assert set(strengths(found(network, batch, fresh=None)).values()) == {"none"}


@torch.no_grad()
def _silence(network: nn.Module) -> None:
    network[2].bias[:48] = -100.0  # type: ignore[index, union-attr]


@torch.no_grad()
def _enlarge(network: nn.Module) -> None:
    for weight in network.parameters():
        weight *= 5


@torch.no_grad()
def _flatten(network: nn.Module) -> None:
    network[2].weight[:] = network[2].weight[:1]  # type: ignore[index, union-attr]


@torch.no_grad()
def _shrink(network: nn.Module) -> None:
    for weight in network.parameters():
        weight *= 0.02


@pytest.mark.parametrize(
    ("change", "sign", "least"),
    [
        (_silence, "dormant units", "clear"),  # 48 of 128 units
        (_enlarge, "weight magnitude", "strong"),  # 25 times
        (_flatten, "rank of the features", "strong"),
        (_shrink, "gradients", "slight"),  # that of the last biases stays
    ],
)
def test_what_was_done_to_a_network_is_found(
    network: nn.Module, batch: tuple[Tensor, Tensor], change: Callable[[nn.Module], None], sign: str, least: str
) -> None:
    change(network)
    diagnosis = found(network, batch)
    order = ["none", "slight", "clear", "strong"]
    assert order.index(strengths(diagnosis)[sign]) >= order.index(least)
    text = str(diagnosis)
    (one,) = [finding for finding in diagnosis.signs if finding.sign.name == sign]
    assert f"methods that act on it: {', '.join(one.sign.methods)}" in text and one.sign.evidence in text


def test_lost_trainability_is_the_share_of_what_a_fresh_network_learns(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    with torch.no_grad():
        network[2].bias.fill_(-100.0)  # type: ignore[union-attr]
    diagnosis = found(network, batch)
    finding = diagnosis.findings[0]
    assert (finding.sign.name, diagnosis.strength) == ("trainability", "strong")
    chance = math.log(5)
    assert finding.share == pytest.approx((chance - finding.value) / (chance - finding.fresh_mean))
    assert "Trainability, strong: on random labels it gets" in str(diagnosis)


def test_too_few_steps_say_nothing(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    diagnosis = found(network, batch, probe_steps=1)
    assert diagnosis.strength == "unknown"
    assert "The probe says nothing: fresh networks learn next to nothing in 1 steps" in str(diagnosis)


def test_nothing_is_left_in_the_network_and_the_same_is_found_again(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    network.train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    first = found(network, batch, samples=64)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    torch.manual_seed(5)
    assert found(network, batch, samples=64) == first
    assert first.samples == 64


def test_regression_and_one_given_fresh_network(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    net, fresh = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)), None
    fresh = copy.deepcopy(net)
    with torch.no_grad():
        net[0].bias.fill_(-100.0)
    targets = batch[0][:, :1] * 2
    diagnosis = diagnose(
        net, batch[0], targets, fresh=fresh, loss=nn.functional.mse_loss, backbone="1", probe_steps=200
    )
    assert len(diagnosis.findings[0].fresh) == 1
    assert {finding.sign.name for finding in diagnosis.signs} >= {"trainability", "dormant units"}


class _Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_refusals(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(SettingError, match="128 inputs"):
        diagnose(network, batch[0], batch[1][:5])
    with pytest.raises(SettingError, match="labels go from 1 to 5, and the network has 5 outputs"):
        diagnose(network, batch[0], batch[1] + 1)
    with pytest.raises(SettingError, match=r"outputs are \(128, 5\) and targets \(128,\)"):
        diagnose(network, batch[0], batch[1].float())
    with pytest.raises(SettingError, match="diagnose: fresh: the factory makes a network that differs in"):
        diagnose(network, *batch, backbone="3", fresh=lambda: nn.Linear(16, 5))
    with pytest.raises(SettingError, match="diagnose: fresh: no reset_parameters"):
        diagnose(_Bare(), *batch, backbone="")
    for name in ("samples", "fresh_networks"):
        with pytest.raises(SettingError, match=name):
            diagnose(network, *batch, **{name: 0})  # type: ignore[arg-type]


def test_signs_name_indicators_methods_and_pages_that_there_are() -> None:
    for sign in SIGNS:
        assert sign.indicator in INDICATORS
        assert set(sign.methods) <= METHODS.keys()
        page, _, anchor = sign.evidence.removeprefix("docs/").partition("#")
        headings = re.findall(r"^#+ (.+)$", (DOCS / page).read_text(), re.MULTILINE)
        assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
