"""What all loss terms and step-wise mechanisms share: off is off, resuming, frozen parameters, growth, copies."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.methods import (
    L2,
    NormalizeAndProject,
    Parseval,
    Regenerative,
    SpectralDecoupling,
    SpectralRegularization,
    Wasserstein,
)
from ht_ray.methods.optimizer_reset import OptimizerReset
from ht_ray.methods.self_distillation import SelfDistillation
from ht_ray.methods.tortoise import Tortoise
from ht_ray.methods.upgd import UPGD
from ht_ray.methods.weight_clipping import WeightClipping

OFF = {
    "l2": lambda net: L2(net, strength=0.0),
    "l2 loss": lambda net: L2(net, strength=0.0, coupling="loss"),
    "spectral": lambda net: SpectralDecoupling(net, strength=0.0),
    "regenerative": lambda net: Regenerative(net, strength=0.0),
    "regenerative decoupled": lambda net: Regenerative(net, strength=0.0, coupling="decoupled"),
    "regenerative fresh": lambda net: Regenerative(net, strength=0.0, toward="fresh"),
    "distillation": lambda net: SelfDistillation(net, strength=0.0),
    "clipping none": lambda net: WeightClipping(net, factor=None),
    "clipping inf": lambda net: WeightClipping(net, factor=math.inf),
    "optimiser reset": lambda net: OptimizerReset(net, interval=None),
    "parseval": lambda net: Parseval(net, strength=0.0),
    "spectral regularization": lambda net: SpectralRegularization(net, strength=0.0),
    "wasserstein": lambda net: Wasserstein(net, strength=0.0),
    "projection": lambda net: NormalizeAndProject(net, strength=0.0),
}
ON = {
    "l2": lambda net: L2(net, strength=0.3),
    "l2 loss": lambda net: L2(net, strength=0.1, coupling="loss"),
    "spectral": lambda net: SpectralDecoupling(net, strength=0.5),
    "regenerative": lambda net: Regenerative(net, strength=0.3),
    "regenerative l1": lambda net: Regenerative(net, strength=0.01, norm="l1"),
    "regenerative decoupled": lambda net: Regenerative(net, strength=0.9, coupling="decoupled"),
    "regenerative fresh": lambda net: Regenerative(net, strength=0.2, toward="fresh", seed=4),
    "regenerative fresh decoupled": lambda net: Regenerative(net, strength=0.9, toward="fresh", coupling="decoupled"),
    "distillation": lambda net: SelfDistillation(net, strength=2.0, temperature=3.0),
    "clipping": lambda net: WeightClipping(net, factor=0.9),
    "upgd": lambda net: UPGD(net, utility_decay=0.9, noise=0.1, seed=3),
    "optimiser reset": lambda net: OptimizerReset(net, interval=2, unit="steps"),
    "parseval": lambda net: Parseval(net, strength=0.1),
    "spectral regularization": lambda net: SpectralRegularization(net, strength=0.1, seed=2),
    "wasserstein": lambda net: Wasserstein(net, strength=0.3),
    "projection": lambda net: NormalizeAndProject(net),
}


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.Dropout(0.2)
        )
        self.head = nn.Linear(6, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))


class Trial:
    """A network in training with its mechanism, by the protocol's loop."""

    def __init__(self, make, seed: int = 0, dtype: torch.dtype = torch.float32, freeze: bool = False) -> None:
        torch.manual_seed(seed)
        self.net = Net().to(dtype)
        if freeze:
            self.net.backbone[0].requires_grad_(False)
            self.net.backbone[1].bias.requires_grad_(False)
        self.mechanism = make(self.net) if make else None
        self.tortoise = Tortoise(self.net, momentum=0.8)
        self.step = 0
        self.make_optimizer()
        self.begin()

    def make_optimizer(self) -> None:
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.net.backbone.parameters() if p.requires_grad]},
                {"params": self.net.head.parameters(), "lr": 0.003},
            ],
            lr=0.03,
        )

    def begin(self) -> None:
        self.tortoise.before_phase()
        self.tortoise.grown()
        if self.mechanism is not None:
            self.mechanism.before_phase()
            self.mechanism.grown()

    def run(self, steps: int) -> Trial:
        dtype = self.net.head.weight.dtype
        for _ in range(steps):
            self.step += 1
            torch.manual_seed(1000 + self.step)
            images, labels = torch.randn(8, 1, 4, 4).to(dtype), torch.randint(0, 3, (8,))
            self.optimizer.zero_grad()
            if self.mechanism is not None:
                self.mechanism.before_forward(images, self.tortoise)
            logits = self.net(images)
            loss = functional.cross_entropy(logits, labels)
            extra = self.mechanism.loss(logits) if self.mechanism is not None else None
            if extra is not None:
                assert extra.shape == () and extra.dtype == dtype
                loss = loss + extra
            loss.backward()
            if self.mechanism is not None:
                self.mechanism.before_step(self.optimizer)
            self.optimizer.step()
            if self.mechanism is not None:
                self.mechanism.after_step(self.optimizer, self.tortoise)
            self.tortoise.step(self.optimizer)
        if self.mechanism is not None:
            self.mechanism.end_epoch(self.optimizer, self.tortoise)
        return self

    def state(self) -> dict:
        return {
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "tortoise": self.tortoise.state_dict(),
            "mechanism": self.mechanism.state_dict(),
            "step": self.step,
        }

    def load(self, state: dict) -> Trial:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.tortoise.load_state_dict(state["tortoise"])
        self.mechanism.load_state_dict(state["mechanism"])
        self.step = state["step"]
        return self


def assert_same(left: Trial, right: Trial) -> None:
    for (name, a), b in zip(left.net.state_dict().items(), right.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for name, a in left.tortoise.weights.tensors.items():
        assert torch.equal(a, right.tortoise.weights[name]), name


@pytest.mark.parametrize("make", OFF.values(), ids=OFF)
def test_off_is_training_without_it_bit_for_bit(make) -> None:
    with_it = Trial(make).run(3)
    assert_same(with_it, Trial(None).run(3))
    assert getattr(with_it.mechanism, "draws", 0) == 0


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_on_it_changes_training(make) -> None:
    changed, plain = Trial(make).run(3), Trial(None).run(3)
    assert not torch.equal(changed.net.head.weight, plain.net.head.weight)


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_random_state_of_the_loop_is_left_alone(make) -> None:
    states = []
    for maker in (make, None):
        Trial(maker).run(3)
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_a_resumed_run_is_the_uninterrupted_one(make) -> None:
    whole = Trial(make).run(3).run(3)
    file = io.BytesIO()
    torch.save(Trial(make).run(3).state(), file)
    file.seek(0)
    resumed = Trial(make, seed=9).load(torch.load(file, weights_only=True)).run(3)
    assert_same(whole, resumed)


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_frozen_parameters_stay(make) -> None:
    trial = Trial(make, freeze=True)
    frozen = {name: p.clone() for name, p in trial.net.named_parameters() if not p.requires_grad}
    assert len(frozen) == 3
    trial.run(4)
    for name, before in frozen.items():
        assert torch.equal(trial.net.get_parameter(name), before), name


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_float64_networks_compute_in_float64(make) -> None:
    trials = [Trial(make, dtype=dtype) for dtype in (torch.float32, torch.float64)]
    for trial in trials:
        trial.net.backbone[5].p = 0.0  # masks depend on the type
        trial.run(1)
    for (name, a), b in zip(trials[0].net.named_parameters(), trials[1].net.parameters(), strict=True):
        assert b.dtype == torch.float64
        # Fresh draws depend on the type too. A bias before BatchNorm has rounding error for a gradient.
        if getattr(trials[0].mechanism, "toward", "") != "fresh" and name != "backbone.0.bias":
            torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_it_follows_a_head_that_has_grown(make) -> None:
    trial = Trial(make).run(2)
    old = trial.net.head
    trial.net.head = nn.Linear(6, 5)
    with torch.no_grad():
        trial.net.head.weight[:3] = old.weight
    trial.make_optimizer()
    trial.begin()
    before = trial.net.head.weight.detach().clone()
    trial.run(2)
    assert trial.net.head.weight.isfinite().all()
    assert not torch.equal(trial.net.head.weight, before)
    grown = copy.deepcopy(trial.state())
    again = Trial(make, seed=5)
    again.net.head = nn.Linear(6, 5)
    again.make_optimizer()
    again.begin()
    again.load(grown)
    assert_same(trial.run(1), again.run(1))


@pytest.mark.parametrize("make", ON.values(), ids=ON)
def test_a_deep_copy_acts_on_the_copied_network(make) -> None:
    trial = Trial(make).run(2)
    twin = copy.deepcopy(trial)
    assert_same(trial.run(2), twin.run(2))
    assert twin.mechanism.module is twin.net is not trial.net


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(maker, id=name)
        for name, maker in ON.items()
        if name in ("regenerative", "upgd", "wasserstein", "projection")
    ],
)
def test_the_state_of_another_network_is_refused_and_nothing_changed(make) -> None:
    state = make(nn.Linear(6, 2)).state_dict()
    mechanism = make(nn.Linear(6, 3))
    before = copy.deepcopy(mechanism.state_dict())
    with pytest.raises(ValueError, match="another"):
        mechanism.load_state_dict(state)
    after = mechanism.state_dict()
    key = "utilities" if "utilities" in after else "initial"
    assert all(torch.equal(value, after[key][name]) for name, value in before[key].items())
