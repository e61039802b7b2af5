from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import pytest
import torch
from avalanche.benchmarks import split_online_stream, with_classes_timeline
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from torch import nn
from torch.optim import SGD, AdamW

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import derive_seed, fresh_weights, generator
from strategies import HareTortoisePlugin, HeadResetPlugin, ShrinkPerturbPlugin


class Moments(SupervisedPlugin):
    """Keeps the tensors of hare and tortoise at the end of each experience and before the next one's first epoch."""

    def __init__(self, tortoise: HareTortoisePlugin | None = None) -> None:
        super().__init__()
        self.plugin = tortoise
        self.ends: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []

    def _both(self, strategy: Any) -> dict[str, Any]:
        both = {name: value.detach().clone() for name, value in strategy.model.state_dict().items()}
        if self.plugin is not None and self.plugin.tortoise is not None:
            held = self.plugin.tortoise.weights.tensors
            both |= {f"tortoise/{name}": value.clone() for name, value in held.items()}
        return both

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.ends.append(self._both(strategy))

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_epochs == 0:
            self.starts.append(self._both(strategy))


def naive(model: nn.Module, plugins: list[Any], *, optimizer: Any = None, epochs: int = 2) -> Naive:
    return Naive(
        model=model,
        optimizer=optimizer or SGD(model.parameters(), lr=0.1, momentum=0.9),
        train_mb_size=8,
        eval_mb_size=16,
        train_epochs=epochs,
        plugins=plugins,
        evaluator=None,
    )


PARAMETERS = ["encoder.1.weight", "encoder.1.bias", "encoder.2.weight", "encoder.2.bias",
              "classifier.weight", "classifier.bias"]  # fmt: skip


@pytest.mark.parametrize("ratio", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("with_tortoise", [False, True])
def test_shrink_perturb_formula(make_network, make_benchmark, differing, ratio, with_tortoise) -> None:
    network = make_network()
    initial = {name: value.detach().clone() for name, value in network.state_dict().items()}
    tortoise = HareTortoisePlugin(momentum=0.5, reset_interval=None)
    moments = Moments(tortoise)
    plugins = [ShrinkPerturbPlugin(ratio=ratio), moments, *([tortoise] if with_tortoise else [])]
    naive(network, plugins).train(make_benchmark().train_stream)
    assert (
        differing(initial, {n: v for n, v in moments.starts[0].items() if n in initial}) == []
    )  # not before the first
    for end, start in zip(moments.ends[:-1], moments.starts[1:], strict=True):
        assert set(end) == set(start)
        for name in start:
            plain = name.removeprefix("tortoise/")
            if plain in PARAMETERS:
                wanted = (1 - ratio) * end[name] + ratio * initial[plain]
                torch.testing.assert_close(start[name], wanted, rtol=0, atol=1e-6)
            else:
                assert torch.equal(start[name], end[name])


@pytest.mark.parametrize("toward", ["zero", "fresh"])
def test_shrink_perturb_with_noise_towards_other_weights(make_network, make_benchmark, toward) -> None:
    network = make_network()
    pristine = copy.deepcopy(network)
    moments = Moments()
    plugin = ShrinkPerturbPlugin(ratio=0.4, noise=0.1, toward=toward, seed=11)
    naive(network, [plugin, moments]).train(make_benchmark().train_stream)
    for application, (end, start) in enumerate(zip(moments.ends[:-1], moments.starts[1:], strict=True)):
        normal = generator(11, "shrink & perturb: noise", application)
        fresh = fresh_weights(pristine, seed=derive_seed(11, "shrink & perturb: fresh weights", application))
        for name in PARAMETERS:
            wanted = 0.6 * end[name] + 0.1 * torch.randn(end[name].shape, generator=normal)
            if toward == "fresh":
                wanted += 0.4 * fresh[name]
            torch.testing.assert_close(start[name], wanted, rtol=0, atol=1e-6)
    assert plugin.method.applications == 2


@pytest.mark.parametrize("with_tortoise", [False, True])
def test_head_reset_restores_the_head_and_nothing_else(make_network, make_benchmark, differing, with_tortoise) -> None:
    network = make_network()
    initial = {name: value.detach().clone() for name, value in network.state_dict().items()}
    tortoise = HareTortoisePlugin(momentum=0.5, reset_interval=None)
    moments = Moments(tortoise)
    plugins = [HeadResetPlugin(), moments, *([tortoise] if with_tortoise else [])]
    naive(network, plugins).train(make_benchmark().train_stream)
    for end, start in zip(moments.ends[:-1], moments.starts[1:], strict=True):
        head = [name for name in start if "classifier" in name]
        assert len(head) == (4 if with_tortoise else 2)
        for name in head:
            assert torch.equal(start[name], initial[name.removeprefix("tortoise/")])
            assert not torch.equal(start[name], end[name])
        assert all(name in head for name in differing(end, start))


def test_fresh_head(make_network, make_benchmark) -> None:
    network = make_network()
    pristine = copy.deepcopy(network.classifier)
    moments = Moments()
    naive(network, [HeadResetPlugin(toward="fresh", seed=5), moments]).train(make_benchmark().train_stream)
    for application, start in enumerate(moments.starts[1:]):
        fresh = fresh_weights(pristine, seed=derive_seed(5, "head reset: fresh weights", application))
        assert torch.equal(start["classifier.weight"], fresh["weight"])


def test_tortoise_can_be_left_alone(make_network, make_benchmark) -> None:
    tortoise = HareTortoisePlugin(momentum=0.5, reset_interval=None)
    moments = Moments(tortoise)
    plugins = [
        ShrinkPerturbPlugin(reinitialize_tortoise=False),
        HeadResetPlugin(reinitialize_tortoise=False),
        tortoise,
        moments,
    ]
    naive(make_network(), plugins).train(make_benchmark().train_stream)
    for end, start in zip(moments.ends[:-1], moments.starts[1:], strict=True):
        for name in PARAMETERS:
            assert torch.equal(start[f"tortoise/{name}"], end[f"tortoise/{name}"])
            assert not torch.equal(start[name], end[name])


@pytest.mark.parametrize(
    ("make", "cleared"),
    [
        (lambda: ShrinkPerturbPlugin(), 6),
        (lambda: ShrinkPerturbPlugin(optimizer_state="keep"), 0),
        (lambda: HeadResetPlugin(), 2),
    ],
)
def test_optimizer_forgets_exactly_what_was_changed(make_network, make_benchmark, make, cleared) -> None:
    network = make_network()
    known: list[set[str]] = []
    record = SupervisedPlugin()
    record.before_training_epoch = lambda strategy, **kwargs: known.append(
        {n for n, p in strategy.model.named_parameters() if strategy.optimizer.state.get(p)}
    )
    strategy = naive(network, [record, make()], optimizer=AdamW(network.parameters(), lr=0.01), epochs=1)
    strategy.train(make_benchmark().train_stream)
    forgotten = set(PARAMETERS) - known[1]
    assert len(forgotten) == cleared
    assert cleared != 2 or forgotten == {"classifier.weight", "classifier.bias"}


def test_order_is_fixed_whatever_the_order_of_the_plugins(make_network, make_benchmark, differing) -> None:
    ends = []
    kinds = [
        lambda: ShrinkPerturbPlugin(ratio=0.5, noise=0.01, seed=3),
        lambda: HeadResetPlugin(),
        lambda: HareTortoisePlugin(momentum=0.5, reset_interval=2),
    ]
    for order in itertools.permutations(range(3)):
        torch.manual_seed(0)
        plugins = [kinds[index]() for index in order]
        tortoise = plugins[order.index(2)]
        network = make_network("growing", seed=1)
        moments = Moments(tortoise)
        torch.manual_seed(4)
        naive(network, [*plugins, moments]).train(make_benchmark().train_stream)
        ends.append(moments.starts[-1] | {f"end/{name}": value for name, value in moments.ends[-1].items()})
        # The reset that was due came first, so hare and tortoise begin the experience as one.
        for name, value in tortoise.tortoise.weights.tensors.items():
            assert torch.equal(moments.starts[-1][name], moments.starts[-1][f"tortoise/{name}"])
            assert torch.equal(network.state_dict()[name], value)
        # Head Reset came last: the head is exactly the initial one, without noise.
        head = plugins[order.index(1)].method.initial.tensors
        assert torch.equal(moments.starts[-1]["classifier.classifier.weight"], head["classifier.weight"])
    assert all(differing(ends[0], end) == [] for end in ends[1:])


@pytest.mark.parametrize("toward", ["initial", "fresh"])
@pytest.mark.parametrize(
    ("kind", "tasks"), [("plain", True), ("growing", False), ("masked", False), ("masked", True), ("multi", True)]
)
def test_growing_and_masked_heads_learn_every_experience(make_network, make_benchmark, kind, tasks, toward) -> None:
    # Classes in an order in which later ones lie below earlier ones: masks must not go back with the head.
    benchmark = make_benchmark(tasks=tasks, class_order=(5, 0, 3, 1, 4, 2), per_class=24)
    network = make_network(kind)
    masks: list[dict[str, Any]] = []
    record = SupervisedPlugin()
    record.before_training_epoch = lambda strategy, **kwargs: masks.append(
        {name: value.clone() for name, value in strategy.model.named_buffers() if "active" in name}
    )
    plugins = [
        record,
        HareTortoisePlugin(momentum=0.3, reset_interval=2),
        ShrinkPerturbPlugin(toward=toward),
        HeadResetPlugin(toward=toward),
    ]
    strategy = naive(network, plugins, epochs=8)
    for index, experience in enumerate(benchmark.train_stream):
        strategy.train(experience)
        if kind == "masked":
            active = sorted(masks[-1]["classifier.active_units"].nonzero().flatten().tolist())
            assert active == sorted((5, 0, 3, 1, 4, 2)[: 2 * index + 2])
        elif kind == "multi":
            active = sorted(masks[-1][f"classifier.active_units_T{index}"].nonzero().flatten().tolist())
            assert active == sorted((5, 0, 3, 1, 4, 2)[2 * index : 2 * index + 2])
        seen = []
        spy = SupervisedPlugin()
        spy.after_eval_forward = lambda strategy, seen=seen, **kwargs: seen.append(
            (strategy.mb_output.argmax(1) == strategy.mb_y).float().mean().item()
        )
        strategy.plugins.append(spy)
        strategy.eval(benchmark.test_stream[index])
        strategy.plugins.remove(spy)
        assert sum(seen) / len(seen) > 0.7


def test_initial_weights_of_new_units_are_those_they_were_born_with(make_network, make_benchmark, recorder) -> None:
    network = make_network("growing")
    start = recorder("before_training_exp")
    plugin = HeadResetPlugin()
    strategy = naive(network, [start, plugin, Moments()])
    strategy.train(make_benchmark().train_stream)
    born = start.states[1]["classifier.classifier.weight"]
    kept = plugin.method.initial["classifier.weight"]
    assert torch.equal(kept[:2], start.states[0]["classifier.classifier.weight"])
    assert torch.equal(kept[2:4], born[2:4])


def test_frozen_parameters_stay(make_network, make_benchmark) -> None:
    network = make_network()
    network.classifier.bias.requires_grad_(False)
    network.encoder[1].weight.requires_grad_(False)
    with torch.no_grad():
        network.classifier.bias.fill_(0.25)
    strategy = naive(network, [ShrinkPerturbPlugin(toward="zero", noise=0.1), HeadResetPlugin(toward="fresh")])
    weight = network.encoder[1].weight.clone()
    strategy.train(make_benchmark().train_stream)
    assert torch.equal(network.classifier.bias, torch.full((6,), 0.25))
    assert torch.equal(network.encoder[1].weight, weight)


@pytest.mark.parametrize("make", [ShrinkPerturbPlugin, HeadResetPlugin])
def test_online_streams_are_reinitialised_once_per_experience(make_network, make_benchmark, make) -> None:
    plugin = make()
    strategy = naive(make_network("growing"), [plugin], epochs=1)
    stream = split_online_stream(make_benchmark().train_stream, 8, access_task_boundaries=True, seed=0)
    for experience in with_classes_timeline(stream):
        strategy.train(experience)
    assert strategy.clock.train_exp_counter == 9
    assert (plugin.experiences, plugin.method.applications) == (3, 2)


def test_online_streams_without_boundaries_are_one_experience(make_network, make_benchmark) -> None:
    plugin = ShrinkPerturbPlugin()
    strategy = naive(make_network("growing"), [plugin], epochs=1)
    stream = split_online_stream(make_benchmark().train_stream, 8, access_task_boundaries=False, seed=0)
    with pytest.warns(SettingWarning, match="access_task_boundaries=True") as caught:
        for experience in with_classes_timeline(stream):
            strategy.train(experience)
    assert len([w for w in caught if w.category is SettingWarning]) == 1
    assert plugin.method.applications == 0


@pytest.mark.parametrize(
    "make", [lambda: ShrinkPerturbPlugin(noise=0.1, seed=2), lambda: HeadResetPlugin(toward="fresh")]
)
def test_state_dict_continues_bit_for_bit(make_network, make_benchmark, differing, make) -> None:
    benchmark = make_benchmark()
    plugin = make()
    assert plugin.state_dict() == {"experiences": 0, "methods": {}}
    ends = []
    for interrupted in (False, True):
        network, plugin = make_network(seed=1), make()
        plugin.load_state_dict(plugin.state_dict(), network)
        strategy = naive(network, [plugin], optimizer=SGD(network.parameters(), lr=0.1))
        torch.manual_seed(1)
        strategy.train(benchmark.train_stream[:2])
        if interrupted:
            saved = copy.deepcopy((network.state_dict(), plugin.state_dict()))
            network, plugin = make_network(seed=9), make()
            network.load_state_dict(saved[0])
            plugin.load_state_dict(saved[1], network)
            strategy = naive(network, [plugin], optimizer=SGD(network.parameters(), lr=0.1))
        torch.manual_seed(2)
        strategy.train(benchmark.train_stream[2])
        ends.append(dict(network.state_dict()))
        assert plugin.experiences == 3
    assert differing(*ends) == []


def test_deepcopy(make_network, make_benchmark, differing) -> None:
    benchmark = make_benchmark()
    strategy = naive(make_network(), [ShrinkPerturbPlugin(), HeadResetPlugin()])
    strategy.train(benchmark.train_stream[0])
    twin = copy.deepcopy(strategy)
    ends = []
    for one in (strategy, twin):
        torch.manual_seed(1)
        one.train(benchmark.train_stream[1])
        ends.append(dict(one.model.state_dict()))
        assert one.plugins[0].method.module is one.model
    assert differing(*ends) == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShrinkPerturbPlugin(ratio=1.5), "ratio = 1.5"),
        (lambda: ShrinkPerturbPlugin(noise=-1), "noise = -1"),
        (lambda: ShrinkPerturbPlugin(perturb=-1), "perturb = -1"),
        (lambda: ShrinkPerturbPlugin(toward="start"), "toward = 'start'"),
        (lambda: ShrinkPerturbPlugin(optimizer_state="reset"), "optimizer_state = 'reset'"),
        (lambda: HeadResetPlugin(toward="zero"), "HeadReset: toward = 'zero'"),
        (lambda: HeadResetPlugin(seed=0.5), "HeadReset: seed = 0.5"),
    ],
)
def test_wrong_settings_are_refused_at_construction(make, message) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_missing_head_is_named_before_training(make_network, make_benchmark) -> None:
    strategy = naive(make_network(), [HeadResetPlugin(head="clasifier")])
    with pytest.raises(SettingError, match="Did you mean 'classifier'"):
        strategy.train(make_benchmark().train_stream[0])


def test_no_warning_with_ordinary_streams(make_network, make_benchmark) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)
        naive(make_network(), [ShrinkPerturbPlugin()]).train(make_benchmark().train_stream)
