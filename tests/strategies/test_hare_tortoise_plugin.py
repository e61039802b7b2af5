from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from avalanche.benchmarks import split_online_stream, with_classes_timeline
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training import Naive
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    LRSchedulerPlugin,
    LwFPlugin,
    ReplayPlugin,
)
from torch import nn
from torch.optim import SGD, AdamW

from ht_ray.errors import SettingError, SettingWarning
from strategies import EMAPlugin, HareTortoise, HareTortoisePlugin

# Network and whether the benchmark has task labels: what a plugin meets in Avalanche.
SITUATIONS = [
    ("plain", False),
    ("plain", True),
    ("growing", False),
    ("masked", False),
    ("masked", True),
    ("multi", True),
]


class Failing(SupervisedPlugin):
    """Raises in evaluation when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = False

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self.armed:
            self.armed = False
            raise KeyError("in evaluation")


def naive(model: nn.Module, plugins: list[Any], *, epochs: int = 2, lr: float = 0.1, **kwargs: Any) -> Naive:
    optimizer = kwargs.pop("optimizer", None) or SGD(model.parameters(), lr=lr, momentum=0.9)
    kwargs.setdefault("evaluator", None)
    return Naive(
        model=model,
        optimizer=optimizer,
        train_mb_size=8,
        eval_mb_size=16,
        train_epochs=epochs,
        plugins=plugins,
        **kwargs,
    )


def averaged(states: list[dict[str, Any]], start: dict[str, Any], momentum: float) -> dict[str, Any]:
    """Return the average that follows the recorded `states`, computed by hand in float64."""
    average = {name: value.double() for name, value in start.items()}
    for state in states:
        for name, value in state.items():
            if value.is_floating_point():
                average[name] = momentum * average[name] + (1 - momentum) * value.double()
            else:
                average[name] = value.double()
    return average


def assert_close(tensors: Any, wanted: dict[str, Any]) -> None:
    assert set(tensors) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(tensors[name].double(), value, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "tasks"), [("plain", False), ("masked", True)])
def test_tortoise_is_the_average_of_the_hares(make_network, make_benchmark, recorder, kind, tasks) -> None:
    network = make_network(kind)
    record = recorder()
    plugin = HareTortoisePlugin(momentum=0.8, reset_interval=None)
    strategy = naive(network, [record, plugin])
    benchmark = make_benchmark(tasks=tasks)
    start = recorder("before_training_exp")
    strategy.plugins.insert(0, start)
    for experience in benchmark.train_stream:
        strategy.train(experience)
    assert len(record.states) == plugin.tortoise.updates == 3 * 2 * 3
    assert_close(plugin.tortoise.weights.tensors, averaged(record.states, start.states[0], 0.8))


@pytest.mark.parametrize("unit", ["epochs", "steps"])
def test_hare_is_reset_at_exactly_the_right_moments(make_network, make_benchmark, recorder, differing, unit) -> None:
    interval = 2 if unit == "epochs" else 4
    before, after, epoch_end = recorder(), recorder(), recorder("after_training_epoch")
    tortoises: list[dict[str, Any]] = []
    plugin = HareTortoisePlugin(momentum=0.6, reset_interval=interval, reset_unit=unit)
    strategy = naive(make_network(), [before, plugin, after, epoch_end], epochs=3)
    record = SupervisedPlugin()
    record.after_update = lambda strategy, **kwargs: tortoises.append(
        {name: value.clone() for name, value in plugin.tortoise.weights.tensors.items()}
    )
    strategy.plugins.insert(3, record)
    for experience in make_benchmark(per_class=10).train_stream:  # 20 samples: 3 steps an epoch
        strategy.train(experience)
    assert plugin.tortoise.updates == 27
    if unit == "steps":
        changed = [step for step in range(27) if differing(before.states[step], after.states[step])]
        assert changed == [step for step in range(27) if (step + 1) % 4 == 0]
        for step in changed:
            assert differing(after.states[step], tortoises[step]) == []
        assert plugin.tortoise.resets == 6
    else:
        assert all(not differing(a, b) for a, b in zip(before.states, after.states, strict=True))
        # Three epochs per experience, counted again in each: the second one ends with a reset.
        for epoch, state in enumerate(epoch_end.states):
            last_step = 3 * epoch + 2
            expected = tortoises[last_step] if epoch % 3 == 1 else after.states[last_step]
            assert differing(state, expected) == []
            assert differing(tortoises[last_step], after.states[last_step])
        assert plugin.tortoise.resets == 3


def test_reset_shares_no_storage_and_keeps_parameters(make_network, make_benchmark, differing) -> None:
    network = make_network()
    identities = [(id(p), p.data_ptr()) for p in network.parameters()]
    plugin = HareTortoisePlugin(momentum=0.9, reset_interval=1)
    strategy = naive(network, [plugin], epochs=2)
    strategy.train(make_benchmark().train_stream[0])
    held = plugin.tortoise.weights.tensors
    assert differing(dict(network.state_dict()), dict(held)) == []
    assert not {t.data_ptr() for t in network.state_dict().values()} & {t.data_ptr() for t in held.values()}
    assert [(id(p), p.data_ptr()) for p in network.parameters()] == identities


@pytest.mark.parametrize(("at_end", "resets"), [(True, 3), (False, 0)])
def test_reset_at_phase_end(make_network, make_benchmark, at_end, resets) -> None:
    plugin = HareTortoisePlugin(momentum=0.9, reset_interval=2, reset_at_phase_end=at_end)
    strategy = naive(make_network(), [plugin], epochs=2)
    strategy.train(make_benchmark().train_stream)
    assert plugin.tortoise.resets == resets


@pytest.mark.parametrize("state", ["keep", "clear"])
def test_optimizer_state_at_a_reset(make_network, make_benchmark, state) -> None:
    plugin = HareTortoisePlugin(momentum=0.9, reset_interval=1, optimizer_state=state)
    network = make_network()
    strategy = naive(network, [plugin], epochs=1)
    strategy.train(make_benchmark().train_stream[0])
    known = [p for p in network.parameters() if strategy.optimizer.state.get(p)]
    assert len(known) == (len(list(network.parameters())) if state == "keep" else 0)
    strategy.train(make_benchmark().train_stream[1])


def test_without_resets_training_is_the_plain_one(make_network, make_benchmark, picture_of, differing) -> None:
    pictures = []
    for plugins in ([], [HareTortoisePlugin(reset_interval=None)], [EMAPlugin(momentum=0.9)]):
        strategy = naive(make_network("growing", seed=3, dropout=0.3), plugins)
        torch.manual_seed(5)
        for experience in make_benchmark().train_stream:
            strategy.train(experience)
            strategy.eval(make_benchmark().test_stream[:1])
        picture = picture_of(strategy)
        pictures.append({k: v for k, v in picture.items() if k.startswith(("model", "optimizer", "rng"))})
    assert differing(pictures[0], pictures[1]) == []
    assert differing(pictures[0], pictures[2]) == []


@pytest.mark.parametrize(("kind", "tasks"), SITUATIONS)
@pytest.mark.parametrize("in_memory", [False, True])
def test_evaluation_uses_the_tortoise_and_leaves_no_trace(
    make_network, make_benchmark, picture_of, differing, kind, tasks, in_memory
) -> None:
    network = make_network(kind, dropout=0.2)
    seen: list[dict[str, Any]] = []
    spy = SupervisedPlugin()
    spy.before_eval_forward = lambda strategy, **kwargs: seen.append(
        {name: value.clone() for name, value in strategy.model.state_dict().items()}
    )
    strategy = HareTortoise(
        model=network,
        optimizer=AdamW(network.parameters(), lr=0.01),
        momentum=0.7,
        reset_interval=None,
        train_mb_size=8,
        eval_mb_size=16,
        train_epochs=2,
        in_memory=in_memory,
        plugins=[spy],
        evaluator=None,
    )
    benchmark = make_benchmark(tasks=tasks)
    if kind == "multi":  # every head exists before the picture is taken
        strategy.train(benchmark.train_stream)
    else:
        strategy.train(benchmark.train_stream[-1])
    before = picture_of(strategy)
    tortoise = {k.removeprefix("tortoise/"): v for k, v in before.items() if k.startswith("tortoise/")}
    strategy.eval(benchmark.test_stream)
    assert seen
    assert all(not differing(state, tortoise) for state in seen)
    changed = differing(before, picture_of(strategy))
    # Avalanche's own loaders draw a seed from the global generator.
    assert changed == ([] if in_memory else ["rng"])


@pytest.mark.parametrize(("kind", "tasks"), [("plain", False), ("masked", True)])
def test_training_is_the_same_with_and_without_evaluation(
    make_network, make_benchmark, picture_of, differing, kind, tasks
) -> None:
    pictures = []
    for every in (-1, 1):
        network = make_network(kind, dropout=0.3, seed=1)
        strategy = HareTortoise(
            model=network,
            optimizer=AdamW(network.parameters(), lr=0.01),
            momentum=0.7,
            reset_interval=2,
            train_mb_size=8,
            train_epochs=3,
            in_memory=True,
            eval_every=every,
            evaluator=None,
        )
        torch.manual_seed(7)
        benchmark = make_benchmark(tasks=tasks)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
        pictures.append(picture_of(strategy))
    assert [name for name in differing(*pictures) if not name.startswith("pointer")] == []


@pytest.mark.parametrize(("kind", "tasks"), [("growing", False), ("multi", True)])
def test_growth_during_evaluation(make_network, make_benchmark, kind, tasks) -> None:
    network = make_network(kind)
    plugin = HareTortoisePlugin(momentum=0.5, reset_interval=1)
    strategy = naive(network, [plugin], epochs=1)
    benchmark = make_benchmark(tasks=tasks)
    strategy.train(benchmark.train_stream[0])
    hare = {name: value.clone() for name, value in network.state_dict().items()}
    slow = {name: value.clone() for name, value in plugin.tortoise.weights.tensors.items()}
    strategy.eval(benchmark.test_stream)  # unseen classes
    grown = network.state_dict()
    held = plugin.tortoise.weights.tensors
    assert set(grown) == set(held)
    assert sum(v.numel() for v in grown.values()) > sum(v.numel() for v in hare.values())
    for old, live in ((hare, grown), (slow, held)):
        for name, value in old.items():
            block = tuple(slice(0, size) for size in value.shape)
            assert torch.equal(live[name][block], value), name
    strategy.train(benchmark.train_stream[1])
    strategy.train(benchmark.train_stream[2])
    assert all(torch.isfinite(value).all() for value in plugin.tortoise.weights.tensors.values())
    assert plugin.tortoise.updates == 9


def test_new_units_of_the_tortoise_start_as_the_hares(make_network, make_benchmark, recorder) -> None:
    network = make_network("growing")
    plugin = HareTortoisePlugin(momentum=0.5, reset_interval=None)
    start, record = recorder("before_training_exp"), recorder()
    strategy = naive(network, [start, record, plugin], epochs=1)
    strategy.train(make_benchmark().train_stream[:2])
    half = len(record.states) // 2
    average = averaged(record.states[:half], start.states[0], 0.5)
    for name in ("classifier.classifier.weight", "classifier.classifier.bias"):
        average[name] = torch.cat([average[name], start.states[1][name][2:].double()])
    assert_close(plugin.tortoise.weights.tensors, averaged(record.states[half:], average, 0.5))


@pytest.mark.parametrize("inside_training", [True, False])
def test_training_goes_on_correctly_after_an_exception_in_evaluation(
    make_network, make_benchmark, picture_of, differing, inside_training
) -> None:
    benchmark = make_benchmark()
    pictures = []
    for fails in (False, True):
        network = make_network("plain", seed=2)
        plugin, failing = HareTortoisePlugin(momentum=0.6, reset_interval=1), Failing()
        strategy = naive(network, [plugin, failing])
        strategy.train(benchmark.train_stream[0])
        if fails:
            failing.armed = True
            with pytest.raises(KeyError, match="in evaluation"):
                if inside_training:
                    strategy.plugins[-2].do_initial = True
                    strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream])
                else:
                    strategy.eval(benchmark.test_stream)
            strategy.plugins[-2].do_initial = False
            assert plugin.tortoise.predicting
            if inside_training:
                plugin.restore()
                assert not plugin.tortoise.predicting
        torch.manual_seed(9)
        strategy.train(benchmark.train_stream[1])
        strategy.eval(benchmark.test_stream[:1])
        pictures.append(picture_of(strategy))
    assert [name for name in differing(*pictures) if not name.startswith("pointer")] == []


def test_evaluation_after_an_exception_in_evaluation(make_network, make_benchmark, picture_of, differing) -> None:
    benchmark = make_benchmark()
    failing = Failing()
    strategy = naive(make_network(), [HareTortoisePlugin(momentum=0.6, reset_interval=None), failing])
    strategy.train(benchmark.train_stream[0])
    before = picture_of(strategy)
    failing.armed = True
    with pytest.raises(KeyError):
        strategy.eval(benchmark.test_stream)
    strategy.eval(benchmark.test_stream)
    after = picture_of(strategy)
    # Avalanche leaves the mode of an evaluation that raised; weights must be the hare's.
    assert [name for name in differing(before, after) if name not in ("rng", "modes")] == []


def test_two_parameter_groups_and_frozen_parameters(make_network, make_benchmark) -> None:
    network = make_network()
    frozen = network.encoder[1].weight
    frozen.requires_grad_(False)
    value = frozen.clone()
    groups = [
        {"params": network.encoder.parameters(), "lr": 0.1},
        {"params": network.classifier.parameters(), "lr": 0.01},
    ]
    plugin = HareTortoisePlugin(momentum=0.6, reset_interval=1, optimizer_state="clear")
    strategy = naive(network, [plugin], optimizer=SGD(groups, momentum=0.9))
    strategy.train(make_benchmark().train_stream)
    assert torch.equal(frozen, value)
    assert torch.equal(plugin.tortoise.weights["encoder.1.weight"], value)
    assert [len(group["params"]) for group in strategy.optimizer.param_groups] == [4, 2]
    assert plugin.tortoise.resets == 6


@pytest.mark.parametrize("kind", ["plain", "multi"])
def test_batchnorm_recalibration(make_network, make_benchmark, kind) -> None:
    network = make_network(kind)
    batches: list[torch.Tensor] = []
    record = SupervisedPlugin()
    record.after_update = lambda strategy, **kwargs: batches.append(strategy.mb_x)
    plugin = EMAPlugin(momentum=0.6, recalibrate_batchnorm=2)
    strategy = naive(network, [record, plugin], epochs=2)
    strategy.train(make_benchmark(tasks=kind == "multi").train_stream[0])
    norm, linear = ("encoder.2", "encoder.1")
    tortoise = plugin.tortoise.weights
    means, variances = [], []
    for batch in batches[-2:]:
        hidden = nn.functional.linear(batch, tortoise[f"{linear}.weight"], tortoise[f"{linear}.bias"])
        means.append(hidden.mean(0))
        variances.append(hidden.var(0))
    torch.testing.assert_close(tortoise[f"{norm}.running_mean"], torch.stack(means).mean(0))
    torch.testing.assert_close(tortoise[f"{norm}.running_var"], torch.stack(variances).mean(0))
    assert network.encoder[2].num_batches_tracked == len(batches)


def test_trained_tortoise_is_a_plain_module_of_its_own(make_network, make_benchmark, differing) -> None:
    plugin = HareTortoisePlugin(momentum=0.6, reset_interval=None)
    with pytest.raises(RuntimeError, match="before the first experience"):
        plugin.trained_tortoise()
    network = make_network()
    strategy = naive(network, [plugin])
    benchmark = make_benchmark()
    strategy.eval(benchmark.test_stream)  # without a tortoise the network itself is evaluated
    strategy.train(benchmark.train_stream[0])
    exported = plugin.trained_tortoise()
    assert type(exported) is type(network)
    assert not exported.training
    assert differing(dict(exported.state_dict()), dict(plugin.tortoise.weights.tensors)) == []
    assert differing(dict(exported.state_dict()), dict(network.state_dict()))


def test_one_tortoise_per_strategy(make_network, make_benchmark) -> None:
    strategy = naive(make_network(), [HareTortoisePlugin(), EMAPlugin()])
    with pytest.raises(SettingError, match="HareTortoisePlugin and EMAPlugin"):
        strategy.train(make_benchmark().train_stream[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"momentum": -0.1}, "momentum = -0.1"),
        ({"momentum": 0.5, "half_life": 3}, "one of the two"),
        ({"half_life": 0}, "half_life = 0"),
        ({"reset_interval": 0}, "reset_interval = 0"),
        ({"reset_interval": 1.5}, "reset_interval = 1.5"),
        ({"reset_unit": "epoch"}, "Did you mean 'epochs'"),
        ({"optimizer_state": "reset"}, "optimizer_state = 'reset'"),
        ({"recalibrate_batchnorm": -1}, "HareTortoise: recalibrate_batchnorm = -1"),
        ({"average_buffers": "*.codebook"}, "HareTortoise: average_buffers = '.*': accepted is a tuple"),
    ],
)
def test_wrong_settings_are_refused_at_construction(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        HareTortoisePlugin(**settings)


def test_wrong_settings_of_ema() -> None:
    with pytest.raises(SettingError, match="EMA: recalibrate_batchnorm"):
        EMAPlugin(recalibrate_batchnorm=0.5)
    with pytest.raises(SettingError, match="EMAPlugin has no setting 'reset_interval'"):
        EMAPlugin(reset_interval=1)


@pytest.mark.parametrize("make", [HareTortoisePlugin, EMAPlugin])
def test_buffers_are_averaged_by_name(make_network, make_benchmark, make) -> None:
    network = make_network("plain")
    network.register_buffer("codebook", torch.zeros(2))
    network.register_buffer("scale", torch.zeros(2))
    plugin = make(momentum=0.5, average_buffers=("code*",))

    class Sets(SupervisedPlugin):
        def after_backward(self, strategy: Any, **kwargs: Any) -> None:
            network.codebook.add_(1.0)
            network.scale.add_(1.0)

    strategy = naive(network, [plugin, Sets()], epochs=1)
    strategy.train(make_benchmark().train_stream[0])
    assert plugin.tortoise is not None
    steps = plugin.tortoise.updates
    assert plugin.tortoise.weights["scale"].tolist() == [steps] * 2
    assert plugin.tortoise.weights["codebook"].tolist() == pytest.approx([steps - 1 + 0.5**steps] * 2, abs=1e-4)
    with pytest.raises(SettingError, match=r"'\*.codebok' matches no .* nearest .* 'codebook'"):
        naive(network, [make(average_buffers=("*.codebok",))], epochs=1).train(make_benchmark().train_stream[0])


def test_state_dict_continues_bit_for_bit(make_network, make_benchmark, differing) -> None:
    benchmark = make_benchmark()
    assert HareTortoisePlugin().state_dict() == {"experiences": 0, "methods": {}}

    def run(interrupted: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        network = make_network(seed=4)
        plugin = HareTortoisePlugin(momentum=0.6, reset_interval=1)
        plugin.load_state_dict(plugin.state_dict(), network)  # an empty state, as saved before the first experience
        strategy = naive(network, [plugin], optimizer=SGD(network.parameters(), lr=0.1))
        strategy.train(benchmark.train_stream[0])
        if interrupted:
            saved = copy.deepcopy((network.state_dict(), plugin.state_dict()))
            network = make_network(seed=5)
            network.load_state_dict(saved[0])
            plugin = HareTortoisePlugin(momentum=0.6, reset_interval=1)
            plugin.load_state_dict(saved[1], network)
            strategy = naive(network, [plugin], optimizer=SGD(network.parameters(), lr=0.1))
        torch.manual_seed(3)
        strategy.train(benchmark.train_stream[1])
        return dict(network.state_dict()), plugin.state_dict()

    (model, state), (other_model, other_state) = run(False), run(True)
    assert differing(model, other_model) == []
    assert differing(*(one["methods"]["hare_tortoise"].pop("weights") for one in (state, other_state))) == []
    assert state == other_state


def test_deepcopy_trains_apart_and_alike(make_network, make_benchmark, picture_of, differing) -> None:
    benchmark = make_benchmark()
    strategy = naive(make_network("growing"), [HareTortoisePlugin(momentum=0.6, reset_interval=1)])
    strategy.train(benchmark.train_stream[0])
    twin = copy.deepcopy(strategy)
    before = picture_of(strategy)
    pictures = []
    for one in (twin, strategy):
        torch.manual_seed(6)
        one.train(benchmark.train_stream[1])
        pictures.append(picture_of(one))
        if one is twin:
            torch.set_rng_state(before["rng"])
            assert differing(before, picture_of(strategy)) == []
    assert [name for name in differing(*pictures) if not name.startswith("pointer")] == []
    assert twin.plugins[0].tortoise.hare is twin.model


def test_deepcopy_of_a_plugin_serves_another_strategy(make_network, make_benchmark, differing) -> None:
    benchmark = make_benchmark()
    plugin = HareTortoisePlugin(momentum=0.6, reset_interval=1)
    naive(make_network(), [plugin]).train(benchmark.train_stream[0])
    held = {name: value.clone() for name, value in plugin.tortoise.weights.tensors.items()}
    twin = copy.deepcopy(plugin)
    other = naive(make_network(seed=8), [twin])
    other.train(benchmark.train_stream[0])
    assert twin.tortoise.hare is other.model
    assert differing(held, dict(plugin.tortoise.weights.tensors)) == []


def test_evaluation_of_a_model_that_took_the_place_of_another(make_network, make_benchmark, differing) -> None:
    plugin, seen = HareTortoisePlugin(momentum=0.6, reset_interval=None), []
    spy = SupervisedPlugin()
    spy.before_eval_forward = lambda strategy, **kwargs: seen.append(dict(copy.deepcopy(strategy.model.state_dict())))
    strategy = naive(make_network(), [plugin, spy])
    benchmark = make_benchmark()
    strategy.train(benchmark.train_stream[0])
    held = {name: value.clone() for name, value in plugin.tortoise.weights.tensors.items()}
    strategy.model = make_network(seed=3)
    before = dict(copy.deepcopy(strategy.model.state_dict()))
    strategy.eval(benchmark.test_stream)
    assert all(differing(state, held) == [] for state in seen)
    assert differing(before, dict(strategy.model.state_dict())) == []


def test_loader_without_a_length(make_network, make_benchmark) -> None:
    class Endless(SupervisedPlugin):
        def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
            strategy.dataloader = (batch for batch in list(strategy.dataloader))

    plugin = HareTortoisePlugin(momentum=0.5, reset_interval=1)
    naive(make_network(), [Endless(), plugin], epochs=1).train(make_benchmark().train_stream[0])
    assert plugin.tortoise.resets == 1


def test_online_streams(make_network, make_benchmark) -> None:
    network = make_network("growing")
    plugin = HareTortoisePlugin(momentum=0.999, reset_interval=5, reset_unit="steps")
    strategy = naive(network, [plugin], epochs=1)
    benchmark = make_benchmark()
    stream = split_online_stream(benchmark.train_stream, experience_size=8, access_task_boundaries=True, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)  # a sub-experience is no phase that is too short
        for experience in with_classes_timeline(stream):
            strategy.train(experience)
    assert plugin.tortoise.updates == 9
    assert plugin.tortoise.resets == 1
    strategy.eval(benchmark.test_stream)


# Composition with Avalanche's own plugins.


@pytest.mark.parametrize("order", [0, 1])
def test_with_replay(make_network, make_benchmark, recorder, order) -> None:
    record = recorder()
    plugins = [ReplayPlugin(mem_size=12), record, HareTortoisePlugin(momentum=0.8, reset_interval=None)]
    plugin = plugins[2]
    start = recorder("before_training_exp")
    strategy = naive(make_network(), [start, *(plugins if order else [*plugins[1:], plugins[0]])])
    strategy.train(make_benchmark().train_stream)
    assert len(record.states) > 0
    assert_close(plugin.tortoise.weights.tensors, averaged(record.states, start.states[0], 0.8))


@pytest.mark.parametrize(("kind", "tasks"), [("growing", False), ("multi", True)])
def test_with_lwf(make_network, make_benchmark, differing, kind, tasks) -> None:
    lwf = LwFPlugin(alpha=1.0)
    plugin = HareTortoisePlugin(momentum=0.8, reset_interval=2)
    strategy = naive(make_network(kind), [lwf, plugin], epochs=3)
    benchmark = make_benchmark(tasks=tasks, aware=True)
    strategy.train(benchmark.train_stream[0])
    assert differing(dict(lwf.lwf.prev_model.state_dict()), dict(strategy.model.state_dict())) == []
    strategy.train(benchmark.train_stream[1:])
    strategy.eval(benchmark.test_stream)
    assert plugin.tortoise.resets == 3


def test_with_lr_scheduler(make_network, make_benchmark) -> None:
    network = make_network()
    optimizer = SGD(network.parameters(), lr=0.1)
    rates: list[float] = []
    record = SupervisedPlugin()
    record.before_training_epoch = lambda strategy, **kwargs: rates.append(strategy.optimizer.param_groups[0]["lr"])
    scheduler = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5))
    plugin = HareTortoisePlugin(momentum=0.8, reset_interval=1, optimizer_state="clear")
    strategy = naive(network, [record, plugin, scheduler], optimizer=optimizer, epochs=3)
    strategy.train(make_benchmark().train_stream[:2])
    assert rates == pytest.approx([0.1, 0.05, 0.025] * 2)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("mode", ["epoch", "iteration"])
def test_early_stopping_takes_hare_and_tortoise_back_together(
    make_network, make_benchmark, recorder, differing, mode, order
) -> None:
    benchmark = make_benchmark()
    network = make_network()
    # The metric is the tortoise's, on classes that the later training forgets.
    early = EarlyStoppingPlugin(patience=2, val_stream_name="test_stream", peval_mode=mode)
    plugin = HareTortoisePlugin(momentum=0.5, reset_interval=None)
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    hares, tortoises = [], []
    record = SupervisedPlugin()

    def note(strategy: Any, **kwargs: Any) -> None:
        hares.append({name: value.clone() for name, value in strategy.model.state_dict().items()})
        tortoises.append({name: value.clone() for name, value in plugin.tortoise.weights.tensors.items()})

    setattr(record, f"after_training_{mode}", note)
    record.before_training_exp = note
    strategy = naive(
        network,
        [early, plugin, record] if order else [plugin, early, record],
        epochs=12,
        evaluator=evaluator,
        eval_every=1,
        peval_mode=mode,
    )
    strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]])
    first = plugin.tortoise.updates
    hares.clear()
    tortoises.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy.train(benchmark.train_stream[1], eval_streams=[benchmark.test_stream[:1]])
    best = early.best_step
    steps = plugin.tortoise.updates - first
    assert steps < 12 * 3, "training was to stop early"
    assert len(hares) - 1 >= best + 2
    if mode == "epoch":
        assert differing(dict(network.state_dict()), hares[best]) == []
        assert differing(dict(plugin.tortoise.weights.tensors), tortoises[best]) == []
        assert differing(dict(plugin.tortoise.weights.tensors), tortoises[-1])
    else:
        # One more step follows in Avalanche's loop; the tortoise followed it from where it was best.
        last, kept = {k: v.double() for k, v in network.state_dict().items()}, tortoises[best]
        wanted = {k: 0.5 * kept[k].double() + 0.5 * v if kept[k].is_floating_point() else v for k, v in last.items()}
        assert_close(plugin.tortoise.weights.tensors, wanted)
    strategy.eval(benchmark.test_stream)


def test_early_stopping_that_does_not_stop_changes_nothing(make_network, make_benchmark, differing) -> None:
    ends = []
    for patience in (None, 100):
        evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
        plugin = HareTortoisePlugin(momentum=0.5, reset_interval=2)
        early = [] if patience is None else [EarlyStoppingPlugin(patience, "test_stream")]
        benchmark = make_benchmark()
        strategy = naive(make_network(seed=1), [*early, plugin], epochs=4, evaluator=evaluator, eval_every=1)
        torch.manual_seed(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            strategy.train(benchmark.train_stream[0], eval_streams=[benchmark.test_stream[:1]])
        ends.append((dict(strategy.model.state_dict()), dict(plugin.tortoise.weights.tensors)))
    assert differing(ends[0][0], ends[1][0]) == []
    assert differing(ends[0][1], ends[1][1]) == []


def test_of_several_tortoises_the_one_that_validates_best_predicts(make_network: Any, make_benchmark: Any) -> None:
    model = make_network("plain")
    plugin = HareTortoisePlugin(momenta=(0.9, 0.5), reset_interval=1)
    strategy = naive(model, [plugin])
    experience = make_benchmark().train_stream[0]
    with pytest.raises(SettingError, match="validation data, and there is none"):
        strategy.train(experience)
    asked: list[torch.Tensor] = []

    def validate() -> float:
        asked.append(next(model.parameters()).detach().clone())
        return float(len(asked))  # the last is the best

    plugin.validate = validate
    strategy.train(experience)
    assert plugin.tortoise is not None and plugin.tortoise.chosen == 1
    assert len(asked) == 4 and not torch.equal(asked[2], asked[3])
    assert torch.equal(next(model.parameters()), asked[3])  # which the hare was set back to
    assert copy.deepcopy(plugin).validate is None  # what a loop gives is not saved
