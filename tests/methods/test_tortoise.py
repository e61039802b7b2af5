"""The tortoise follows by the formula, resets when it is due and at no other time, and predicts without a trace."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ht_ray.mechanisms import SettingError, SettingWarning, named_tensors, recalibrate_batchnorm
from ht_ray.methods import MethodConfig, Phase, Tortoise, half_life, momentum_of_half_life


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.2), nn.Linear(5, 3))


def values_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in named_tensors(module)}


def assert_same(left, right) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def train(hare: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1, after=lambda: None) -> None:
    hare.train()
    for _ in range(steps):
        optimizer.zero_grad()
        hare(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        after()


def adam(hare: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(hare.parameters(), lr=0.05)


@given(st.integers(1, 7), st.integers(1, 25), st.integers(1, 3))
@settings(deadline=None, max_examples=25)
def test_resets_in_steps_happen_after_every_rth_step_over_all_phases(interval: int, steps: int, phases: int) -> None:
    hare = nn.Linear(1, 1)
    tortoise = Tortoise(hare, momentum=0.5, reset_interval=interval, reset_unit="steps", reset_at_phase_end=False)
    happened = []
    for _ in range(phases):
        tortoise.before_phase()
        tortoise.grown()
        for _ in range(steps):
            with torch.no_grad():
                hare.weight.add_(1.0)
            happened.append(tortoise.step())
            assert torch.equal(hare.weight, tortoise.weights["weight"]) == happened[-1]
        assert not tortoise.end_epoch(last=True)
    assert happened == [k % interval == 0 for k in range(1, steps * phases + 1)]
    assert tortoise.resets == sum(happened)
    assert tortoise.updates == len(happened)


@given(st.integers(1, 5), st.integers(1, 12), st.booleans())
@settings(deadline=None, max_examples=25)
def test_resets_in_epochs_are_counted_within_a_phase(interval: int, epochs: int, at_end: bool) -> None:
    hare = nn.Linear(1, 1)
    tortoise = Tortoise(hare, momentum=0.5, reset_interval=interval, reset_at_phase_end=at_end)
    for _ in range(2):
        tortoise.before_phase()
        tortoise.grown()
        for epoch in range(1, epochs + 1):
            with torch.no_grad():
                hare.weight.add_(1.0)
            assert not tortoise.step()
            happened = tortoise.end_epoch(last=epoch == epochs)
            assert happened == (epoch % interval == 0 and (at_end or epoch < epochs))
            assert torch.equal(hare.weight, tortoise.weights["weight"]) == happened


def test_the_average_and_the_reset_are_the_papers_formula() -> None:
    hare = network()
    optimizer = adam(hare)
    tortoise = Tortoise(hare, momentum=0.8, reset_interval=4, reset_unit="steps")
    expected = {name: tensor.double() for name, tensor in values_of(hare).items()}
    for step in range(1, 13):
        train(hare, optimizer)
        for name, value in values_of(hare).items():
            old = expected[name]
            expected[name] = 0.8 * old + 0.2 * value if value.is_floating_point() else value.double()
        assert tortoise.step() == (step % 4 == 0)
        for name, tensor in named_tensors(hare):
            held = tortoise.weights[name]
            torch.testing.assert_close(held.double(), expected[name], rtol=1e-6, atol=1e-6)
            if step % 4 == 0:
                assert torch.equal(held, tensor)
                assert held.data_ptr() != tensor.data_ptr()
    assert hare[1].num_batches_tracked == 12


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 0.9999])
def test_half_life_is_the_same_as_its_momentum(momentum: float) -> None:
    steps = half_life(momentum)
    if momentum == 0:
        assert steps == 0
        return
    assert momentum_of_half_life(steps) == pytest.approx(momentum, rel=1e-12)
    assert Tortoise(network(), half_life=steps).momentum == pytest.approx(momentum, rel=1e-12)
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(layer.weight)
    tortoise = Tortoise(layer, half_life=20)
    nn.init.ones_(layer.weight)
    for _ in range(20):
        tortoise.follow()
    assert tortoise.weights["weight"].item() == pytest.approx(0.5, abs=1e-12)


def test_with_momentum_zero_the_tortoise_is_the_hare() -> None:
    hare = network()
    optimizer = adam(hare)
    tortoise = Tortoise(hare, momentum=0.0, reset_interval=2, reset_unit="steps")
    plain = copy.deepcopy(hare)
    torch.manual_seed(1)
    train(hare, optimizer, 5, tortoise.step)
    assert_same(values_of(hare), dict(tortoise.weights.tensors))
    torch.manual_seed(1)
    train(plain, adam(plain), 5)
    assert_same(values_of(hare), values_of(plain))


def test_without_resets_training_is_bit_identical_to_plain_training() -> None:
    hare, plain = network(), network()
    tortoise = Tortoise(hare, momentum=0.9, reset_interval=None)
    batch = torch.randn(6, 4)

    def watch() -> None:
        tortoise.step()
        modes = [part.training for part in hare.modules()]
        hare.eval()
        with tortoise.predict(), torch.no_grad():
            hare(batch)
        tortoise.trained_tortoise()
        tortoise.distance()
        for part, mode in zip(hare.modules(), modes, strict=True):
            part.training = mode

    torch.manual_seed(5)
    first, second = adam(hare), adam(plain)
    train(hare, first, 20, watch)
    assert not tortoise.end_epoch()
    state = torch.random.get_rng_state()
    torch.manual_seed(5)
    train(plain, second, 20)
    assert torch.equal(state, torch.random.get_rng_state())
    assert_same(values_of(hare), values_of(plain))
    for one, other in zip(first.state.values(), second.state.values(), strict=True):
        assert_same(one, other)


def test_the_optimizer_keeps_or_forgets_its_state_at_a_reset() -> None:
    for choice in ("keep", "clear"):
        hare = network()
        hare[0].bias.requires_grad_(False)
        other = nn.Linear(1, 1)  # of the same optimiser, not of the hare
        optimizer = torch.optim.Adam(
            [
                {"params": [p for p in hare[0].parameters() if p.requires_grad], "lr": 0.1},
                {"params": [*hare[1:].parameters()], "lr": 0.01},
                {"params": [*other.parameters()], "lr": 1.0},
            ]
        )
        tortoise = Tortoise(hare, momentum=0.5, reset_interval=3, reset_unit="steps", optimizer_state=choice)
        for step in range(3):
            optimizer.zero_grad()
            (hare(torch.randn(8, 4)).square().mean() + other(torch.ones(1, 1)).sum()).backward()
            optimizer.step()
            before = copy.deepcopy(optimizer.state_dict())
            assert tortoise.step(optimizer) == (step == 2)
        after = optimizer.state_dict()
        assert after["param_groups"] == before["param_groups"]
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.01, 1.0]
        kept = before["state"] if choice == "keep" else {k: before["state"][k] for k in (5, 6)}
        assert after["state"].keys() == kept.keys()
        for key, state in kept.items():
            assert_same(after["state"][key], state)
        if choice == "clear":  # the next step is Adam's first again: it moves every weight by the learning rate
            train(hare, optimizer)
            assert all(optimizer.state[p]["step"] == 1 for p in hare.parameters() if p.requires_grad)


def test_clearing_without_an_optimizer_is_refused_and_a_refused_reset_changes_nothing() -> None:
    hare = network()
    optimizer = adam(hare)
    tortoise = Tortoise(hare, reset_interval=1, optimizer_state="clear")
    train(hare, optimizer)
    before = values_of(hare)
    with pytest.raises(ValueError, match="needs the optimizer"):
        tortoise.end_epoch()
    assert_same(before, values_of(hare))
    states = len(optimizer.state)
    with tortoise.predict(), pytest.raises(RuntimeError, match="swap back first"):
        tortoise.reset(optimizer)
    assert len(optimizer.state) == states
    assert_same(before, values_of(hare))
    assert tortoise.resets == 0


def slow_and_fast() -> tuple[nn.Sequential, Tortoise, dict, dict]:
    hare = network()
    tortoise = Tortoise(hare, momentum=0.9)
    train(hare, adam(hare), 5, tortoise.step)
    slow, fast = {n: t.clone() for n, t in tortoise.weights.tensors.items()}, values_of(hare)
    assert not torch.equal(slow["0.weight"], fast["0.weight"])
    return hare, tortoise, slow, fast


def test_predict_leaves_everything_as_it_was_also_after_an_exception() -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    optimizer = adam(hare)
    train(hare, optimizer)
    tortoise.weights.load_state_dict(slow)
    fast = values_of(hare)
    gradients = [p.grad.clone() for p in hare.parameters()]
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    parameters = list(hare.parameters())
    with tortoise.predict() as predicting:
        assert predicting is hare
        assert tortoise.predicting
        assert_same(values_of(hare), slow)
    assert_same(values_of(hare), fast)
    with pytest.raises(KeyboardInterrupt), tortoise.predict():
        raise KeyboardInterrupt
    assert not tortoise.predicting
    assert_same(values_of(hare), fast)
    assert_same(dict(tortoise.weights.tensors), slow)
    assert all(a is b for a, b in zip(parameters, hare.parameters(), strict=True))
    assert all(torch.equal(g, p.grad) for g, p in zip(gradients, parameters, strict=True))
    for key, state in optimizer.state_dict()["state"].items():
        assert_same(state, moments[key])


def test_nested_predictions_last_until_the_outermost_ends() -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    with tortoise.predict():
        with tortoise.predict():
            assert_same(values_of(hare), slow)
        assert_same(values_of(hare), slow)
        tortoise.trained_tortoise()
        tortoise.recalibrate_batchnorm([])
        assert_same(values_of(hare), slow)
    assert_same(values_of(hare), fast)
    tortoise.start_predicting()
    tortoise.start_predicting()
    with tortoise.predict():
        pass
    assert_same(values_of(hare), slow)
    tortoise.stop_predicting()
    tortoise.stop_predicting()
    assert_same(values_of(hare), fast)


def test_training_while_predicting_is_refused_and_a_new_phase_recovers() -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    tortoise.start_predicting()  # and the callback that should have ended it never came
    with pytest.raises(RuntimeError, match="swap back first"):
        tortoise.step()
    with pytest.raises(RuntimeError, match="swap back first"):
        tortoise.state_dict()
    updates = tortoise.updates
    tortoise.before_phase()
    tortoise.grown()
    assert tortoise.updates == updates
    assert_same(values_of(hare), fast)
    assert_same(dict(tortoise.weights.tensors), slow)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trained_tortoise_is_a_module_of_its_own(dtype: torch.dtype, tmp_path) -> None:
    hare, tortoise, *_ = slow_and_fast()
    hare.to(dtype)
    hare(torch.randn(3, 4, dtype=dtype)).sum().backward()
    gradients = [p.grad for p in hare.parameters()]
    inputs = torch.randn(7, 4, dtype=dtype)
    hare.eval()
    with tortoise.predict(), torch.no_grad():
        expected = hare(inputs)
    hare.train()
    fast, slow = values_of(hare), {n: t.clone() for n, t in tortoise.weights.tensors.items()}
    trained = tortoise.trained_tortoise()
    assert type(trained) is type(hare)
    assert not any(part.training for part in trained.modules())
    assert all(part.training for part in hare.modules())
    assert all(p.grad is None for p in trained.parameters())
    assert all(p.grad is g for p, g in zip(hare.parameters(), gradients, strict=True))
    with torch.no_grad():
        assert torch.equal(trained(inputs), expected)
        torch.save(trained.state_dict(), tmp_path / "trained.pt")
        loaded = network().to(dtype)
        loaded.load_state_dict(torch.load(tmp_path / "trained.pt", weights_only=True))
        assert torch.equal(loaded.eval()(inputs), expected)
        assert torch.equal(pickle.loads(pickle.dumps(trained))(inputs), expected)
        torch.testing.assert_close(torch.export.export(trained, (inputs,)).module()(inputs), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(trained, inputs)
        torch.testing.assert_close(traced(inputs), expected)
        for parameter in trained.parameters():
            parameter.fill_(9.0)
    assert_same(values_of(hare), fast)
    assert_same(dict(tortoise.weights.tensors), slow)


def test_it_follows_a_head_that_grows() -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    old, hare[4] = hare[4], nn.Linear(5, 6)
    with torch.no_grad():
        hare[4].weight[:3], hare[4].bias[:3] = old.weight, old.bias
    tortoise.before_phase()
    tortoise.grown()
    assert torch.equal(tortoise.weights["4.weight"][:3], slow["4.weight"])
    assert torch.equal(tortoise.weights["4.weight"][3:], hare[4].weight[3:])
    with tortoise.predict():
        assert torch.equal(hare[4].weight[:3], slow["4.weight"])
    assert torch.equal(hare[4].weight[:3], fast["4.weight"])


def test_distance_is_euclidean_over_trainable_parameters() -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    hare[0].weight.requires_grad_(False)
    names = [name for name, p in hare.named_parameters() if p.requires_grad]
    expected = torch.cat([(slow[name] - fast[name]).flatten() for name in names]).double().norm()
    assert tortoise.distance().item() == pytest.approx(expected.item(), rel=1e-5)
    with tortoise.predict():
        assert tortoise.distance().item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    def run(stop: int | None) -> tuple[dict, dict, tuple]:
        hare = network()
        optimizer = adam(hare)
        tortoise = Tortoise(hare, momentum=0.9, reset_interval=4, reset_unit="steps")
        for step in range(10):
            if step == stop:
                file = io.BytesIO()
                torch.save([hare.state_dict(), optimizer.state_dict(), tortoise.state_dict()], file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                hare = network(seed=7)
                hare.load_state_dict(saved[0])
                optimizer = adam(hare)
                optimizer.load_state_dict(saved[1])
                tortoise = Tortoise(hare, momentum=0.9, reset_interval=4, reset_unit="steps")
                tortoise.load_state_dict(saved[2])
            torch.manual_seed(step)
            train(hare, optimizer, 1, lambda: tortoise.step(optimizer))  # noqa: B023
        counters = (tortoise.updates, tortoise.resets, tortoise.epochs)
        return values_of(hare), dict(tortoise.weights.tensors), counters

    whole = run(None)
    for stop in (1, 4, 7):
        resumed = run(stop)
        assert_same(whole[0], resumed[0])
        assert_same(whole[1], resumed[1])
        assert whole[2] == resumed[2] == (10, 2, 0)


def test_a_state_of_another_network_is_refused_whole() -> None:
    _, tortoise, slow, _ = slow_and_fast()
    state = Tortoise(nn.Linear(2, 2)).state_dict() | {"updates": 99}
    with pytest.raises(ValueError, match="of another module"):
        tortoise.load_state_dict(state)
    with pytest.raises(ValueError, match="the state is not one of Tortoise: it has no updates, resets, epochs"):
        tortoise.load_state_dict({"weights": {name: tensor + 1 for name, tensor in slow.items()}})
    assert tortoise.updates == 5
    assert_same(dict(tortoise.weights.tensors), slow)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda tortoise: pickle.loads(pickle.dumps(tortoise))])
def test_duplicates_carry_their_own_hare(duplicate) -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    twin = duplicate(tortoise)
    torch.manual_seed(3)
    train(twin.hare, adam(twin.hare), 2, twin.step)
    assert_same(values_of(hare), fast)
    assert_same(dict(tortoise.weights.tensors), slow)
    torch.manual_seed(3)
    train(hare, adam(hare), 2, tortoise.step)
    assert_same(values_of(hare), values_of(twin.hare))
    assert_same(dict(tortoise.weights.tensors), dict(twin.weights.tensors))


def test_batchnorm_statistics_are_those_of_the_batches_under_the_slow_weights() -> None:
    hare, tortoise, slow, fast = slow_and_fast()
    hare[4].eval()
    batches = [torch.randn(6, 4) for _ in range(3)]
    modes = [part.training for part in hare.modules()]
    state = torch.random.get_rng_state()
    assert tortoise.recalibrate_batchnorm(iter(batches)) == 3
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [part.training for part in hare.modules()]
    assert hare[1].momentum == 0.1
    assert_same(values_of(hare), fast)
    hidden = [batch @ slow["0.weight"].T + slow["0.bias"] for batch in batches]
    mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    variance = torch.stack([h.var(0) for h in hidden]).mean(0)
    torch.testing.assert_close(tortoise.weights["1.running_mean"], mean)
    torch.testing.assert_close(tortoise.weights["1.running_var"], variance)
    for name in slow.keys() - {"1.running_mean", "1.running_var", "1.num_batches_tracked"}:
        assert torch.equal(tortoise.weights[name], slow[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_recalibrated_statistics_stay_in_a_network_of_sixteen_bits(dtype: torch.dtype) -> None:
    hare, tortoise, slow, _ = slow_and_fast()
    hare.to(dtype)
    tortoise.recalibrate_batchnorm([torch.randn(64, 4).to(dtype) + 1])
    reference = tortoise.trained_tortoise()
    torch.testing.assert_close(tortoise.weights["1.running_mean"].to(dtype), reference[1].running_mean)
    assert not torch.allclose(tortoise.weights["1.running_mean"], slow["1.running_mean"], atol=0.05)
    assert torch.equal(tortoise.weights["0.weight"], slow["0.weight"])  # in all its 32 bits


def test_recalibration_is_torchs_update_bn_for_networks_without_dropout() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.BatchNorm2d(3))
    theirs = copy.deepcopy(module)
    batches = [torch.randn(4, 2, 8, 8) for _ in range(5)]
    torch.optim.swa_utils.update_bn(batches, theirs)
    assert recalibrate_batchnorm(module, batches) == 5
    assert_same(values_of(module), values_of(theirs))


def test_recalibration_passes_on_several_inputs() -> None:
    class Masked(nn.BatchNorm1d):
        def forward(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs * mask)

    layer, inputs, mask = Masked(3), torch.randn(8, 3), torch.tensor([1.0, 0.0, 2.0])
    assert recalibrate_batchnorm(layer, [(inputs, mask)]) == 1
    torch.testing.assert_close(layer.running_mean, (inputs * mask).mean(0))


def test_without_batches_or_layers_recalibration_changes_nothing() -> None:
    hare = network()
    train(hare, adam(hare), 2)
    before = values_of(hare)
    assert recalibrate_batchnorm(hare, []) == 0
    assert_same(before, values_of(hare))
    assert recalibrate_batchnorm(nn.Linear(4, 2), [torch.randn(2, 4)]) == 0
    assert recalibrate_batchnorm(nn.BatchNorm1d(4, track_running_stats=False), [torch.randn(2, 4)]) == 0


def test_a_batch_that_fails_leaves_modes_and_momentum() -> None:
    hare, tortoise, _, fast = slow_and_fast()
    with pytest.raises(RuntimeError):
        tortoise.recalibrate_batchnorm([torch.randn(3, 99)])
    assert all(part.training for part in hare.modules())
    assert hare[1].momentum == 0.1
    assert_same(values_of(hare), fast)


def caught(tortoise: Tortoise, **phase: int) -> list[str]:
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        tortoise.before_phase(Phase(**phase))
    assert all(message.category is SettingWarning for message in messages)
    assert all(message.filename == __file__ for message in messages)
    return [str(message.message) for message in messages]


def test_it_warns_of_a_momentum_longer_than_a_phase() -> None:
    hare = nn.Linear(1, 1)
    (message,) = caught(Tortoise(hare, momentum=0.999), steps_per_epoch=10, epochs=20)
    assert "half-life of 693 steps, longer than a phase of 200 steps" in message
    assert "momentum of at most 0.986233" in message
    assert caught(Tortoise(hare, momentum=0.986232), steps_per_epoch=10, epochs=20) == []
    assert caught(Tortoise(hare, momentum=0.999), steps_per_epoch=10) == []
    assert caught(Tortoise(hare, momentum=0.999)) == []
    (message,) = caught(Tortoise(hare, momentum=0.9999999), steps_per_epoch=1000, epochs=1000)
    advised = float(message.split("at most ")[1].split(",")[0])
    assert caught(Tortoise(hare, momentum=advised), steps_per_epoch=1000, epochs=1000) == []


def test_it_warns_of_an_interval_that_no_phase_reaches() -> None:
    tortoise = Tortoise(nn.Linear(2, 2), momentum=0.5, reset_interval=10)
    with pytest.warns(SettingWarning, match="reset_interval = 10 epochs, and a phase has 3: the hare is never reset"):
        tortoise.before_phase(Phase(steps_per_epoch=100, epochs=3))


def test_it_warns_of_resets_too_frequent_to_learn_and_its_share_is_right() -> None:
    hare = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(hare.weight)
    tortoise = Tortoise(hare, momentum=0.99, reset_interval=10, reset_unit="steps")
    (message,) = caught(tortoise, steps_per_epoch=100, epochs=10)
    assert "reset every 10 steps, the half-life of momentum = 0.99 is 69 steps" in message
    assert "at least 69 steps" in message
    for _ in range(1000):  # a hare at constant speed
        with torch.no_grad():
            hare.weight.add_(1.0)
        tortoise.step()
    share = float(message.split("about ")[1].split("%")[0])
    assert 100 * hare.weight.item() / 1000 == pytest.approx(share, abs=0.6)
    (message,) = caught(Tortoise(hare, momentum=0.999, reset_interval=1), steps_per_epoch=100, epochs=100)
    assert "at least 7 epochs" in message


@pytest.mark.parametrize(
    ("chosen", "phase"),
    [
        ({"momentum": 0.999, "reset_interval": 10}, {"steps_per_epoch": 235, "epochs": 100}),  # the paper's vision
        ({"momentum": 0.995, "reset_interval": 4000, "reset_unit": "steps"}, {"steps_per_epoch": 100_000, "epochs": 1}),
        ({"momentum": 0.0, "reset_interval": 1, "reset_unit": "steps"}, {"steps_per_epoch": 1, "epochs": 1}),
        ({"momentum": 0.99, "reset_interval": None}, {"steps_per_epoch": 10, "epochs": 10}),
    ],
)
def test_it_does_not_warn_of_what_is_fine(chosen: dict, phase: dict) -> None:
    assert caught(Tortoise(nn.Linear(1, 1), **chosen), **phase) == []


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"momentum": 1.0}, "momentum = 1.0: accepted is a number with 0 <= momentum < 1"),
        ({"momentum": -0.1}, "momentum = -0.1"),
        ({"momentum": float("nan")}, "momentum = nan"),
        ({"momentum": "0.9"}, "momentum = '0.9'"),
        ({"half_life": 0}, "half_life = 0: accepted is a number with 0 < half_life"),
        ({"momentum": 0.9, "half_life": 10}, "accepted is one of the two"),
        ({"reset_interval": 0}, "reset_interval = 0"),
        ({"reset_interval": 1.5}, "reset_interval = 1.5: accepted is a whole number"),
        ({"reset_unit": "epoch"}, "Did you mean 'epochs'"),
        ({"optimizer_state": "reset"}, "accepted are 'keep', 'clear'"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(chosen: dict, message: str) -> None:
    with pytest.raises(SettingError, match=f"Tortoise: .*{message}"):
        Tortoise(nn.Linear(1, 1), **chosen)


def test_defaults_are_the_authors() -> None:
    tortoise = Tortoise(nn.Linear(1, 1))
    assert (tortoise.momentum, tortoise.reset_interval) == (0.999, None)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_grad_scaler_skips_are_none_of_the_tortoises(fused: bool) -> None:
    """As the documentation shows it; a fused optimiser is called at a skipped step too, and skips it by itself."""
    torch.manual_seed(0)
    hare = nn.Linear(4, 2)
    optimizer = torch.optim.Adam(hare.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    tortoise = Tortoise(hare, momentum=0.5, reset_interval=4, reset_unit="steps")
    overflows = {0, 3, 4, 9}
    resets = []
    for step in range(12):
        optimizer.zero_grad()
        loss = hare(torch.randn(8, 4)).square().mean()
        if step in overflows:
            loss = loss * float("inf")
        before = hare.weight.detach().clone()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scale = scaler.get_scale()
        scaler.update()
        stepped = scaler.get_scale() >= scale
        assert stepped == (step not in overflows) == (not torch.equal(before, hare.weight))
        if stepped and tortoise.step(optimizer):
            resets.append(step)
    assert tortoise.updates == 8
    assert resets == [6, 11]
    assert all(value.isfinite().all() for value in tortoise.weights.tensors.values())


def test_a_step_that_was_averaged_elsewhere_counts_and_resets_but_moves_nothing() -> None:
    torch.manual_seed(0)
    hares = [nn.Linear(2, 2) for _ in range(2)]
    hares[1].load_state_dict(hares[0].state_dict())
    whole, parted = (Tortoise(hare, momentum=0.5, reset_interval=2, reset_unit="steps") for hare in hares)
    for step in range(1, 6):
        with torch.no_grad():
            for hare in hares:
                hare.weight += step
        parted.average()
        assert parted.count_step() == whole.step() == (step % 2 == 0)
        assert torch.equal(whole.weights["weight"], parted.weights["weight"])
        assert torch.equal(hares[0].weight, hares[1].weight)
    assert (parted.updates, parted.resets) == (whole.updates, whole.resets) == (5, 2)


@pytest.mark.parametrize("power", [0.0, 2 / 3, 1.0])
def test_the_momentum_warms_up_by_its_formula(power: float) -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(layer.weight, 7.0)
    tortoise = Tortoise(layer, momentum=0.8, momentum_warmup=power)
    held, hares = 7.0, []
    for update in range(1, 13):
        hares.append(float(update**2))
        with torch.no_grad():
            layer.weight.fill_(hares[-1])
        tortoise.step()
        momentum = min(0.8, 1 - update**-power) if power else 0.8
        held = momentum * held + (1 - momentum) * hares[-1]
        assert tortoise.weights["weight"].item() == pytest.approx(held, rel=1e-12)
        if power == 1 and update <= 5:  # until 1 - 1/n reaches the momentum
            assert held == pytest.approx(sum(hares) / update)
    assert tortoise.capturable == (power == 0)


def test_a_warm_up_goes_on_where_it_was_saved() -> None:
    def trained(at: int | None) -> torch.Tensor:
        torch.manual_seed(3)
        layer = nn.Linear(2, 2)
        tortoise = Tortoise(layer, momentum=0.9, momentum_warmup=1.0)
        for step in range(12):
            if step == at:
                state = copy.deepcopy(tortoise.state_dict())
                tortoise = Tortoise(layer, momentum=0.9, momentum_warmup=1.0)
                tortoise.load_state_dict(state)
            with torch.no_grad():
                layer.weight.add_(torch.randn(2, 2))
            tortoise.step()
        return tortoise.weights["weight"].clone()

    assert torch.equal(trained(None), trained(5))


@pytest.mark.parametrize(
    ("parts", "reset"),
    [
        (("0",), {"0.weight", "0.bias"}),
        (("1", "4.bias"), {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked", "4.bias"}),
        (("*.weight",), {"0.weight", "1.weight", "4.weight"}),
    ],
)
def test_a_reset_of_parts_leaves_the_rest_and_its_optimizer_state(parts: tuple[str, ...], reset: set[str]) -> None:
    hare = network()
    optimizer = adam(hare)
    tortoise = Tortoise(hare, momentum=0.9, reset_interval=1, reset_only=parts, optimizer_state="clear")
    train(hare, optimizer, 3, tortoise.follow)
    before, slow = values_of(hare), {name: tensor.clone() for name, tensor in tortoise.weights.tensors.items()}
    tortoise.reset(optimizer)
    for name, tensor in named_tensors(hare):
        assert torch.equal(tensor, (slow if name in reset else before)[name]), name
        assert name.endswith("tracked") or not torch.equal(slow[name], before[name]), name
    for name, parameter in hare.named_parameters():
        assert (parameter in optimizer.state) == (name not in reset)


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(SettingError, match=r"Tortoise: reset_only = 'haed': accepted is the name of a part"):
        Tortoise(network(), reset_only=("haed",))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 30), st.sampled_from(["epochs", "steps"]))
@settings(deadline=None, max_examples=25)
def test_a_schedule_has_one_interval_after_the_other(schedule: list[int], length: int, unit: str) -> None:
    hare = nn.Linear(1, 1)
    tortoise = Tortoise(hare, momentum=0.5, reset_interval=1, reset_schedule=tuple(schedule), reset_unit=unit)
    expected, at = [], 0
    for interval in [*schedule, *[schedule[-1]] * (2 * length)]:
        at += interval
        expected.append(at)
    for phase in range(2):
        tortoise.before_phase()
        for count in range(1, length + 1):
            happened = tortoise.step() if unit == "steps" else tortoise.end_epoch()
            assert happened == (count + (phase * length if unit == "steps" else 0) in expected)


def test_a_schedule_without_resets_is_refused() -> None:
    with pytest.raises(SettingError, match=r"reset_schedule = .* changes nothing: reset_interval is None"):
        Tortoise(network(), reset_schedule=(1, 2))


def test_several_tortoises_each_follow_as_one_alone() -> None:
    momenta = (0.5, 0.9, 0.99)
    hare = network()
    several = Tortoise(hare, momenta=momenta, momentum_warmup=2.0, momentum=0.3)
    alone = [Tortoise(hare, momentum=momentum, momentum_warmup=2.0) for momentum in momenta]
    optimizer = adam(hare)
    train(hare, optimizer, 7, lambda: [one.follow() for one in (several, *alone)])
    for copied, one in zip(several.copies, alone, strict=True):
        assert_same(dict(copied.tensors), dict(one.weights.tensors))
    assert not several.capturable


def test_the_best_of_several_predicts_and_is_what_the_hare_is_set_back_to() -> None:
    hare = network()
    tortoise = Tortoise(hare, momenta=(0.5, 0.9, 0.99), reset_interval=1)
    train(hare, adam(hare), 5, tortoise.follow)
    before = values_of(hare)
    seen, scores = [], iter([(0.5, -1.0), (0.7, -3.0), (0.7, -2.0)])

    def validate() -> tuple[float, float]:
        seen.append(values_of(hare))
        return next(scores)

    assert tortoise.choose(validate) == tortoise.chosen == 2
    assert tortoise.next_momentum == tortoise.momentum == 0.99
    assert_same(values_of(hare), before)
    for values, copied in zip(seen, tortoise.copies, strict=True):
        assert_same(values, dict(copied.tensors))
    with tortoise.predict():
        assert_same(values_of(hare), seen[2])
    assert tortoise.end_epoch()
    assert_same(values_of(hare), seen[2])
    other = Tortoise(hare, momenta=(0.5, 0.9, 0.99))
    other.load_state_dict(copy.deepcopy(tortoise.state_dict()))
    assert other.chosen == 2
    for left, right in zip(other.copies, tortoise.copies, strict=True):
        assert_same(dict(left.tensors), dict(right.tensors))
    assert tortoise.choose(lambda: 1.0) == 0  # the first of equals


def test_several_tortoises_that_cannot_be() -> None:
    hare = network()
    for momenta in ((0.9,), (0.9, 0.9), 0.9):
        with pytest.raises(SettingError, match=r"momenta = .*: accepted is two or more different numbers"):
            Tortoise(hare, momenta=momenta)
    with pytest.raises(SettingError, match=r"momenta = 1.0: accepted is a number with 0 <= momenta < 1"):
        Tortoise(hare, momenta=(0.9, 1.0))
    with pytest.raises(SettingError, match="a target network is one tortoise"):
        Tortoise(hare, momenta=(0.9, 0.99), target=copy.deepcopy(hare))
    with pytest.raises(SettingError, match=r"redo re-initialises one tortoise: accepted is .*reinitialize_tort"):
        MethodConfig("hare_tortoise+redo", tortoise_momenta=(0.9, 0.99)).build(network())
    MethodConfig("hare_tortoise+redo", tortoise_momenta=(0.9, 0.99), reinitialize_tortoise=False).build(network())
    methods = MethodConfig("ema", tortoise_momenta=(0.9, 0.99)).build(hare)
    with pytest.raises(SettingError, match=r"tortoise_momenta = \(0.9, 0.99\): .* validation data, and there is none"):
        methods.before_phase(Phase())
    with pytest.raises(SettingError, match="validation data, and there is none"):  # of a run that goes on without it
        methods.end_epoch(None, last=False)
