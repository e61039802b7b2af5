"""Runs that are trained as a pack are the runs that `fit` trains alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import Interrupted, SettingError
from ht_ray.methods import METHODS, Method
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    Normalise,
    TrainingConfig,
    fit,
    load_checkpoint,
    load_data,
    make_model,
    make_stream,
    save_checkpoint,
    summarise,
)
from ht_ray.vision.training.pack import Pack, obstacle_to_packing
from ht_ray.vision.training.run import TrainingRun

# Phases of a few steps: the tortoise's momentum is small in them, and the warnings are beside the point.
pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")

SETTINGS: dict[str, Any] = {"momentum": 0.8, "reset_interval": 2}
PACKED = [
    MethodConfig("plain"),
    MethodConfig("ema", **SETTINGS),
    MethodConfig("hare_tortoise", **SETTINGS),
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=7, reset_unit="steps", optimizer_state="clear"),
    MethodConfig("shrink_perturb", shrink_perturb_noise=0.01),
    MethodConfig("shrink_perturb+hare_tortoise", shrink_perturb_interval=50, shrink_perturb_perturb=0.1, **SETTINGS),
    MethodConfig("head_reset+ema", **SETTINGS),
    MethodConfig("l2"),
    MethodConfig("l2", l2_coupling="loss", l2_strength=1e-3),
    MethodConfig("regenerative"),
    MethodConfig("regenerative", regenerative_norm="l1"),
    MethodConfig("regenerative", regenerative_coupling="decoupled", regenerative_strength=0.1),
    MethodConfig("spectral_decoupling"),
    MethodConfig("self_distillation", self_distillation_temperature=2.0, **SETTINGS),
    MethodConfig("optimizer_reset", optimizer_reset_interval=30, optimizer_reset_unit="steps"),
    # Each reset lets Adam divide by moments of one step, and so enlarge rounding: a few of them.
    MethodConfig("optimizer_reset", optimizer_reset_interval=5),
    MethodConfig("adam"),
    MethodConfig("weight_clipping", weight_clipping_factor=0.8),
    MethodConfig("upgd", upgd_noise=0.01),
    MethodConfig("augment"),
    MethodConfig("fire+hare_tortoise", **SETTINGS),
    MethodConfig("dash+ema", **SETTINGS),
    MethodConfig("parseval"),
    MethodConfig("spectral_regularization", spectral_regularization_strength=0.01),
    MethodConfig("wasserstein"),
    MethodConfig("normalize_and_project", normalize_and_project_strength=0.5),
    MethodConfig("layer_norm"),
    MethodConfig("crelu"),
    MethodConfig("deep_fourier"),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=2),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=3, redo_unit="steps"),
    MethodConfig("redo", redo_threshold=0.7, redo_interval=2, redo_step_count="reset"),
    MethodConfig("ema", momentum=0.8, recalibrate_batchnorm=2),
    MethodConfig("ema", momentum=0.95, momentum_warmup=0.75),
    MethodConfig("hare_tortoise", momentum=0.9, momentum_warmup=1.0, reset_only=("head",), reset_schedule=(2, 1)),
    MethodConfig(
        "hare_tortoise+l2+regenerative+spectral_decoupling+self_distillation+upgd+weight_clipping+redo"
        "+shrink_perturb+head_reset+optimizer_reset",
        redo_threshold=0.7,
        **SETTINGS,
    ),
]
ALONE = {"aid", "continual_backprop", "muon", "plasticity_injection", "regrama", "snr", "trac", "weight_consolidation"}


def label(method: MethodConfig) -> str:
    return f"{method.name}-{PACKED.index(method)}"


def data() -> ImageData:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (62,), generator=draw)
    images = torch.randint(0, 256, (62, 1, 6, 6), dtype=torch.uint8, generator=draw)
    return ImageData("random", images, labels, images[:20], labels[:20], ("a", "b", "c"), (0.5,), (0.25,))


DATA = data()
# A bias before BatchNorm has no gradient but rounding, which Adam with its usual epsilon makes steps of.
TRAINING = TrainingConfig(batch_size=8, learning_rate=0.01, eps=1e-6)


def make_run(
    method: MethodConfig, seed: int = 0, *, phases: int = 2, epochs: int = 3, double: bool = False, **chosen: Any
) -> TrainingRun:
    model = make_model(
        method.model(ModelConfig("mlp", hidden=(12, 9))), shape=DATA.shape, num_classes=3, seed=chosen.get("draw", seed)
    )
    stream = make_stream(DATA.train_labels, 3, ContinualConfig(phases=phases, epochs=epochs), seed=seed)
    return TrainingRun(
        model.double() if double else model,
        DATA,
        stream,
        method=method,
        training=chosen.get("training", TRAINING),
        seed=seed,
        indicators=chosen.get("indicators"),
        evaluate_every=chosen.get("evaluate_every", 1),
    )


def alone(run: TrainingRun, method: MethodConfig, training: TrainingConfig = TRAINING) -> TrainingRun:
    """Train a copy of a run with `fit`, and return the run as it is then."""
    twin = copy.deepcopy(run.model)
    acting = method.build(twin, seed=run.seed)
    rows = fit(twin, DATA, run.stream, method=acting, training=training, seed=run.seed)
    other = TrainingRun(twin, DATA, run.stream, method=acting, seed=run.seed)
    other.rows = rows
    return other


def train(runs: Sequence[TrainingRun]) -> None:
    pack = Pack(runs)
    while pack.runs:
        for _, diverged in pack.train_phase():
            assert diverged is None


def obstacle(run: TrainingRun) -> str:
    return obstacle_to_packing(run.model, run.method, run.config)


def tensors(run: TrainingRun) -> dict[str, Tensor]:
    held = {f"hare.{name}": tensor for name, tensor in run.model.state_dict().items()}
    if run.method.tortoise is not None:
        held |= {f"tortoise.{name}": tensor for name, tensor in run.method.tortoise.weights.tensors.items()}
    return {name: tensor.clone() for name, tensor in held.items()}


def assert_same_bits(one: TrainingRun, other: TrainingRun) -> None:
    assert one.rows == other.rows
    left, right = tensors(one), tensors(other)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs in float64, in which rounding is far from what is looked for."""
    single = Normalise.__call__
    for name in ("__call__", "in_two_steps"):
        monkeypatch.setattr(Normalise, name, lambda self, images: single(self, images).double())


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("method", PACKED, ids=label)
def test_each_method_in_a_pack_is_that_method_alone(method: MethodConfig) -> None:
    # 17 epochs of 4 steps with half of the data, and as many of 8 with all of it: 204 steps.
    runs = [make_run(method, seed, epochs=17, double=True) for seed in range(3)]
    assert sum(phase.epochs * -(-len(phase) // 8) for phase in runs[0].stream) == 204
    singles = [alone(run, method) for run in runs]
    train(runs)
    for run, single in zip(runs, singles, strict=True):
        assert len(run.rows) == len(single.rows)
        for row, expected in zip(run.rows, single.rows, strict=True):
            # The plain loop sums the training loss up in 32 bits.
            assert row.pop("train_loss") == pytest.approx(expected.pop("train_loss"), rel=1e-6)
            assert row == pytest.approx(expected, rel=1e-9, abs=1e-9)
        left, right = tensors(run), tensors(single)
        for name in right:
            torch.testing.assert_close(left[name], right[name], rtol=1e-9, atol=1e-9, msg=lambda text, n=name: n + text)
        for mine, other in zip(run.method.methods, single.method.methods, strict=True):
            for counter in ("updates", "resets", "steps", "applications", "recycled"):
                if isinstance(getattr(other, counter, None), int):
                    assert getattr(mine, counter) == getattr(other, counter), counter


MIXED = [*(MethodConfig(name, **SETTINGS) for name in ("plain", "hare_tortoise", "ema", "l2")), PACKED[-1], PACKED[13]]


def mixed(seeds: Sequence[int] = range(12)) -> list[TrainingRun]:
    """Return runs of several methods, seeds and learning rates."""
    return [
        make_run(
            MIXED[seed % len(MIXED)],
            seed,
            training=TrainingConfig(batch_size=8, learning_rate=0.01 if seed % 2 else 0.003, eps=1e-6),
            evaluate_every=2 if seed % 3 else 1,
        )
        for seed in seeds
    ]


@pytest.fixture(scope="module")
def together() -> list[TrainingRun]:
    runs = mixed()
    train(runs)
    return runs


@pytest.mark.parametrize("seeds", [[0], [4], [3, 7], [1, 4, 5], [11, 2, 8, 10, 6, 0, 9]])
def test_a_run_does_not_depend_on_who_else_is_in_the_pack(seeds: list[int], together: list[TrainingRun]) -> None:
    runs = mixed(seeds)
    train(runs)
    for seed, run in zip(seeds, runs, strict=True):
        assert_same_bits(run, together[seed])


def test_gradients_that_lie_otherwise_in_memory_train_alike(
    together: list[TrainingRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fused AdamW walks in memory order, weights and gradients, is in the same order."""
    turned, grad = 0, torch.autograd.grad

    def turning(*arguments: Any, **given: Any) -> list[Tensor]:
        nonlocal turned
        gradients = list(grad(*arguments, **given))
        for number, gradient in enumerate(gradients):
            if gradient is not None and gradient.dim() == 3:
                turned += 1
                gradients[number] = gradient.transpose(1, 2).contiguous().transpose(1, 2)
        return gradients

    monkeypatch.setattr(torch.autograd, "grad", turning)
    runs = mixed([3, 7])
    train(runs)
    assert turned
    for seed, run in zip((3, 7), runs, strict=True):
        assert_same_bits(run, together[seed])


def test_runs_that_are_saved_anywhere_go_on_as_if_nothing_had_been(tmp_path: Path, together: list[TrainingRun]) -> None:
    pack, asked = Pack(mixed()), 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == 2

    pack.train_phase()
    # The second phase is left after two of its epochs, and half of the runs are as they were before it.
    states = [copy.deepcopy(run.state_dict()) for run in pack.runs]
    with pytest.raises(Interrupted, match="in phase 2"):
        pack.train_phase(stop)
    for number in range(0, 12, 2):
        states[number] = copy.deepcopy(pack.runs[number].state_dict())
    again = mixed()
    for number, (run, state) in enumerate(zip(again, states, strict=True)):
        run.load_state_dict(state, "memory")
        assert (run.phase, run.epoch) == (1, 0 if number % 2 else 2)
    first, second = Pack(again[:5]), Pack(again[5:])
    for part in (first, second):
        while part.runs:
            part.train_phase()
    # The pack that was interrupted goes on, too.
    rest = list(pack.runs)
    while pack.runs:
        pack.train_phase()
    for run, other, expected in zip(again, rest, together, strict=True):
        assert_same_bits(run, expected)
        assert_same_bits(other, expected)


def test_what_a_pack_saved_is_continued_alone(tmp_path: Path) -> None:
    runs = [make_run(MIXED[1], seed) for seed in range(3)]
    pack = Pack(runs)
    pack.train_phase()
    save_checkpoint(runs[1].state_dict(), tmp_path / "run.pt")
    saved = load_checkpoint(tmp_path / "run.pt")["model"].values()
    assert {value.untyped_storage().nbytes() // value.element_size() - value.numel() for value in saved} == {0}
    model = make_run(MIXED[1], 1).model
    rows = fit(model, DATA, runs[1].stream, method=MIXED[1], training=TRAINING, seed=1, checkpoint=tmp_path / "run.pt")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[:3] == runs[1].rows


def test_one_that_diverges_leaves_the_pack_and_harms_nobody(together: list[TrainingRun]) -> None:
    broken = make_run(MIXED[1], 3)
    runs = mixed([0, 1, 2, 3])
    pack = Pack([*runs[:2], broken, *runs[2:]])
    with torch.no_grad():
        broken.model.head[0].weight[0, 0] = torch.nan
    ended = pack.train_phase()
    assert [(run, diverged is None) for run, diverged in ended] == [(run, run is not broken) for run, _ in ended]
    assert len(ended) == 5
    assert "training loss nan in phase 1, epoch 1" in str(next(e for run, e in ended if run is broken))
    assert pack.runs == runs
    pack.drop(runs[3])
    pack.train_phase()
    for run, expected in zip(runs[:3], together, strict=False):
        assert_same_bits(run, expected)
    assert runs[3].phase == 1


def test_indicators_are_those_of_the_runs_own_networks() -> None:
    config = IndicatorConfig(every=2, samples=16)
    runs = [make_run(MIXED[1], seed, indicators=config, double=False) for seed in range(3)]
    singles = [
        fit(
            copy.deepcopy(run.model),
            DATA,
            run.stream,
            method=MIXED[1],
            training=TRAINING,
            seed=run.seed,
            indicators=config,
        )
        for run in runs
    ]
    train(runs)
    for run, rows in zip(runs, singles, strict=True):
        for row, expected in zip(run.rows, rows, strict=True):
            assert row.keys() == expected.keys()
            assert row == pytest.approx(expected, rel=0.05, abs=0.05, nan_ok=True)


def test_the_runs_module_is_never_left_without_its_tensors() -> None:
    runs = mixed([1, 2])
    pack = Pack(runs)
    pack.train_phase()
    before = tensors(runs[0])
    trained = runs[0].method.tortoise.trained_tortoise()
    assert all(parameter.is_contiguous() for parameter in runs[0].model.parameters())
    pack.train_phase()
    assert any(not torch.equal(before[name], value) for name, value in tensors(runs[0]).items())
    assert all(torch.equal(value, before[f"tortoise.{name}"]) for name, value in trained.state_dict().items())


class Counts(Method):
    """Counts and halves the head now and then; knows nothing of packs."""

    name, title, rank = "counts", "Counts", 9

    def __init__(self, module: torch.nn.Module, settings: Any = None, **chosen: Any) -> None:
        super().__init__(module, settings, **chosen)
        self.steps = 0

    @torch.no_grad()
    def after_step(self, optimizer: Any = None, tortoise: Any = None) -> None:
        self.steps += 1
        if self.steps % 5 == 0:
            self.module.head[-1].weight *= 0.5


@pytest.mark.usefixtures("double")
def test_a_method_of_ones_own_that_acts_between_steps_packs_as_it_is() -> None:
    runs = []
    for _ in range(2):
        model = make_run(MIXED[0], 0, double=True).model
        stream = make_run(MIXED[0], 0).stream
        runs.append(TrainingRun(model, DATA, stream, method=Counts(model), training=TRAINING, seed=0))
    single = copy.deepcopy(runs[0].model)
    fit(single, DATA, runs[0].stream, method=Counts(single), training=TRAINING, seed=0)
    train(runs)
    for run in runs:
        assert run.method.by_name["counts"].steps == 36
        for left, right in zip(run.model.parameters(), single.parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


class Replaces(Counts):
    """Gives its network another parameter, which the pack does not hold."""

    name = "replaces"

    def after_step(self, optimizer: Any = None, tortoise: Any = None) -> None:
        self.steps += 1
        head = self.module.head[-1]
        if self.steps == 3:
            head.weight.data = head.weight.detach().clone()


class Grows(Counts):
    """Gives its network another layer before the second phase."""

    name = "grows"

    def before_phase(self, phase: Any = None, optimizer: Any = None, tortoise: Any = None) -> None:
        if phase.number == 1:
            self.module.head[-1] = torch.nn.Linear(self.module.head[-1].in_features, 4)


@pytest.mark.parametrize("kind", [Replaces, Grows])
def test_what_a_pack_cannot_follow_is_told(kind: type[Counts]) -> None:
    first = make_run(MIXED[0], 0)
    model = make_run(MIXED[0], 1).model
    pack = Pack([first, TrainingRun(model, DATA, first.stream, method=kind(model), training=TRAINING, seed=1)])
    with pytest.raises(RuntimeError, match=f"{kind.name}: a method has replaced tensors of its network"):
        pack.train_phase()
        pack.train_phase()


class Watches(Counts):
    name = "watches"

    def before_step(self, optimizer: Any) -> None:
        self.seen = True


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_packs_or_says_why_not(name: str) -> None:
    reason = obstacle(make_run(MethodConfig(name, **SETTINGS)))
    assert (reason != "") == (name in ALONE), reason
    if name not in ALONE and name != "tortoise":
        assert any(name in method.parts for method in PACKED), "a method that packs is compared with itself alone"


def test_what_cannot_be_packed_is_refused_with_the_reason() -> None:
    fine = make_run(MIXED[0])
    model = make_run(MIXED[0]).model
    watching = TrainingRun(model, DATA, fine.stream, method=Watches(model), training=TRAINING)
    other_batch = make_run(MIXED[0], training=TrainingConfig(batch_size=16))
    with pytest.raises(SettingError, match="run 1 cannot be packed: watches acts within every step"):
        Pack([fine, watching])
    with pytest.raises(SettingError, match="run 1 differs from run 0 in its network, data, batch size"):
        Pack([fine, other_batch])
    with pytest.raises(SettingError, match=r"runs = \[\]"):
        Pack([])
    for config, reason in [
        (ModelConfig("mlp", hidden=(4,), dropout=0.1), "the network has Dropout"),
        (ModelConfig("resnet18", width=0.1), "the network has"),
    ]:
        net = make_model(config, shape=DATA.shape, num_classes=3, seed=0)
        assert reason in obstacle(TrainingRun(net, DATA, fine.stream))
    half = TrainingRun(fine.model, DATA, fine.stream, training=TrainingConfig(precision="bf16"))
    assert obstacle(half) == "precision is bf16"
    tied = make_run(MIXED[0])
    tied.model.head.append(torch.nn.ReLU())
    tied.model.head.append(torch.nn.Linear(3, 3))
    tied.model.head[-1].weight = torch.nn.Parameter(torch.zeros(3, 3))
    assert obstacle(tied) == ""
    tied.model.head.append(tied.model.head[-1])
    assert obstacle(tied) == "layers of the network share tensors"
    frozen = make_run(MIXED[0])
    next(frozen.model.parameters()).requires_grad_(False)
    assert "frozen" in obstacle(frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [MethodConfig("plain"), MethodConfig("hare_tortoise", momentum=0.97, reset_interval=1)]
)
def test_accuracies_over_seeds_are_distributed_as_those_of_runs_alone(method: MethodConfig) -> None:
    data = load_data(DataConfig("digits"))
    runs = []
    for seed in range(20):
        model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=seed)
        stream = make_stream(data.train_labels, 10, ContinualConfig(phases=3, epochs=5), seed=seed)
        training = TrainingConfig(batch_size=32)
        runs.append(TrainingRun(model, data, stream, method=method, training=training, seed=seed))
    single = [
        fit(
            copy.deepcopy(run.model),
            data,
            run.stream,
            method=method,
            training=TrainingConfig(batch_size=32),
            seed=run.seed,
        )
        for run in runs
    ]
    train(runs)
    for measure in ("average_accuracy", "final_accuracy", "final_train_accuracy"):
        packed = np.array([summarise(run.rows)[measure] for run in runs])
        alone = np.array([summarise(rows)[measure] for rows in single])
        assert stats.ks_2samp(packed, alone).pvalue > 0.3
        assert abs(packed.mean() - alone.mean()) < 0.5 * alone.std(ddof=1) / np.sqrt(len(alone)) + 1e-3
        assert packed.std(ddof=1) == pytest.approx(alone.std(ddof=1), rel=0.25)
