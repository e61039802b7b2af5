from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin, LwFPlugin, ReplayPlugin
from torch.optim import SGD, Adam, AdamW

from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    load_data,
    make_model,
    make_stream,
)
from strategies import (
    EMA,
    HareTortoise,
    HareTortoisePlugin,
    HeadReset,
    HeadResetPlugin,
    LimitedBuffer,
    LimitedBufferPlugin,
    PhaseTrainingPlugin,
    Plain,
    ShrinkPerturb,
    ShrinkPerturbPlugin,
    load_strategy,
    make_strategy,
    save_strategy,
    stream_benchmark,
)
from strategies.plugins import (
    ContinualBackpropPlugin,
    L2Plugin,
    OptimizerResetPlugin,
    PlasticityInjectionPlugin,
    ReDoPlugin,
    RegenerativePlugin,
    SelfDistillationPlugin,
    SpectralDecouplingPlugin,
    UPGDPlugin,
    WeightClippingPlugin,
)

Make = Callable[[], tuple[Any, Any]]


def all_plugins() -> list[Any]:
    return [
        PhaseTrainingPlugin(fresh_optimizer=False, seed=3),
        LimitedBufferPlugin(9, seed=1),
        ShrinkPerturbPlugin(noise=0.01),
        HeadResetPlugin(toward="fresh"),
        HareTortoisePlugin(momentum=0.7, reset_interval=5, reset_unit="steps", recalibrate_batchnorm=1),
    ]


def mechanisms() -> list[Any]:
    return [
        L2Plugin(coupling="loss", strength=0.01),
        SpectralDecouplingPlugin(),
        RegenerativePlugin(strength=0.1),
        RegenerativePlugin(strength=0.1, toward="fresh"),
        SelfDistillationPlugin(),
        UPGDPlugin(noise=0.1),
        WeightClippingPlugin(factor=0.8),
        ContinualBackpropPlugin(replacement_rate=0.1, maturity=2),
        ReDoPlugin(threshold=0.7, interval=3, unit="steps"),
        ReDoPlugin(threshold=0.7, interval=1),
        OptimizerResetPlugin(interval=5, unit="steps"),
    ]


CASES: dict[str, Any] = {
    "hare_tortoise": (HareTortoise, AdamW, "growing", lambda o: [], {"momentum": 0.8, "reset_interval": 2}),
    "ema": (EMA, Adam, "masked", lambda o: [], {"half_life": 3}),
    "shrink_perturb": (ShrinkPerturb, SGD, "plain", lambda o: [], {"noise": 0.1, "toward": "fresh"}),
    "head_reset": (HeadReset, AdamW, "growing", lambda o: [], {}),
    "limited_buffer": (LimitedBuffer, AdamW, "growing", lambda o: [], {"buffer_size": 9}),
    "all": (Plain, AdamW, "growing", lambda o: all_plugins(), {}),
    "mechanisms": (HareTortoise, AdamW, "growing", lambda o: mechanisms(), {"momentum": 0.8, "reset_interval": 2}),
    "injection": (EMA, AdamW, "plain", lambda o: [PlasticityInjectionPlugin(times=None)], {"momentum": 0.8}),
    "with_avalanches": (
        HareTortoise,
        AdamW,
        "growing",
        lambda o: [ReplayPlugin(mem_size=9), LwFPlugin(), LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(o, 1))],
        {"momentum": 0.8, "reset_interval": 2},
    ),
}


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_resumed_after_every_experience(
    tmp_path, make_network, make_benchmark, picture_of, differing, case, in_memory
) -> None:
    kind, optimizer_class, head, plugins, settings = CASES[case]

    def make(seed: int) -> tuple[Any, Any]:
        network = make_network(head, seed=seed, dropout=0.2)
        optimizer = optimizer_class(network.parameters(), lr=0.05)
        strategy = kind(
            model=network,
            optimizer=optimizer,
            train_mb_size=8,
            train_epochs=2,
            in_memory=in_memory,
            plugins=plugins(optimizer),
            evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[]),
            **settings,
        )
        return strategy, make_benchmark(aware=True, per_class=14, class_order=(3, 0, 5, 1, 4, 2))

    strategy, benchmark = make(1)
    torch.manual_seed(6)
    for experience in benchmark.train_stream:
        strategy.train(experience)
        metrics = strategy.eval(benchmark.test_stream)
    wanted = picture_of(strategy)

    path = tmp_path / "strategy"
    torch.manual_seed(6)
    for index in range(3):
        if index == 0:
            state = torch.get_rng_state()
        strategy, benchmark = make(1 if index == 0 else 100 + index)  # later ones are told all by the file
        if index == 0:
            torch.set_rng_state(state)
        strategy, done = load_strategy(strategy, path)
        assert done == index
        strategy.train(benchmark.train_stream[done])
        resumed_metrics = strategy.eval(benchmark.test_stream)
        save_strategy(strategy, path)
        torch.manual_seed(55)  # another process has other generators
    assert [
        name for name in differing(wanted, picture_of(strategy)) if not name.startswith("pointer") and name != "rng"
    ] == []
    assert metrics == resumed_metrics
    assert list(tmp_path.iterdir()) == [path]
    if hasattr(strategy, "trained_tortoise"):
        held = strategy.method.tortoise.weights.tensors
        assert strategy.method in strategy.plugins
        assert differing(dict(strategy.trained_tortoise().state_dict()), dict(held)) == []


@pytest.mark.parametrize("name", ["hare_tortoise+shrink_perturb+head_reset", "plain", "redo+continual_backprop+ema"])
def test_stream_strategies_resume_and_write_no_images(tmp_path, image_data, differing, name) -> None:
    method = MethodConfig(name, momentum=0.8, reset_interval=2, recalibrate_batchnorm=1, redo_interval=1)
    training = TrainingConfig(batch_size=16, augment="crop", fresh_optimizer=False)
    config = ContinualConfig(phases=3, epochs=2, access="new", noise="none")

    def make(seed: int) -> tuple[Any, Any]:
        stream = make_stream(image_data.train_labels, 3, config, seed=1)
        model = make_model(ModelConfig("mlp", hidden=(8,)), shape=image_data.shape, num_classes=3, seed=seed)
        strategy = make_strategy(model, image_data, method=method, training=training, seed=2, epochs=2)
        strategy.plugins.insert(0, LimitedBufferPlugin(20, seed=1))
        return strategy, stream_benchmark(image_data, stream, augment="crop")

    def rows(strategy: Any) -> Any:
        return next(plugin.rows for plugin in strategy.plugins if hasattr(plugin, "rows"))

    whole, benchmark = make(1)
    whole.train(benchmark.train_stream)
    path = tmp_path / "strategy"
    for index in range(3):
        resumed, benchmark = make(1 if index == 0 else 9)
        resumed, done = load_strategy(resumed, path)
        assert done == index
        resumed.train(benchmark.train_stream[done])
        save_strategy(resumed, path)
    assert rows(resumed) == rows(whole)
    assert differing(dict(whole.model.state_dict()), dict(resumed.model.state_dict())) == []
    images = [image_data.train_images, image_data.test_images]
    content = path.read_bytes()
    assert not any(tensor[0].numpy().tobytes() in content for tensor in images)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("plain", 1),
        ("ema+head_reset", 1),
        ("hare_tortoise+shrink_perturb", 1),
        ("l2+spectral_decoupling+upgd+weight_clipping+optimizer_reset", 1),
        ("regenerative+self_distillation", 1),
        ("redo+hare_tortoise", 1),
        ("continual_backprop", 1),
        ("plasticity_injection", 1),
        ("plasticity_injection", None),
        ("hare_tortoise+plasticity_injection+regenerative+continual_backprop+upgd", None),
    ],
)
def test_training_state_is_plain_and_continues_bit_for_bit(tmp_path, image_data, differing, name, times, fresh) -> None:
    method = MethodConfig(
        name,
        momentum=0.8,
        reset_interval=3,
        reset_unit="steps",
        noise=0.01,
        plasticity_injection_times=times,
        redo_threshold=0.7,
        redo_interval=1,
        continual_backprop_replacement_rate=0.1,
        continual_backprop_maturity=2,
    )
    training = TrainingConfig(batch_size=16, fresh_optimizer=fresh)
    stream = make_stream(image_data.train_labels, 3, ContinualConfig(phases=3, epochs=2), seed=1)
    benchmark = stream_benchmark(image_data, stream)

    def make(seed: int) -> Any:
        torch.manual_seed(seed)
        model = make_model(ModelConfig("mlp", hidden=(8, 6)), shape=image_data.shape, num_classes=3, seed=seed)
        return make_strategy(model, image_data, method=method, training=training, seed=2, epochs=2)

    whole = make(1)
    whole.train(benchmark.train_stream)
    path = tmp_path / "state"
    for index in range(3):
        resumed = make(1 if index == 0 else 9)
        if index > 0:
            resumed.load_training_state(torch.load(path, weights_only=True))
        resumed.train(benchmark.train_stream[index])
        torch.save(resumed.training_state(), path)
    assert resumed.measured == whole.measured
    assert len(whole.measured) == 6
    states = [strategy.training_state() for strategy in (whole, resumed)]
    assert differing(states[0]["model"], states[1]["model"]) == []
    assert states[0]["experiences"] == states[1]["experiences"] == 3


@pytest.mark.parametrize("in_memory", [False, True])
def test_default_evaluator_and_logger_can_be_saved(tmp_path, make_network, make_benchmark, capsys, in_memory) -> None:
    network = make_network()
    strategy = HareTortoise(
        model=network,
        optimizer=SGD(network.parameters(), lr=0.1),
        train_mb_size=8,
        eval_mb_size=4,
        in_memory=in_memory,
        evaluator=EvaluationPlugin(accuracy_metrics(stream=True), loggers=[InteractiveLogger()]),
    )
    strategy.train(make_benchmark().train_stream[0])
    save_strategy(strategy, str(tmp_path / "strategy"))
    strategy, done = load_strategy(strategy, str(tmp_path / "strategy"))
    assert done == 1
    strategy.train(make_benchmark().train_stream[1])
    strategy.eval(make_benchmark().test_stream[0])
    shown = capsys.readouterr().out
    assert "End of training phase" in shown
    assert "100%" in shown


def test_without_a_file_nothing_is_loaded(tmp_path, make_network) -> None:
    network = make_network()
    strategy = EMA(model=network, optimizer=SGD(network.parameters(), lr=0.1), evaluator=None)
    loaded, done = load_strategy(strategy, tmp_path / "none")
    assert loaded is strategy
    assert loaded.model is network
    assert done == 0


def test_a_failed_save_leaves_the_old_file(tmp_path, make_network) -> None:
    network = make_network()
    strategy = EMA(model=network, optimizer=SGD(network.parameters(), lr=0.1), evaluator=None)
    path = tmp_path / "strategy"
    save_strategy(strategy, path)
    content = path.read_bytes()
    strategy.cannot_be_pickled = (value for value in "a generator")
    with pytest.raises(TypeError, match="generator"):
        save_strategy(strategy, path)
    assert path.read_bytes() == content


def train_on(path: str, experiences: int) -> str:
    """Continue from `path` on so many experiences of the digits; returns all that was measured, and the weights."""
    data = load_data(DataConfig("digits", train_limit=200, test_limit=100))
    stream = make_stream(data.train_labels, 10, ContinualConfig(phases=3, epochs=2, access="new"), seed=0)
    benchmark = stream_benchmark(data, stream)
    model = make_model(ModelConfig("mlp", hidden=(8,)), shape=data.shape, num_classes=10, seed=0)
    method = MethodConfig(
        "hare_tortoise+shrink_perturb+head_reset", momentum=0.8, reset_interval=2, shrink_perturb_noise=0.01
    )
    strategy = make_strategy(model, data, method=method, training=TrainingConfig(batch_size=32), epochs=2)
    strategy.plugins.insert(0, LimitedBufferPlugin(30))
    strategy, done = load_strategy(strategy, path)
    strategy.train(benchmark.train_stream[done : done + experiences])
    save_strategy(strategy, path)
    weights = {name: value.double().sum().item() for name, value in strategy.model.state_dict().items()}
    return repr((strategy.measured, weights))


@pytest.mark.slow
@pytest.mark.timeout(900)  # importing avalanche alone takes long on a busy machine
def test_resumed_in_a_fresh_process(tmp_path) -> None:
    whole = train_on(str(tmp_path / "whole"), 3)
    path = str(tmp_path / "parts")
    train_on(path, 1)
    # In this process the images are still in memory; in the other they are not.
    code = "import runpy, sys, torch; torch.set_num_threads(1); runpy.run_path(sys.argv[1])['train_on'](sys.argv[2], 1)"
    command = [sys.executable, "-W", "ignore", "-c", code, __file__, path]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert train_on(path, 1) == whole
