"""Spectral norm with a tortoise: its bound holds, and the hare never knows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as older

from ht_ray.mechanisms import fresh_weights
from ht_ray.methods import HeadReset, PlasticityInjection, SelfDistillation, ShrinkPerturb, Tortoise

FORMS = [parametrizations.spectral_norm, older]
INPUTS = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
TARGETS = torch.sin(INPUTS[:, :1]) * 0.5


def network(form: Callable[[nn.Module], nn.Module], depth: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = chain.from_iterable((form(nn.Linear(16, 16)), nn.ReLU()) for _ in range(depth))
    net = nn.Sequential(*hidden)
    net.add_module("head", form(nn.Linear(16, 1)))
    return net


def train(net: nn.Module, tortoise: Tortoise | None, steps: int, first: int = 0, **after: Callable[[], object]) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    net.train()
    for step in range(first, first + steps):
        index = torch.randint(len(INPUTS), (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.mse_loss(net(INPUTS[index]), TARGETS[index]).backward()
        optimizer.step()
        if tortoise is not None:
            tortoise.step(optimizer)
        for act in after.values():
            act()


@torch.no_grad()
def bound(net: nn.Module) -> float:
    """Return the product of the layers' largest singular values, as they compute in evaluation mode."""
    training = net.training
    net.eval()
    net(INPUTS[:, : net[0].in_features])  # the older form's weights are computed here
    sizes = [torch.linalg.matrix_norm(part.weight, 2) for part in net if isinstance(part, nn.Linear)]
    net.train(training)
    return float(torch.stack(sizes).prod())


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("momentum", "interval"), [(0.9, None), (0.99, None), (0.99, 100), (0.999, 150), (0.0, 100)])
def test_the_bound_holds_when_predicting_exported_and_reset(form, momentum: float, interval: int | None) -> None:
    net = network(form)
    tortoise = Tortoise(net, momentum=momentum, reset_interval=interval, reset_unit="steps")
    train(net, tortoise, 300)
    net.eval()
    with tortoise.predict():
        assert bound(net) == pytest.approx(1, abs=0.01)
        predicted = net(INPUTS)
    assert bound(tortoise.trained_tortoise()) == pytest.approx(1, abs=0.01)
    assert torch.equal(tortoise.trained_tortoise()(INPUTS), predicted)
    if interval:
        assert tortoise.resets
        assert bound(net) == pytest.approx(1, abs=0.01)  # a reset was the last that happened


@pytest.mark.parametrize("form", FORMS)
def test_predicting_and_exporting_leave_no_trace(form) -> None:
    """Nor does what happens at a reset depend on them."""
    plain, watched = network(form), network(form)
    one = Tortoise(plain, momentum=0.9, reset_interval=7, reset_unit="steps")
    two = Tortoise(watched, momentum=0.9, reset_interval=7, reset_unit="steps")

    def look() -> None:
        before = state_of(watched)
        with two.predict():
            watched.eval()(INPUTS)
        two.trained_tortoise()
        watched.train()
        assert_same(state_of(watched), before)

    train(plain, one, 20)
    train(watched, two, 20, look=look)
    assert_same(state_of(plain), state_of(watched))
    assert_same(one.weights.state_dict(), two.weights.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_resuming_is_bit_identical(form) -> None:
    whole, saved, resumed = network(form), network(form), network(form)
    settings = {"momentum": 0.9, "reset_interval": 7, "reset_unit": "steps"}
    one = Tortoise(whole, **settings)  # type: ignore[arg-type]
    train(whole, one, 20)
    two = Tortoise(saved, **settings)  # type: ignore[arg-type]
    train(saved, two, 9)
    three = Tortoise(resumed, **settings)  # type: ignore[arg-type]
    resumed.load_state_dict(state_of(saved))
    three.load_state_dict(copy.deepcopy(two.state_dict()))
    train(resumed, three, 11, first=9)
    assert_same(state_of(whole), state_of(resumed))
    assert_same(one.weights.state_dict(), three.weights.state_dict())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [True, False])
def test_a_target_network_keeps_the_bound_by_itself(form, training: bool) -> None:
    net = network(form)
    target = copy.deepcopy(net).requires_grad_(False).train(training)
    tortoise = Tortoise(net, momentum=0.99, reset_interval=250, reset_unit="steps", target=target)
    train(net, tortoise, 300)
    assert bound(target) == pytest.approx(1, abs=0.01)
    before = state_of(target), state_of(net)
    with tortoise.predict():
        assert bound(net) == pytest.approx(1, abs=0.01)
    tortoise.trained_tortoise()
    assert_same(state_of(target), before[0])
    assert_same(state_of(net), before[1])
    tortoise.reset()
    assert bound(net) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_target", [True, False])
@pytest.mark.parametrize(
    ("act", "part"),
    [
        (lambda net: ShrinkPerturb(net, ratio=0.7, noise=0.05), slice(None)),
        (lambda net: HeadReset(net, head="2"), slice(2, 3)),
    ],
    ids=["shrink_perturb", "head_reset"],
)
def test_what_sets_weights_makes_vectors_for_them(form, with_target: bool, act, part: slice) -> None:
    net = network(form)
    method = act(net)
    target = copy.deepcopy(net) if with_target else None
    tortoise = Tortoise(net, momentum=0.9, target=target)
    train(net, tortoise, 100)
    method.apply(tortoise)
    assert bound(net[part]) == pytest.approx(1, abs=0.01)
    if target is not None:
        assert bound(target[part]) == pytest.approx(1, abs=0.01)
    with tortoise.predict():
        assert bound(net) == pytest.approx(1, abs=0.01)


def test_a_fresh_head_from_a_factory_fits() -> None:
    net = network(older)
    method = HeadReset(net, toward="fresh", head="0", factory=lambda: network_of_another_seed())
    method.apply()
    assert bound(net[:1]) == pytest.approx(1, abs=0.01)


def network_of_another_seed() -> nn.Module:
    # The older form begins with random vectors, which belong to no weight.
    hidden = chain.from_iterable((older(nn.Linear(16, 16)), nn.ReLU()) for _ in range(4))
    net = nn.Sequential(*hidden)
    net.add_module("head", older(nn.Linear(16, 1)))
    return net


def test_injection_of_a_head_with_spectral_norm_changes_no_prediction() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(16, 16)
            self.head = nn.Sequential(older(nn.Linear(16, 16)), nn.ReLU(), older(nn.Linear(16, 1)))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x).relu())

    torch.manual_seed(0)
    net = Net()
    net(INPUTS).sum().backward()
    method = PlasticityInjection(net, factory=Net)
    before = net.eval()(INPUTS)
    method.apply()
    assert torch.equal(net(INPUTS), before)
    assert net.head.grown[0](INPUTS).isfinite().all()
    assert bound(net.head.grown[:1]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_the_teacher_of_self_distillation_predicts_as_the_tortoise_does(form) -> None:
    net = network(form)
    tortoise, method = Tortoise(net, momentum=0.99), SelfDistillation(net)
    train(net, tortoise, 200)
    before = state_of(net)
    method.before_forward(INPUTS, tortoise)
    assert net.training
    assert_same(state_of(net), before)
    net.eval()
    with tortoise.predict(), torch.no_grad():
        assert torch.equal(method._teacher, net(INPUTS))


def test_networks_that_cannot_be_drawn_anew_are_refused_not_destroyed() -> None:
    net = network(parametrizations.spectral_norm)
    before = state_of(net)
    with pytest.raises(ValueError, match="reset_parameters"):
        fresh_weights(net, seed=0)
    assert_same(state_of(net), before)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_and_inference_mode(form) -> None:
    net = network(form).bfloat16()
    tortoise = Tortoise(net, momentum=0.9)
    with torch.inference_mode(), tortoise.predict():
        assert net.eval()(INPUTS.bfloat16()).isfinite().all()
    tortoise.step()
    tortoise.reset()
    assert bound(net.float()) == pytest.approx(1, abs=0.1)
