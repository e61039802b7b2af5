"""What Avalanche does otherwise than one expects, as far as it touches the plugins: a test for each row of the docs."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.benchmarks import nc_benchmark, split_online_stream
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import accuracy_metrics, forward_transfer_metrics
from avalanche.training import ICaRL, Naive
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    FromScratchTrainingPlugin,
    GDumbPlugin,
    ReplayPlugin,
)
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from strategies import HareTortoisePlugin, LimitedBufferPlugin

ACCURACY = "Top1_Acc_Stream/eval_phase/test_stream"


class Watch(SupervisedPlugin):
    """Notes after which epoch of which experience evaluations happen, what predicts in them, and the ends of epochs."""

    def __init__(self, plugin: HareTortoisePlugin) -> None:
        super().__init__()
        self.plugin = plugin
        self.evaluations: list[tuple[int, int]] = []
        self.predicting: list[dict[str, Any]] = []
        self.ends: dict[tuple[int, int], tuple[dict[str, Any], dict[str, Any]]] = {}
        self.experience = self.epoch = self.epochs = 0

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.experience, self.epoch = self.experience + 1, 0

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_epoch_iterations == 0:
            self.epochs += 1

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.epoch += 1
        assert self.plugin.tortoise is not None
        self.ends[self.experience, self.epoch] = (
            copied(strategy.model.state_dict()),
            copied(self.plugin.tortoise.weights.tensors),
        )

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluations.append((self.experience, self.epoch))
        self.predicting.append(copied(strategy.model.state_dict()))


def copied(tensors: Any) -> dict[str, Any]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def trained(
    network: nn.Module,
    benchmark: Any,
    *plugins: Any,
    settings: dict[str, Any] | None = None,
    experiences: int = 2,
    evaluated: int = 2,
    **kwargs: Any,
) -> tuple[Naive, HareTortoisePlugin, Watch]:
    """Train on so many experiences in one call of ``train``, and evaluate on so many."""
    plugin = HareTortoisePlugin(**({"momentum": 0.5, "reset_interval": 2} | (settings or {})))
    watch = Watch(plugin)
    strategy = Naive(
        model=network,
        optimizer=SGD(network.parameters(), lr=0.1),
        train_mb_size=8,
        plugins=[*plugins, plugin, watch],
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), forward_transfer_metrics(stream=True), loggers=[]),
        **kwargs,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric Top1_Acc_Stream used by the EarlyStopping plugin")
        strategy.train(benchmark.train_stream[:experiences], eval_streams=[benchmark.test_stream[:evaluated]])
    return strategy, plugin, watch


@pytest.mark.parametrize(("every", "after"), [(-1, []), (0, [5]), (1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4, 5])])
def test_evaluations_come_after_the_first_epoch_and_are_of_the_tortoise_after_its_reset(
    make_network, make_benchmark, differing, every: int, after: list[int]
) -> None:
    _, plugin, watch = trained(make_network(), make_benchmark(), train_epochs=5, eval_every=every)
    begin = [] if every == -1 else [(0, 0)]
    assert watch.evaluations[::2] == begin + [(experience, epoch) for experience in (1, 2) for epoch in after]
    for moment, predicting in zip(watch.evaluations, watch.predicting, strict=True):
        if moment != (0, 0):
            hare, tortoise = watch.ends[moment]
            assert all(torch.equal(predicting[name], value) for name, value in tortoise.items())
            assert (differing(hare, predicting) == []) == (moment[1] in (2, 4))
    assert plugin.tortoise is not None
    # However often is evaluated, resets come after epochs 2 and 4 of each experience.
    assert plugin.tortoise.resets == 4


def test_forward_transfer_needs_an_evaluation_before_which_there_is_no_tortoise(
    make_network, make_benchmark, differing
) -> None:
    for every in (-1, 0):
        network = make_network()
        begin = copied(network.state_dict())
        strategy, _, watch = trained(network, make_benchmark(), eval_every=every)
        found = [name for name in strategy.evaluator.get_last_metrics() if "ForwardTransfer" in name]
        assert bool(found) == (every == 0)
        if every == 0:
            # Once in a call of train, not once for each experience in it.
            assert [moment for moment in watch.evaluations[::2] if moment[1] == 0] == [(0, 0)]
            assert differing(watch.predicting[0], begin) == []


def test_patience_counts_epochs_not_evaluations(make_network, make_benchmark) -> None:
    epochs = {}
    for patience in (1, 2, 4):
        early = EarlyStoppingPlugin(patience, "test_stream", margin=2.0)  # nothing is ever better by so much
        _, _, watch = trained(make_network(), make_benchmark(), early, train_epochs=9, eval_every=3)
        epochs[patience] = watch.epochs
    # In each of two experiences; with a patience of 1 and 2 it is stopped before there is a second evaluation in it.
    assert epochs == {1: 2, 2: 4, 4: 8}


@pytest.mark.parametrize("every", [1, 2, 3])
def test_early_stopping_goes_back_to_a_moment_that_was_evaluated(
    make_network, make_benchmark, differing, every: int
) -> None:
    early = EarlyStoppingPlugin(2 * every, "test_stream")
    strategy, plugin, watch = trained(
        make_network(), make_benchmark(), early, experiences=1, evaluated=1, train_epochs=40, eval_every=every
    )
    assert plugin.tortoise is not None
    moment = (1, early.best_step)
    assert moment in watch.evaluations
    assert moment < max(watch.ends) < (1, 40)
    hare, tortoise = watch.ends[moment]
    assert differing(copied(strategy.model.state_dict()), hare) == []
    assert differing(copied(plugin.tortoise.weights.tensors), tortoise) == []


def test_where_the_epochs_end_before_early_stopping_the_last_weights_stay(
    make_network, make_benchmark, differing
) -> None:
    early = EarlyStoppingPlugin(100, "test_stream")
    strategy, plugin, watch = trained(
        make_network(), make_benchmark(), early, experiences=1, evaluated=1, train_epochs=9, eval_every=1
    )
    assert plugin.tortoise is not None
    assert early.best_step is not None and early.best_step < 8
    hare, tortoise = watch.ends[1, 9]
    assert differing(copied(strategy.model.state_dict()), hare) == []
    assert differing(copied(plugin.tortoise.weights.tensors), tortoise) == []
    assert differing(hare, watch.ends[1, early.best_step][0]) != []


@pytest.mark.parametrize(("every", "final"), [(1, False), (2, True)])
def test_after_an_early_stop_the_last_metrics_may_be_those_of_the_stop(
    make_network, make_benchmark, every: int, final: bool
) -> None:
    early = EarlyStoppingPlugin(3, "test_stream")
    benchmark = make_benchmark()
    # What the first experience taught is forgotten in the second.
    strategy, _, _ = trained(make_network(), benchmark, early, evaluated=1, train_epochs=30, eval_every=every)
    last = strategy.evaluator.get_last_metrics()[ACCURACY]
    now = strategy.eval(benchmark.test_stream[:1])[ACCURACY]
    assert now == early.best_val
    assert (last == now) == final


def test_a_reset_at_the_end_of_an_experience_falls_away_when_it_stops_early(make_network, make_benchmark) -> None:
    early = EarlyStoppingPlugin(2, "test_stream", margin=2.0)
    _, plugin, watch = trained(
        make_network(), make_benchmark(), early, settings={"reset_interval": 3}, train_epochs=3, eval_every=1
    )
    assert plugin.tortoise is not None
    assert watch.epochs == 2 * 2
    assert plugin.tortoise.resets == 0  # counted again in the second experience, neither came to its third epoch


def test_an_epoch_of_avalanches_replay_is_as_long_as_the_new_data(make_network, make_benchmark) -> None:
    benchmark = make_benchmark(2, per_class=8)  # 24 samples each
    steps = {}
    for plugin in (None, ReplayPlugin(mem_size=24), LimitedBufferPlugin(24)):
        others = [] if plugin is None else [plugin]
        settings = {"reset_interval": 6, "reset_unit": "steps"}
        _, hare_tortoise, _ = trained(make_network(), benchmark, *others, settings=settings, train_epochs=2)
        assert hare_tortoise.tortoise is not None
        steps[type(plugin)] = (hare_tortoise.tortoise.updates, hare_tortoise.tortoise.resets)
    assert steps == {type(None): (12, 2), ReplayPlugin: (12, 2), LimitedBufferPlugin: (6 + 12, 3)}


def test_sub_experiences_of_online_streams_count_their_epochs_anew(make_network, make_benchmark) -> None:
    resets = {}
    for unit in ("epochs", "steps"):
        network, plugin = make_network(), HareTortoisePlugin(momentum=0.5, reset_interval=3, reset_unit=unit)
        strategy = Naive(
            model=network,
            optimizer=SGD(network.parameters(), lr=0.1),
            train_mb_size=8,
            plugins=[plugin, LimitedBufferPlugin(24)],
            evaluator=None,
        )
        for experience in split_online_stream(make_benchmark(2, per_class=8).train_stream, experience_size=8, seed=0):
            strategy.train(experience)
        assert plugin.tortoise is not None
        assert plugin.tortoise.updates == 6
        resets[unit] = plugin.tortoise.resets
    assert resets == {"epochs": 0, "steps": 2}


@pytest.mark.parametrize("other", [lambda: GDumbPlugin(mem_size=24), FromScratchTrainingPlugin])
def test_a_tortoise_goes_on_when_a_plugin_begins_with_the_first_weights(
    make_network, make_benchmark, recorder, other: Any
) -> None:
    network = make_network()
    begin, hares = copied(network.state_dict()), recorder()
    _, plugin, _ = trained(network, make_benchmark(), other(), hares, settings={"reset_interval": None})
    average = {name: value.double() for name, value in begin.items()}
    for state in hares.states:
        average = {name: 0.5 * value + 0.5 * state[name].double() for name, value in average.items()}
    assert plugin.tortoise is not None
    assert plugin.tortoise.updates == len(hares.states)
    for name, value in plugin.tortoise.weights.tensors.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-4, atol=1e-6)


def test_icarls_class_means_are_of_the_hare(make_network) -> None:
    labels = torch.arange(6).repeat_interleave(12)
    sets = [TensorDataset(torch.randn(72, 6) + labels[:, None], labels) for _ in ("train", "test")]
    for one in sets:
        one.targets = labels.tolist()  # type: ignore[attr-defined]
    network, plugin = make_network(), HareTortoisePlugin(momentum=0.9, reset_interval=None)
    strategy = ICaRL(
        feature_extractor=network.encoder,
        classifier=network.classifier,
        optimizer=SGD(network.parameters(), lr=0.5),
        memory_size=24,
        buffer_transform=None,
        fixed_memory=True,
        train_mb_size=8,
        train_epochs=2,
        plugins=[plugin],
        evaluator=None,
    )
    strategy.train(nc_benchmark(*sets, n_experiences=2, task_labels=False, seed=0).train_stream[0])
    icarl = next(one for one in strategy.plugins if type(one).__name__ == "_ICaRLPlugin")

    def means() -> torch.Tensor:
        return torch.stack([icarl.class_means[label] for label in sorted(icarl.class_means)]).clone()

    used = means()
    strategy.model.eval()
    icarl.compute_class_means(strategy)
    assert torch.equal(used, means())
    assert plugin.tortoise is not None
    with plugin.tortoise.predict():
        icarl.compute_class_means(strategy)
    assert not torch.allclose(used, means(), atol=1e-3)


def test_every_row_of_the_docs_has_its_test() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "avalanche.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| `(test_\w+)` \|$", page, re.MULTILINE)
    assert len(rows) >= 8
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in rows if f"def {name}(" not in tests] == []
