"""What a step is: of an accumulating, a meta-learning, an idle strategy; who else sets weights and learning rates."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.models import MTSimpleMLP, SimpleMLP
from avalanche.models.utils import avalanche_model_adaptation
from avalanche.training import MER, CWRStar, Naive
from avalanche.training.plugins import LRSchedulerPlugin, ReplayPlugin
from avalanche.training.supervised.lamaml_v2 import LaMAML
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods import Muon
from strategies import EMAPlugin, HareTortoisePlugin, Plain
from strategies.plugins import (
    L2Plugin,
    MuonPlugin,
    PhaseTrainingPlugin,
    ReDoPlugin,
    TRACPlugin,
    UPGDPlugin,
    WeightConsolidationPlugin,
)


class Average:
    """The average of a network's weights, updated after each call of an optimiser's step: an independent tortoise."""

    def __init__(self, network: nn.Module, momentum: float) -> None:
        self.network, self.momentum, self.updates = network, momentum, 0
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}

    def follow(self, *_: Any) -> None:
        self.updates += 1
        for name, parameter in self.network.named_parameters():
            self.weights[name] = self.momentum * self.weights[name] + (1 - self.momentum) * parameter.detach()

    def check(self, plugin: EMAPlugin) -> None:
        assert plugin.tortoise is not None and plugin.tortoise.updates == self.updates > 0
        for name, value in self.weights.items():
            torch.testing.assert_close(plugin.tortoise.weights[name], value, rtol=1e-5, atol=1e-6)


class Accumulating(Naive):
    """Makes a step of the optimiser at every `every`-th batch."""

    every = 2

    def optimizer_step(self) -> None:
        if (self.clock.train_iterations + 1) % self.every == 0:
            super().optimizer_step()


def strategy_of(
    network: nn.Module, *plugins: Any, kind: type[Any] = Naive, optimizer: Optimizer | None = None, **settings: Any
) -> Any:
    settings = {"train_mb_size": 8, "evaluator": None} | settings
    return kind(
        model=network,
        optimizer=optimizer if optimizer is not None else SGD(network.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        plugins=list(plugins),
        **settings,
    )


def trained(network: nn.Module, benchmark: Any, *plugins: Any, experiences: int = 2, **settings: Any) -> Any:
    strategy = strategy_of(network, *plugins, **settings)
    strategy.train(benchmark.train_stream[:experiences])
    return strategy


def test_where_gradients_accumulate_methods_act_at_real_steps_alone(make_network, make_benchmark) -> None:
    network, plugin = make_network(), EMAPlugin(momentum=0.8)
    strategy = strategy_of(network, plugin, kind=Accumulating, train_epochs=2)
    average = Average(network, 0.8)
    strategy.optimizer.register_step_post_hook(average.follow)
    strategy.train(make_benchmark().train_stream[:2])
    average.check(plugin)
    assert strategy.clock.train_iterations == 2 * average.updates


def test_a_decay_shrinks_at_real_steps_alone(make_network, make_benchmark) -> None:
    network = make_network()
    before = network.encoder[1].weight.detach().clone()
    optimizer = SGD(network.parameters(), lr=1.0)
    plugin = L2Plugin(strength=0.1)

    class Still(Accumulating):
        def criterion(self) -> Tensor:
            return 0 * super().criterion()

    strategy = trained(network, make_benchmark(), plugin, kind=Still, optimizer=optimizer, experiences=1)
    steps = strategy.clock.train_iterations // 2
    assert steps > 0 and plugin.method is not None
    torch.testing.assert_close(network.encoder[1].weight.detach(), before * (1 - 0.1) ** steps)


def test_a_strategy_that_never_steps_is_warned_of(make_network, make_benchmark) -> None:
    class Idle(Accumulating):
        every = 1000

    plugin = EMAPlugin()
    with pytest.warns(SettingWarning, match=r"EMA: 3 batches were trained on, and the optimiser's step was never"):
        warnings.simplefilter("always", SettingWarning)
        trained(make_network(), make_benchmark(), plugin, kind=Idle, experiences=1)


@pytest.mark.parametrize("method", [UPGDPlugin, TRACPlugin, WeightConsolidationPlugin, L2Plugin])
def test_the_place_next_to_a_clipping_plugin_means_nothing(
    method: Callable[[], Any], make_network, make_benchmark
) -> None:
    ends = []
    for order in (1, -1):
        network = make_network()
        plugins = [method(), PhaseTrainingPlugin(clip=0.01)][::order]
        torch.manual_seed(1)
        trained(network, make_benchmark(), *plugins, train_epochs=2)
        ends.append(network.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize("kind", [MER, LaMAML])
def test_a_tortoise_follows_the_outer_updates_of_meta_learning(kind: type[Any], make_benchmark) -> None:
    # The average is taken where the strategy says that an outer update is over.
    class Watched(kind):  # type: ignore[misc,valid-type]
        average: Average

        def _after_outer_update(self, **kwargs: Any) -> None:
            super()._after_outer_update(**kwargs)
            self.average.follow()

    tasks = kind is LaMAML
    network: nn.Module = MTSimpleMLP(input_size=6, hidden_size=8) if tasks else SimpleMLP(6, 6, 8, drop_rate=0)
    plugin = HareTortoisePlugin(momentum=0.5, reset_interval=10_000, reset_unit="steps")
    own = {"n_inner_updates": 2} if tasks else {"mem_size": 8, "batch_size_mem": 2, "n_inner_steps": 2}
    strategy = strategy_of(network, plugin, kind=Watched, **own)
    experience = make_benchmark(tasks=tasks, aware=True).train_stream[0]
    avalanche_model_adaptation(network, experience)
    strategy.average = Average(network, 0.5)
    strategy.train(experience)
    strategy.average.check(plugin)


def test_methods_within_a_batch_are_refused_in_meta_learning(make_benchmark) -> None:
    own = {"mem_size": 8, "batch_size_mem": 2, "n_inner_steps": 2}
    for plugin in (L2Plugin(), UPGDPlugin(), MuonPlugin(), ReDoPlugin()):
        strategy = strategy_of(SimpleMLP(6, 6, 8), plugin, kind=MER, **own)
        with pytest.raises(SettingError, match=rf"{type(plugin).__name__}: \w+ acts on a batch"):
            strategy.train(make_benchmark(aware=True).train_stream[0])


def test_a_plugin_is_for_one_strategy(make_network, make_benchmark) -> None:
    plugin, network, stream = EMAPlugin(), make_network(), make_benchmark().train_stream
    first = strategy_of(network, plugin)
    first.train(stream[0])
    strategy_of(network, plugin, train_mb_size=4).train(stream[1])  # of the same model
    copied = copy.deepcopy(first)
    copied.train(stream[1])
    other = strategy_of(make_network(seed=1), plugin)
    for act in (other.train, other.eval):
        with pytest.raises(SettingError, match="EMAPlugin: it acts in another strategy already: make one for each"):
            act(stream[1])


def test_a_schedule_of_the_optimiser_that_muon_replaces_is_refused(make_network, make_benchmark) -> None:
    network, benchmark = make_network(), make_benchmark()
    optimizer: Optimizer = AdamW(network.parameters(), lr=0.1)
    scheduler = LRSchedulerPlugin(StepLR(optimizer, 1, gamma=0.1), reset_lr=False, reset_scheduler=False)
    with pytest.raises(SettingError, match="LRSchedulerPlugin: its scheduler changes the optimiser that a meth"):
        trained(network, benchmark, MuonPlugin(), scheduler, optimizer=optimizer)
    network = make_network()
    optimizer = Muon(network).configure_optimizer(AdamW(network.parameters(), lr=0.1))
    scheduler = LRSchedulerPlugin(StepLR(optimizer, 1, gamma=0.1), reset_lr=False, reset_scheduler=False)
    strategy = trained(network, benchmark, MuonPlugin(), scheduler, optimizer=optimizer, experiences=1, train_epochs=2)
    assert strategy.optimizer is optimizer
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.001, 0.001])


def test_a_warm_up_and_a_schedule_are_refused_and_without_one_the_schedule_counts(make_network, make_benchmark) -> None:
    for ratio in (0.1, 0.0):
        network = make_network()
        optimizer = SGD(network.parameters(), lr=0.1)
        scheduler = LRSchedulerPlugin(StepLR(optimizer, 1, gamma=0.1), reset_lr=False, reset_scheduler=False)
        plugins = [PhaseTrainingPlugin(warmup_ratio=ratio, fresh_optimizer=False), scheduler]
        strategy = strategy_of(network, *plugins, optimizer=optimizer, train_epochs=2)
        if ratio:
            with pytest.raises(SettingError, match=r"PhaseTrainingPlugin: warmup_ratio = 0.1: the strategy has an"):
                strategy.train(make_benchmark().train_stream[0])
        else:
            strategy.train(make_benchmark().train_stream[0])
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


def test_a_tortoise_is_refused_where_cwr_writes_the_head(make_network, make_benchmark) -> None:
    strategy = strategy_of(make_network(), EMAPlugin(), kind=CWRStar, cwr_layer_name="classifier")
    with pytest.raises(SettingError, match="EMAPlugin: CWRStarPlugin writes the head"):
        strategy.train(make_benchmark().train_stream[0])


def test_an_epoch_without_a_batch_changes_nothing(make_network, make_benchmark) -> None:
    for plugin in (HareTortoisePlugin(momentum=0.999, reset_interval=1), UPGDPlugin()):
        network = make_network()
        before = copy.deepcopy(network.state_dict())
        strategy = strategy_of(network, plugin, train_mb_size=1000)
        strategy.train(make_benchmark().train_stream[0], drop_last=True)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_loaders_tensors_are_not_those_before_a_plugin_changed_the_data(make_network, make_benchmark) -> None:
    class Zeros(L2Plugin):
        def after_eval_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
            frozen = strategy.adapted_dataset.freeze_transforms()
            strategy.adapted_dataset = frozen.replace_current_transform_group((torch.zeros_like, None))

    benchmark = make_benchmark()
    seen: dict[bool, list[Tensor]] = {}
    for in_memory, changed in itertools.product((True, False), (False, True)):
        network = make_network()
        strategy = strategy_of(network, *([Zeros()] if changed else []), kind=Plain, in_memory=in_memory)
        network.encoder.register_forward_pre_hook(
            lambda _, inputs, key=in_memory: seen.setdefault(key, []).append(inputs[0].clone())
        )
        strategy.eval(benchmark.test_stream[:1])
    assert all(torch.equal(one, other) for one, other in zip(seen[True], seen[False], strict=True))
    assert seen[True][0].any() and not seen[True][-1].any()


def test_a_step_that_a_gradient_scaler_passes_over_is_none(make_network, make_benchmark) -> None:
    class Scaled(Naive):
        """Mixed precision; the second batch's loss overflows."""

        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

        def backward(self) -> None:
            factor = float("inf") if self.clock.train_iterations == 1 else 1.0
            self.scaler.scale(self.loss * factor).backward()

        def optimizer_step(self) -> None:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    network, plugin = make_network(), EMAPlugin(momentum=0.8)
    strategy = strategy_of(network, plugin, kind=Scaled)
    average = Average(network, 0.8)
    strategy.optimizer.register_step_post_hook(average.follow)
    strategy.train(make_benchmark().train_stream[:2])
    average.check(plugin)
    assert average.updates == strategy.clock.train_iterations - 1


def test_avalanches_replay_puts_its_loader_in_the_place_of_ours(make_network, make_benchmark) -> None:
    loaders = []

    class Look(L2Plugin):
        def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
            loaders.append(type(strategy.dataloader).__name__)
            super().before_training_epoch(strategy, **kwargs)

    trained(make_network(), make_benchmark(), ReplayPlugin(mem_size=12), Look(), kind=Plain, in_memory=True)
    assert loaders == ["TaskLoader", "ReplayDataLoader"]
