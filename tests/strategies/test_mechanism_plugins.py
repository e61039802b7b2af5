"""Mechanisms as plugins, in pipelines as users of Avalanche build them."""

from __future__ import annotations

import copy
import inspect
import itertools
import warnings
from collections.abc import Callable
from dataclasses import asdict
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
from torch.nn import functional
from torch.optim import SGD, AdamW

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import CReLU
from ht_ray.methods import L2, METHODS, InjectedHead
from ht_ray.vision import MethodConfig
from strategies import EMAPlugin, HareTortoisePlugin, HeadResetPlugin, ShrinkPerturbPlugin
from strategies.plugins import (
    ContinualBackpropPlugin,
    L2Plugin,
    MethodPlugin,
    OptimizerResetPlugin,
    PlasticityInjectionPlugin,
    ReDoPlugin,
    RegenerativePlugin,
    SelfDistillationPlugin,
    SpectralDecouplingPlugin,
    UPGDPlugin,
    WeightClippingPlugin,
)

# Settings with which every method acts in a few steps.
PLUGINS: dict[str, Callable[..., list[Any]]] = {
    "l2": lambda **k: [L2Plugin(strength=0.5)],
    "l2 in the loss": lambda **k: [L2Plugin(strength=0.01, coupling="loss")],
    "spectral": lambda **k: [SpectralDecouplingPlugin(strength=0.1)],
    "regenerative": lambda **k: [RegenerativePlugin(strength=0.1)],
    "regenerative, fresh": lambda **k: [RegenerativePlugin(strength=0.1, toward="fresh", seed=2)],
    "self-distillation": lambda **k: [SelfDistillationPlugin(), EMAPlugin(momentum=0.8)],
    "upgd": lambda **k: [UPGDPlugin(noise=0.1, seed=3)],
    "clipping": lambda **k: [WeightClippingPlugin(factor=0.7)],
    "continual backprop": lambda **k: [ContinualBackpropPlugin(replacement_rate=0.1, maturity=2, seed=4, **k)],
    "redo": lambda **k: [ReDoPlugin(threshold=0.8, interval=1, seed=5, **k)],
    "redo, steps": lambda **k: [ReDoPlugin(threshold=0.8, interval=2, unit="steps", **k)],
    "optimizer reset": lambda **k: [OptimizerResetPlugin(interval=2, unit="steps")],
    "injection": lambda **k: [PlasticityInjectionPlugin(times=None, seed=6)],
}
RECYCLING = ("continual backprop", "redo", "redo, steps")


def heads(model: nn.Module) -> list[Any]:
    """The hidden units of the network with a head for each task, all heads that it has by now."""
    names = [name for name, _ in model.named_modules()]
    outgoing = [name for name in names if name.startswith("classifier.classifiers.") and name.endswith(".classifier")]
    return [("encoder.1", "encoder.3", outgoing, "encoder.2")]


def plugins_of(name: str, kind: str = "plain") -> list[Any]:
    return PLUGINS[name](**({"layers": heads} if kind == "multi" and name in RECYCLING else {}))


def naive(model: nn.Module, plugins: list[Any], *, optimizer: Any = None, epochs: int = 2, **kwargs: Any) -> Naive:
    kwargs.setdefault("evaluator", None)
    return Naive(
        model=model,
        optimizer=optimizer or AdamW(model.parameters(), lr=0.02),
        train_mb_size=8,
        eval_mb_size=16,
        train_epochs=epochs,
        plugins=plugins,
        **kwargs,
    )


def two_groups(model: nn.Module) -> AdamW:
    """Encoder and head; in each group weights and biases, so that heads can grow in it."""
    parts: Any = model
    return AdamW(
        [
            {"params": parts.encoder.parameters(), "lr": 0.02, "weight_decay": 0.1},
            {"params": parts.classifier.parameters(), "lr": 0.005, "weight_decay": 0.0},
        ]
    )


def ended(strategy: Naive) -> dict[str, Any]:
    """All that the strategy would continue from."""
    names = {p: name for name, p in strategy.model.named_parameters()}
    state: dict[str, Any] = dict(copy.deepcopy(strategy.model.state_dict()))
    for parameter, held in strategy.optimizer.state.items():
        for key, value in held.items():
            state[f"{names[parameter]}/{key}"] = value.clone() if torch.is_tensor(value) else value

    def add(where: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                add(f"{where}/{key}", part)
        else:
            state[where] = value.clone() if torch.is_tensor(value) else value

    for plugin in sorted(strategy.plugins, key=lambda plugin: type(plugin).__name__):
        if hasattr(plugin, "state_dict"):
            add(type(plugin).__name__, plugin.state_dict())
    return state


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize(
    ("kind", "tasks", "grouped"),
    [("plain", False, True), ("growing", False, True), ("masked", True, False), ("multi", True, True)],
)
def test_trains_in_every_pipeline_and_evaluation_leaves_no_trace(
    make_network, make_benchmark, differing, name, kind, tasks, grouped
) -> None:
    benchmark = make_benchmark(tasks=tasks, class_order=(5, 0, 3, 1, 4, 2), per_class=16)
    ends = []
    for evaluated in (False, True):
        network = make_network(kind, seed=1, dropout=0.2)
        start = copy.deepcopy(network.state_dict())
        optimizer = two_groups(network) if grouped else None
        strategy = naive(network, plugins_of(name, kind), optimizer=optimizer, epochs=3)
        for index, experience in enumerate(benchmark.train_stream):
            torch.manual_seed(index)  # Avalanche's loaders draw from the global generator in evaluation
            strategy.train(experience)
            if evaluated:
                before = ended(strategy)
                strategy.eval(benchmark.test_stream[: index + 1])
                assert differing(before, ended(strategy)) == []
            assert hooks(network) == 0
            seen = {p for group in strategy.optimizer.param_groups for p in group["params"]}
            assert set(network.parameters()) <= seen
        ends.append(ended(strategy))
        assert all(torch.isfinite(value).all() for value in network.state_dict().values())
        assert not torch.equal(start["encoder.1.weight"], network.state_dict()["encoder.1.weight"])
    assert differing(*ends) == []


@pytest.mark.parametrize("name", PLUGINS)
def test_it_acts(make_network, make_benchmark, differing, name) -> None:
    ends = []
    for acting in (False, True):
        network = make_network(seed=1)
        plugins = plugins_of(name) if acting else []
        strategy = naive(network, plugins)
        torch.manual_seed(1)
        strategy.train(make_benchmark().train_stream)
        ends.append({f"{n}": v for n, v in network.state_dict().items() if n.startswith("encoder")})
    assert "encoder.1.weight" in differing(*ends)


@pytest.fixture
def make_deep(make_network) -> Callable[[], nn.Module]:
    """Return a maker of networks whose encoder has a second layer, ``encoder.5``."""

    def make() -> nn.Module:
        network = make_network(seed=1, dropout=0.2)
        network.encoder.extend([nn.Linear(8, 8), nn.ReLU()])
        return network

    return make


@pytest.mark.parametrize("name", PLUGINS)
def test_frozen_parameters_stay(make_deep, make_benchmark, name) -> None:
    network = make_deep()
    frozen = [network.encoder[1].weight, network.encoder[1].bias, network.encoder[2].bias]
    before = [parameter.requires_grad_(False).clone() for parameter in frozen]
    strategy = naive(network, plugins_of(name))
    strategy.train(make_benchmark().train_stream)
    assert all(torch.equal(one, other) for one, other in zip(frozen, before, strict=True))
    assert not any(parameter.requires_grad for parameter in frozen)


@pytest.mark.parametrize("name", RECYCLING)
def test_layers_that_are_frozen_are_named(make_network, make_benchmark, name) -> None:
    network = make_network()
    network.encoder[1].weight.requires_grad_(False)
    strategy = naive(network, plugins_of(name))
    with pytest.raises(SettingError, match=r"no hidden units.*encoder\.1 is frozen"):
        strategy.train(make_benchmark().train_stream)


@pytest.mark.parametrize("make", [ReDoPlugin, ContinualBackpropPlugin])
def test_networks_that_cannot_be_traced_say_what_to_do(make_network, make_benchmark, make) -> None:
    benchmark = make_benchmark(tasks=True)
    strategy = naive(make_network("multi"), [make()])
    with pytest.raises(SettingError, match=r"cannot be traced.*Name its layers: layers="):
        strategy.train(benchmark.train_stream)
    network = make_network("multi")
    strategy = naive(network, [make(layers=heads(network))])  # names, of the heads that there are
    strategy.train(benchmark.train_stream)
    strategy = naive(make_network("multi"), [make(layers=[("encoder.1", "encoder.3", ("clasifier",))])])
    with pytest.raises(SettingError, match="Did you mean 'classifier'"):
        strategy.train(benchmark.train_stream)


def test_layers_as_a_function_follow_heads_that_are_added(make_network, make_benchmark) -> None:
    network = make_network("multi")
    plugin = ReDoPlugin(threshold=1000.0, interval=1, layers=heads)
    strategy = naive(network, [plugin], epochs=1)
    for index, experience in enumerate(make_benchmark(tasks=True).train_stream):
        strategy.train(experience)
        # Every unit was recycled after the epoch: nothing reads any of them, in any head.
        assert len(network.classifier.classifiers) == index + 1
        assert all(not head.classifier.weight.any() for head in network.classifier.classifiers.values())


class Raising(nn.Module):
    """Raises in its forward pass when armed."""

    def __init__(self) -> None:
        super().__init__()
        self.armed = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.armed:
            self.armed = False
            raise KeyError("in the network")
        return inputs


@pytest.mark.parametrize("moment", ["train", "eval"])
@pytest.mark.parametrize("name", PLUGINS)
def test_after_an_exception_training_goes_on(make_network, make_benchmark, differing, name, moment) -> None:
    benchmark = make_benchmark()
    ends = []
    for raising in (False, True):
        network = make_network(seed=1)
        network.encoder.insert(0, Raising())
        strategy = naive(network, plugins_of(name))
        torch.manual_seed(1)
        strategy.train(benchmark.train_stream[0])
        if raising:
            before = ended(strategy)
            network.encoder[0].armed = True
            with pytest.raises(KeyError, match="in the network"):
                strategy.eval(benchmark.test_stream) if moment == "eval" else strategy.train(benchmark.train_stream[0])
            strategy.eval(benchmark.test_stream[:1])
            assert hooks(network) == 0
            if moment == "eval":
                assert differing(before, ended(strategy)) == []
        torch.manual_seed(2)
        strategy.train(benchmark.train_stream[1])
        assert hooks(network) == 0
        assert strategy.clock.train_exp_counter == 2
        ends.append(ended(strategy))
    if moment == "eval" or name not in ("injection", "continual backprop"):  # which count experiences that have begun
        # The experience that raised has begun, too.
        ends = [{key: value for key, value in end.items() if not key.endswith("/experiences")} for end in ends]
        assert differing(*ends) == []


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("kind", ["plain", "growing"])
def test_deepcopy(make_network, make_benchmark, differing, name, kind) -> None:
    benchmark = make_benchmark()
    strategy = naive(make_network(kind, seed=1), plugins_of(name))
    strategy.train(benchmark.train_stream[0])
    twin = copy.deepcopy(strategy)
    ends = []
    for one in (strategy, twin):
        torch.manual_seed(1)
        one.train(benchmark.train_stream[1])
        one.eval(benchmark.test_stream[:2])
        ends.append(ended(one))
        assert one.plugins[0].method.module is one.model
    assert differing(*ends) == []


@pytest.mark.parametrize("name", PLUGINS)
@pytest.mark.parametrize("composed", ["replay", "lwf", "lr", "stopping"])
def test_beside_avalanches_own_plugins(make_network, make_benchmark, name, composed) -> None:
    network = make_network("growing" if composed != "stopping" else "plain", seed=1)
    optimizer = AdamW(network.parameters(), lr=0.02)
    other = {
        "replay": lambda: ReplayPlugin(mem_size=12),
        "lwf": lambda: LwFPlugin(alpha=0.5),
        "lr": lambda: LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1)),
        "stopping": lambda: EarlyStoppingPlugin(patience=1, val_stream_name="test_stream"),
    }[composed]()
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[], strict_checks=False)
    benchmark = make_benchmark(aware=True)
    for plugins in ([other, *plugins_of(name)],):
        strategy = naive(network, plugins, optimizer=optimizer, epochs=3, evaluator=evaluator)
        if composed == "stopping":
            strategy = naive(network, plugins, optimizer=optimizer, epochs=3, evaluator=evaluator, eval_every=1)
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[benchmark.test_stream])
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert hooks(network) == 0
    assert strategy.clock.train_exp_counter == 3


def everything() -> list[Any]:
    return [
        HareTortoisePlugin(momentum=0.7, reset_interval=3, reset_unit="steps"),
        *itertools.chain(*(plugins_of(name) for name in PLUGINS if name not in ("self-distillation", "injection"))),
        SelfDistillationPlugin(),
        ShrinkPerturbPlugin(noise=0.01),
        HeadResetPlugin(),
        PlasticityInjectionPlugin(),
    ]


def test_order_of_the_list_does_not_matter(make_deep, make_benchmark, differing) -> None:
    benchmark = make_benchmark()
    ends = []
    draw = torch.Generator().manual_seed(0)
    for trial in range(5):
        plugins = everything()
        # The two ReDo and the like are of one rank: in their order, as listed.
        order = list(range(len(plugins))) if trial == 0 else torch.randperm(len(plugins), generator=draw).tolist()
        kinds: dict[type, list[int]] = {}
        for place in sorted(order):
            kinds.setdefault(type(plugins[place]), []).append(place)
        queues = {kind: iter(places) for kind, places in kinds.items()}
        plugins = [plugins[next(queues[type(plugins[place])])] for place in order]
        strategy = naive(make_deep(), plugins)
        torch.manual_seed(1)
        strategy.train(benchmark.train_stream)
        ends.append(ended(strategy))
    assert all(differing(ends[0], end) == [] for end in ends[1:])


def test_plugins_can_be_added_and_removed_between_experiences(make_network, make_benchmark, differing) -> None:
    benchmark = make_benchmark()
    ends = []
    for added in (False, True):
        network = make_network(seed=1)
        strategy = naive(network, [RegenerativePlugin(strength=0.1)])
        torch.manual_seed(1)
        strategy.train(benchmark.train_stream[0])
        if added:  # it acts for both, then leaves
            strategy.plugins.insert(0, L2Plugin(strength=0.0))
            strategy.train(benchmark.train_stream[1])
            del strategy.plugins[0]
        else:
            strategy.train(benchmark.train_stream[1])
        strategy.train(benchmark.train_stream[2])
        ends.append(dict(network.state_dict()))
    assert differing(*ends) == []


@pytest.mark.parametrize("name", RECYCLING)
@pytest.mark.parametrize("treated", [True, False])
def test_tortoise_is_treated_alike(make_network, make_benchmark, recorder, name, treated) -> None:
    pairs = []
    for with_it in (False, True):
        network = make_network(seed=1)
        tortoise = HareTortoisePlugin(momentum=0.9, reset_interval=None)
        plugin = PLUGINS[name](reinitialize_tortoise=treated)[0]
        strategy = naive(network, [tortoise, *([plugin] if with_it else [])], epochs=1)
        torch.manual_seed(1)
        strategy.train(make_benchmark().train_stream[0])
        pairs.append((network.classifier.weight.detach().clone(), tortoise.tortoise.weights["classifier.weight"]))
    live, slow = pairs[1]
    zeroed = (live == 0).all(0)
    assert bool(zeroed.any()) == (name == "redo")  # in steps, a step follows
    assert bool((slow == 0).all(0).any()) == (name == "redo" and treated)
    if name == "redo":
        assert torch.equal((slow == 0).all(0), zeroed & treated)
        assert torch.equal(slow[:, ~zeroed], pairs[0][1][:, ~zeroed])


def by_kind(model: nn.Module) -> AdamW:
    """Weights and biases in groups of their own, as is common with weight decay."""
    named = list(model.named_parameters())
    return AdamW(
        [
            {"params": [p for name, p in named if name.endswith("weight")], "weight_decay": 0.5},
            {"params": [p for name, p in named if not name.endswith("weight")], "weight_decay": 0.0, "lr": 0.002},
        ],
        lr=0.02,
    )


@pytest.mark.parametrize("times", [1, 2, None])
@pytest.mark.parametrize("kind", ["plain", "growing", "masked"])
def test_injected_heads_in_avalanches_optimiser(make_network, make_benchmark, differing, kind, times) -> None:
    # Avalanche adds what its optimiser does not know before the next experience, and cannot guess between two groups.
    network = make_network(kind, seed=1)
    strategy = naive(network, [PlasticityInjectionPlugin(times=times)], optimizer=by_kind(network))
    for index, experience in enumerate(make_benchmark(6, per_class=16).train_stream):
        before = dict(copy.deepcopy(network.state_dict()))
        strategy.train(experience)
        after = network.state_dict()
        injected = index if times is None else min(index, times)
        head: Any = network.classifier
        for _ in range(injected):
            assert isinstance(head, InjectedHead)
            head = head.frozen
        assert not isinstance(head, InjectedHead)
        groups = strategy.optimizer.param_groups
        listed = [p for group in groups for p in group["params"]]
        # Each once, none from before it grew, each in the group of its kind.
        assert len(listed) == len(set(listed)) == len(list(network.parameters()))
        assert set(listed) == set(network.parameters())
        names = {p: name for name, p in network.named_parameters()}
        assert all(names[p].endswith("weight") for p in groups[0]["params"])
        assert not any(names[p].endswith("weight") for p in groups[1]["params"])
        frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
        assert {name.split(".")[1] for name in frozen} == ({"frozen", "offset"} if injected else set())
        for name in frozen:
            if injected > (index - 1 if times is None else min(index - 1, times)):  # a moment ago
                earlier = name.replace("classifier.frozen.", "classifier.", 1)
                if "offset" in name.split(".")[1]:
                    continue
            else:
                earlier = name
            if before[earlier].shape == after[name].shape:
                assert torch.equal(before[earlier], after[name])
        if injected and kind == "plain":
            assert not torch.equal(after["classifier.grown.weight"], after["classifier.offset.weight"])


def test_masked_logits_take_no_part_in_spectral_decoupling(make_network, make_benchmark) -> None:
    network = make_network("masked", seed=1)
    terms = []
    first, last = SupervisedPlugin(), SupervisedPlugin()
    first.before_backward = lambda strategy, **kwargs: terms.append(strategy.loss.item())
    last.before_backward = lambda strategy, **kwargs: terms.append(
        (strategy.loss - terms.pop()).item() - 0.1 / 2 * strategy.mb_output[:, :2].square().sum(1).mean().item()
    )
    strategy = naive(network, [first, SpectralDecouplingPlugin(strength=0.1), last])
    strategy.train(make_benchmark().train_stream[0])
    assert len(terms) == 6
    assert max(map(abs, terms)) < 1e-5
    assert (strategy.model.eval()(torch.zeros(1, 6))[:, 2:] == -1000).all()


def test_self_distillation_by_hand(make_network, make_benchmark) -> None:
    network = make_network(seed=1)
    terms: list[tuple[float, float]] = []
    tortoise = EMAPlugin(momentum=0.5)

    class ByHand(SupervisedPlugin):
        def before_forward(self, strategy: Any, **kwargs: Any) -> None:
            self.teacher = copy.deepcopy(strategy.model)
            self.teacher.load_state_dict(tortoise.tortoise.weights.state_dict())
            self.wanted = self.teacher.eval()(strategy.mb_x).softmax(1)

        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            logs = strategy.mb_output.log_softmax(1)
            wanted = (self.wanted * (self.wanted.log() - logs)).sum(1).mean()
            plain = functional.cross_entropy(strategy.mb_output, strategy.mb_y)
            terms.append(((strategy.loss - plain).item(), 3 * wanted.item()))

    strategy = naive(network, [tortoise, SelfDistillationPlugin(strength=3.0), ByHand()])
    strategy.train(make_benchmark().train_stream)
    assert len(terms) == 18
    assert all(abs(seen - wanted) < 1e-5 for seen, wanted in terms)
    assert max(wanted for _, wanted in terms) > 0.1


def test_self_distillation_needs_a_teacher(make_network, make_benchmark) -> None:
    strategy = naive(make_network(), [SelfDistillationPlugin()])
    with pytest.raises(SettingError, match="no teacher: put an EMAPlugin or a HareTortoisePlugin next to it"):
        strategy.train(make_benchmark().train_stream)


@pytest.mark.parametrize("make", [ReDoPlugin, OptimizerResetPlugin])
def test_intervals_longer_than_an_experience_are_reported_once(make_network, make_benchmark, make) -> None:
    strategy = naive(make_network(), [make(interval=5)], epochs=2)
    with pytest.warns(SettingWarning, match=rf"{make.kind.__name__}: interval = 5 epochs, and a phase has 2") as caught:
        strategy.train(make_benchmark().train_stream)
    assert len([w for w in caught if w.category is SettingWarning]) == 1
    for settings in ({"interval": 2}, {"interval": None}, {"interval": 100, "unit": "steps"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error", SettingWarning)
            naive(make_network(), [make(**settings)], epochs=2).train(make_benchmark().train_stream)


@pytest.mark.parametrize("boundaries", [True, False])
def test_online_streams_count_steps_over_all_sub_experiences(make_network, make_benchmark, boundaries) -> None:
    reset = OptimizerResetPlugin(interval=4, unit="steps")
    redo = ReDoPlugin(threshold=0.8, interval=4, unit="steps")
    backprop = ContinualBackpropPlugin(replacement_rate=0.1, maturity=2)
    strategy = naive(make_network("growing"), [reset, redo, backprop], epochs=1)
    stream = split_online_stream(make_benchmark().train_stream, 8, access_task_boundaries=boundaries, seed=0)
    for experience in with_classes_timeline(stream):
        strategy.train(experience)
    assert strategy.clock.train_exp_counter == strategy.clock.train_iterations == 9
    assert (reset.method.resets, redo.method.applications, backprop.method.steps) == (2, 2, 9)
    assert backprop.method.replacements > 0
    epochs = OptimizerResetPlugin()  # each sub-experience counts its epochs anew, and has one
    strategy = naive(make_network("growing"), [epochs], epochs=1)
    for experience in with_classes_timeline(stream):
        strategy.train(experience)
    assert epochs.method.resets == 9


def test_crelu_networks_are_recycled(make_benchmark) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), CReLU(), nn.Linear(8, 6))
    plugin = ReDoPlugin(threshold=1000.0, interval=1)
    naive(network, [plugin], epochs=1).train(make_benchmark().train_stream[0])
    assert plugin.method.recycled == 4
    assert len(plugin.method.batches) == 0  # or a checkpoint would hold images
    assert not network[3].weight.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2Plugin(strength=-1), "L2: strength = -1"),
        (lambda: L2Plugin(coupling="weights"), "L2: coupling = 'weights'.*decoupled.*loss"),
        (lambda: SpectralDecouplingPlugin(strength=-1), "SpectralDecoupling: strength = -1"),
        (lambda: RegenerativePlugin(strength=-1), "Regenerative: strength = -1"),
        (lambda: RegenerativePlugin(norm="l3"), "Regenerative: norm = 'l3'.*Did you mean"),
        (lambda: RegenerativePlugin(norm="l1", coupling="decoupled"), "accepted is norm = 'l2'"),
        (lambda: RegenerativePlugin(toward="zero"), "Regenerative: toward = 'zero'.*initial.*fresh"),
        (lambda: SelfDistillationPlugin(strength=-1), "SelfDistillation: strength = -1"),
        (lambda: SelfDistillationPlugin(temperature=0), "SelfDistillation: temperature = 0"),
        (lambda: UPGDPlugin(utility_decay=1.0), r"UPGD: utility_decay = 1\.0"),
        (lambda: UPGDPlugin(noise=-1), "UPGD: noise = -1"),
        (lambda: WeightClippingPlugin(factor=0), "WeightClipping: factor = 0"),
        (lambda: ContinualBackpropPlugin(replacement_rate=2), "ContinualBackprop: replacement_rate = 2"),
        (lambda: ContinualBackpropPlugin(maturity=-1, layers=heads), "ContinualBackprop: maturity = -1"),
        (lambda: ReDoPlugin(threshold=-1), "ReDo: threshold = -1"),
        (lambda: ReDoPlugin(interval=0), "ReDo: interval = 0"),
        (lambda: ReDoPlugin(unit="batches"), "ReDo: unit = 'batches'.*epochs.*steps"),
        (lambda: ReDoPlugin(batches=0, layers=[("a", "b", ("c",))]), "ReDo: batches = 0"),
        (lambda: OptimizerResetPlugin(interval=1.5), r"OptimizerReset: interval = 1\.5"),
        (lambda: OptimizerResetPlugin(unit="weeks"), "OptimizerReset: unit = 'weeks'"),
        (lambda: PlasticityInjectionPlugin(times=0), "PlasticityInjection: times = 0"),
        (lambda: PlasticityInjectionPlugin(seed="a"), "PlasticityInjection: seed = 'a'"),
    ],
)
def test_wrong_settings_are_refused_at_construction(make, message) -> None:
    with pytest.raises(SettingError, match=message):
        make()


def test_construction_draws_nothing() -> None:
    before = torch.get_rng_state()
    everything()
    assert torch.equal(before, torch.get_rng_state())


def test_defaults_are_those_of_the_methods_by_name() -> None:
    names = {
        "l2": L2Plugin,
        "spectral_decoupling": SpectralDecouplingPlugin,
        "regenerative": RegenerativePlugin,
        "self_distillation": SelfDistillationPlugin,
        "upgd": UPGDPlugin,
        "weight_clipping": WeightClippingPlugin,
        "continual_backprop": ContinualBackpropPlugin,
        "redo": ReDoPlugin,
        "optimizer_reset": OptimizerResetPlugin,
        "plasticity_injection": PlasticityInjectionPlugin,
    }
    for name, make in names.items():
        assert make().classes == (METHODS[name],)
        shown = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
        assert asdict(MethodConfig(name).settings[name]).items() <= shown.items()


def test_a_method_of_ones_own(make_network, make_benchmark, differing) -> None:
    class Own(L2):
        """As L2, under a name of its own, and not registered."""

        name, title = "own", "Own"

    ends = []
    for plugin in (MethodPlugin(Own, strength=0.5), L2Plugin(strength=0.5)):
        network = make_network(seed=1)
        torch.manual_seed(1)
        naive(network, [plugin]).train(make_benchmark().train_stream)
        ends.append(dict(network.state_dict()))
    assert differing(*ends) == []
    with pytest.raises(SettingError, match=r"MethodPlugin.*has no setting 'strenght'\. Did you mean 'strength'"):
        MethodPlugin(Own, strenght=0.5)


def test_decay_uses_the_learning_rate_of_each_group(make_network, make_benchmark) -> None:
    network = make_network(seed=1)
    rates = {"encoder.1.weight": 0.02, "classifier.weight": 0.005}
    optimizer = SGD(
        [{"params": network.encoder.parameters(), "lr": 0.02}, {"params": network.classifier.parameters(), "lr": 0.005}]
    )
    seen: list[dict[str, Any]] = []
    record = SupervisedPlugin()
    record.after_backward = lambda strategy, **kwargs: seen.append(
        {n: (p.detach().clone(), p.grad.clone()) for n, p in strategy.model.named_parameters()}
    )
    strategy = naive(network, [record, L2Plugin(strength=2.0)], optimizer=optimizer, epochs=1)
    strategy.train(make_benchmark().train_stream[0])
    seen.append({n: (p.detach(), None) for n, p in network.named_parameters()})
    for (before, after), (name, lr) in itertools.product(itertools.pairwise(seen), rates.items()):
        weight, gradient = before[name]
        torch.testing.assert_close(after[name][0], (1 - 2 * lr) * weight - lr * gradient, rtol=0, atol=1e-6)
