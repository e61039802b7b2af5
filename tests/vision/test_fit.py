"""The plain loop is the loop that one would write by hand, and a run that was killed is the run that was not."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import SettingError
from ht_ray.mechanisms import SettingWarning, generator
from ht_ray.methods import HareTortoise, Method, Tortoise
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    Diverged,
    ImageData,
    MethodConfig,
    ModelConfig,
    Network,
    Normalise,
    Stream,
    TrainingConfig,
    continual,
    evaluate,
    fit,
    load_checkpoint,
    load_data,
    make_model,
    save_checkpoint,
    summarise,
)
from ht_ray.vision.training.epoch_sums import EpochSums

# Phases of a few steps: the tortoise's momentum is small in them, and the warnings are beside the point.
pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")


def make_data(channels: int = 1, side: int = 6) -> ImageData:
    draw = torch.Generator().manual_seed(0)
    centres = torch.rand((4, channels, side, side), generator=draw) * 150

    def split(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.arange(count) % 4
        noise = torch.rand((count, channels, side, side), generator=draw) * 100
        return (centres[labels] + noise).to(torch.uint8), labels

    images, labels = split(120)
    tests = split(40)
    scaled = images.float() / 255
    mean, std = tuple(scaled.mean((0, 2, 3)).tolist()), tuple(scaled.std((0, 2, 3)).tolist())
    return ImageData("blobs", images, labels, *tests, ("a", "b", "c", "d"), mean, std)


DATA = make_data()
STREAM = continual(DATA.train_labels, 4, ContinualConfig(phases=3, epochs=2, noise="0.4,0.2,0"), seed=0)
TRAINING = TrainingConfig(batch_size=16, learning_rate=0.01)
METHOD = MethodConfig("hare_tortoise", momentum=0.8, reset_interval=2)


def make_net(seed: int = 0, dropout: float = 0.1, data: ImageData = DATA) -> Network:
    return make_model(ModelConfig("mlp", hidden=(12,), dropout=dropout), shape=data.shape, num_classes=4, seed=seed)


def run(net: nn.Module | None = None, **chosen) -> tuple[nn.Module, list[dict[str, float]]]:
    net = net or make_net()
    settings = {"training": TRAINING} | chosen
    return net, fit(net, DATA, settings.pop("stream", STREAM), **settings)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def by_hand(net: nn.Module, *, method: MethodConfig, fresh: bool = True) -> list[list[float]]:
    """Train as `fit` should, with torch's own scheduler and a tortoise written out."""
    rows = []
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    normalise = Normalise(DATA.mean, DATA.std)
    predict = method.name == "hare_tortoise"
    for phase in STREAM:
        if fresh or phase.index == 0:
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=1e-4, fused=True)
        steps = math.ceil(len(phase) / 16)
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)
            group["lr"] = 0.01
        warm = 0.1 * steps * phase.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k, warm=warm: min(1.0, k / warm))
        for epoch in range(1, phase.epochs + 1):
            net.train()
            order = torch.randperm(len(phase), generator=generator(0, "shuffle", phase.index, epoch))
            losses, right = [], 0
            for chosen in order.split(16):
                optimizer.zero_grad()
                labels = phase.labels[chosen]
                logits = net(normalise(DATA.train_images[phase.indices[chosen]]))
                loss = functional.cross_entropy(logits, labels)
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                for name, tensor in net.state_dict().items():
                    if tensor.is_floating_point():
                        average[name] = average[name].lerp(tensor, 1 - method.momentum)
                    else:
                        average[name] = tensor.clone()
                losses.append(loss.item() * len(labels))
                right += int((logits.argmax(1) == labels).sum())
            if predict and method.reset_interval and epoch % method.reset_interval == 0:
                net.load_state_dict(average)
            predicting = copy.deepcopy(net).eval()
            if predict:
                predicting.load_state_dict(average)
            with torch.no_grad():
                logits = predicting(normalise(DATA.test_images))
            test_loss = functional.cross_entropy(logits, DATA.test_labels).item()
            test_accuracy = (logits.argmax(1) == DATA.test_labels).double().mean().item()
            rows.append([sum(losses) / len(phase), right / len(phase), test_loss, test_accuracy])
    return rows


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("method", [MethodConfig("plain"), METHOD])
def test_it_is_the_loop_that_one_would_write_by_hand(method: MethodConfig, fresh: bool) -> None:
    assert all(len(phase) % 16 != 1 for phase in STREAM)
    training = TrainingConfig(batch_size=16, learning_rate=0.01, fresh_optimizer=fresh)
    net, rows = run(make_net(dropout=0), method=method, training=training)
    other = make_net(dropout=0)
    expected = by_hand(other, method=method, fresh=fresh)
    assert_same(net, other)
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    found = [[row[name] for name in names] for row in rows]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-6, atol=0)
    assert [(row["step"], row["phase"], row["epoch"]) for row in rows] == [
        (1, 1, 1), (2, 1, 2), (3, 2, 1), (4, 2, 2), (5, 3, 1), (6, 3, 2),
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    augmented = TrainingConfig(batch_size=16, learning_rate=0.01, augment="crop")
    whole = TrainingConfig(batch_size=120, learning_rate=0.01, augment="crop", clip=None)
    for training in (TRAINING, augmented, whole):
        (net, rows), (again, same), (_, other) = (
            run(make_net(dropout=0), training=training, seed=k) for k in (0, 0, 1)
        )
        assert rows == same
        assert_same(net, again)
        assert rows[1]["train_loss"] != other[1]["train_loss"]
    assert run(training=augmented)[1] != run(training=TRAINING)[1]


def test_dropout_is_drawn_from_the_runs_seed_whatever_the_global_generator_holds() -> None:
    torch.manual_seed(1)
    _, rows = run()
    torch.manual_seed(2)
    assert run()[1] == rows
    assert run(make_net(dropout=0))[1] != rows


def test_dropout_differs_between_epochs_and_phases() -> None:
    net, states = make_net(), []
    net.register_forward_pre_hook(lambda *_: states.append(torch.random.get_rng_state()) if net.training else None)
    run(net)
    assert (
        len({bytes(state.tolist()) for state in states})
        == len(states)
        == sum(math.ceil(len(phase) / 16) * phase.epochs for phase in STREAM)
    )


class Killed(Exception):
    pass


METHODS = [
    MethodConfig("plain"),
    METHOD,
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=5, reset_unit="steps", optimizer_state="clear"),
    MethodConfig("ema+head_reset", momentum=0.9, toward="fresh", recalibrate_batchnorm=2),
    MethodConfig(
        "hare_tortoise+shrink_perturb",
        momentum=0.9,
        reset_interval=1,
        shrink_perturb_noise=0.01,
        reset_at_phase_end=False,
    ),
    MethodConfig("shrink_perturb+head_reset", shrink_perturb_ratio=0.3, toward="fresh"),
]


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_run_killed_in_any_phase_and_resumed_is_the_uninterrupted_one(method, fresh: bool, tmp_path: Path) -> None:
    training = TrainingConfig(batch_size=16, learning_rate=0.01, fresh_optimizer=fresh, augment="crop")
    net, rows = run(method=method, training=training)
    for stop in (3, 5, 6):  # in the second phase, and in the third
        file = tmp_path / f"{stop}.pt"

        def kill(row: dict[str, float], stop: int = stop) -> None:
            if row["step"] == stop:
                raise Killed

        with pytest.raises(Killed):
            run(method=method, training=training, checkpoint=file, on_epoch=kill)
        torch.manual_seed(stop)
        resumed, found = run(make_net(seed=9), method=method, training=training, checkpoint=file)
        assert found == rows
        assert_same(net, resumed)
    seen: list[dict[str, float]] = []
    finished, found = run(make_net(seed=9), method=method, training=training, checkpoint=file, on_epoch=seen.append)
    assert found == rows
    assert seen == []
    assert_same(net, finished)


def test_a_checkpoint_is_plain_data_in_a_folder_made_for_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "run.pt"
    net, rows = run(method=METHOD, checkpoint=str(file))
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]
    state = torch.load(file, weights_only=True)
    assert state["rows"] == rows
    assert state["phases"] == 3
    for name, tensor in net.state_dict().items():
        assert torch.equal(state["model"][name], tensor)
        # The reset of each phase's second epoch has just happened.
        assert torch.equal(state["method"]["hare_tortoise"]["weights"][name], tensor)


def test_the_hare_may_enter_the_next_phase_unreset(tmp_path: Path) -> None:
    method = MethodConfig("hare_tortoise", momentum=0.8, reset_interval=2, reset_at_phase_end=False)
    net, _ = run(method=method, checkpoint=tmp_path / "run.pt")
    state = load_checkpoint(tmp_path / "run.pt")["method"]["hare_tortoise"]
    assert (state["resets"], state["epochs"]) == (0, 2)
    assert not torch.equal(state["weights"]["head.0.weight"], net.head[0].weight)


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        ("another method", {"method": METHOD}),
        ("another seed", {"seed": 7}),
        ("another training", {"training": replace(TRAINING, learning_rate=0.5)}),
        ("another phases", {"stream": Stream("short", STREAM.phases[:2])}),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, named: str, changed: dict[str, object]) -> None:
    file = tmp_path / "run.pt"
    run(method=MethodConfig("plain"), checkpoint=file)
    with pytest.raises(ValueError, match=named):
        run(**{"method": MethodConfig("plain"), "checkpoint": file} | changed)


def test_a_given_method_has_the_tortoise_afterwards() -> None:
    net = make_net()
    acting = METHOD.build(net, seed=0)
    _, rows = run(net, method=acting)
    twin, same = run(method=METHOD)
    assert rows == same
    assert_same(net, twin)
    assert acting.tortoise is not None
    assert acting.tortoise.updates > 0


def test_a_checkpoint_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    save_checkpoint({"value": torch.ones(2)}, file)
    with pytest.raises(AttributeError):
        save_checkpoint({"value": lambda: None}, file)
    assert torch.equal(load_checkpoint(file)["value"], torch.ones(2))


NEUTRAL = [
    MethodConfig("ema", momentum=0.9, recalibrate_batchnorm=2),
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=None),
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=3),
    MethodConfig("hare_tortoise", momentum=0.0, reset_interval=1),
    MethodConfig("shrink_perturb", shrink_perturb_ratio=0.0),
    MethodConfig("shrink_perturb", shrink_perturb_ratio=0.0, toward="fresh"),
]


@pytest.mark.parametrize("method", NEUTRAL, ids=lambda method: method.name)
def test_a_method_that_reads_off_is_the_plain_method(method: MethodConfig) -> None:
    plain, expected = run()
    net, rows = run(method=method)
    assert_same(plain, net)
    for row, other in zip(rows, expected, strict=True):
        assert (row["train_loss"], row["train_accuracy"]) == (other["train_loss"], other["train_accuracy"])
    assert (rows == expected) == (method.name == "shrink_perturb" or method.momentum == 0)


@pytest.mark.parametrize("name", ["hare_tortoise", "shrink_perturb", "head_reset"])
def test_a_method_that_reads_on_is_not(name: str) -> None:
    plain, _ = run()
    net, _ = run(method=MethodConfig(name, momentum=0.9, reset_interval=1))
    assert not torch.equal(plain.head[0].weight, net.head[0].weight)


def test_an_optimizer_that_is_kept_matters_from_the_second_phase_on() -> None:
    _, fresh = run()
    _, kept = run(training=TrainingConfig(batch_size=16, learning_rate=0.01, fresh_optimizer=False))
    assert fresh[:2] == kept[:2]
    assert all(one["train_loss"] != other["train_loss"] for one, other in zip(fresh[2:], kept[2:], strict=True))


def test_the_metrics_are_those_of_the_network_that_predicts(tmp_path: Path) -> None:
    method = MethodConfig("ema", momentum=0.9)
    net, rows = run(method=method, checkpoint=tmp_path / "run.pt")
    normalise = Normalise(DATA.mean, DATA.std)
    hare = evaluate(net, DATA.test_images, DATA.test_labels, normalise)
    net.load_state_dict(load_checkpoint(tmp_path / "run.pt")["method"]["ema"]["weights"])
    tortoise = evaluate(net, DATA.test_images, DATA.test_labels, normalise)
    assert (rows[-1]["test_loss"], rows[-1]["test_accuracy"]) == tortoise != hare


def test_each_epoch_is_told_when_it_was_measured() -> None:
    told: list[dict[str, float]] = []
    parameters = []
    net = make_net()

    def note(row: dict[str, float]) -> None:
        told.append(dict(row))
        parameters.append(net.head[0].weight.detach().clone())

    _, rows = run(net, on_epoch=note)
    assert told == rows
    assert all(not torch.equal(a, b) for a, b in pairwise(parameters))


@pytest.mark.parametrize("method", [MethodConfig("plain"), METHOD])
def test_how_often_it_is_tested_changes_nothing_else(method: MethodConfig, tmp_path: Path) -> None:
    stream = continual(DATA.train_labels, 4, ContinualConfig(phases=2, epochs=5, noise="0.4,0"), seed=0)
    every, rows = run(stream=stream, method=method)
    for between in (2, 3, 100):
        seldom, found = run(stream=stream, method=method, evaluate_every=between)
        assert_same(every, seldom)
        assert found == [row for row in rows if row["epoch"] % between == 0 or row["epoch"] == 5]
    # An epoch with indicators is tested, too; a run that was killed after a phase goes on counting.
    indicators = IndicatorConfig(every=2, names=("weights",))
    settings = {"method": method, "evaluate_every": 3, "indicators": indicators}
    whole = run(stream=stream, **settings)[1]
    assert [(row["step"], row["epoch"], "weight_magnitude" in row) for row in whole] == [
        *((epoch, epoch, epoch != 3) for epoch in (2, 3, 4, 5)),
        *((5 + epoch, epoch, epoch != 3) for epoch in (2, 3, 4, 5)),
    ]
    path = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(stream=stream, checkpoint=path, on_epoch=stop_in_the_second_phase, **settings)
    assert run(stream=stream, checkpoint=path, **settings)[1] == whole
    with pytest.raises(ValueError, match="another evaluate_every"):
        run(stream=stream, checkpoint=path, **(settings | {"evaluate_every": 1}))


def stop_in_the_second_phase(row: dict[str, float]) -> None:
    if row["phase"] == 2:
        raise KeyboardInterrupt


def test_how_often_it_is_tested_must_be_a_number_of_epochs() -> None:
    with pytest.raises(SettingError, match="evaluate_every = 0"):
        run(evaluate_every=0)


def test_a_run_that_diverges_says_where() -> None:
    with pytest.raises(Diverged, match=r"training loss (nan|inf) in phase 1, epoch 1"):
        run(training=TrainingConfig(batch_size=16, learning_rate=1e38, clip=None, warmup_ratio=0))


def test_clipping_bounds_the_step_and_may_be_switched_off() -> None:
    _, clipped = run()
    _, free = run(training=TrainingConfig(batch_size=16, learning_rate=0.01, clip=None))
    _, loose = run(training=TrainingConfig(batch_size=16, learning_rate=0.01, clip=1e9))
    assert clipped != free
    assert free == loose


COLOUR = make_data(channels=3, side=8)
ONE_PHASE = continual(COLOUR.train_labels, 4, ContinualConfig(phases=1, epochs=2, noise="none"), seed=0)


def conv_run(**chosen) -> list[dict[str, float]]:
    net = make_model(ModelConfig("resnet18", width=1 / 16), shape=COLOUR.shape, num_classes=4, seed=0)
    dtypes = set()
    net.head.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    training = TrainingConfig(batch_size=40, learning_rate=0.01, **chosen)
    rows = fit(net, COLOUR, ONE_PHASE, method=METHOD, training=training)
    assert dtypes == {torch.bfloat16 if chosen.get("precision") == "bf16" else torch.float32}
    assert all(p.dtype == torch.float32 for p in net.parameters())
    convolution = net.backbone.get_parameter(next(n for n, p in net.backbone.named_parameters() if p.dim() == 4))
    assert convolution.is_contiguous(memory_format=torch.channels_last) or not chosen.get("channels_last")
    return rows


def test_bf16_and_channels_last_train_nearly_the_same() -> None:
    expected = conv_run()
    last = conv_run(channels_last=True, augment="none")
    narrow = conv_run(precision="bf16", channels_last=True)
    for row, same, near in zip(expected, last, narrow, strict=True):
        assert same["train_loss"] == pytest.approx(row["train_loss"], rel=1e-2)
        assert near["train_loss"] == pytest.approx(row["train_loss"], rel=0.1)
        assert near["train_loss"] != row["train_loss"]
        assert math.isfinite(near["test_loss"])


def test_a_compiled_forward_is_used_in_training() -> None:
    _, expected = run(make_net(dropout=0), method=METHOD)
    net = make_net(dropout=0)
    compiled = torch.compile(net, backend="eager")
    calls = []

    def forward(batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        return compiled(batch)

    _, rows = run(net, method=METHOD, forward=forward)
    assert sum(calls) == sum(len(phase) * phase.epochs for phase in STREAM)
    assert rows == expected


def test_generators_threads_and_data_are_left_alone() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    images, labels = DATA.train_images.clone(), DATA.train_labels.clone()
    run(method=METHODS[4], training=TrainingConfig(batch_size=16, augment="crop_flip"))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(images, DATA.train_images)
    assert torch.equal(labels, DATA.train_labels)


def test_frozen_parameters_stay() -> None:
    net = make_net()
    net.head.requires_grad_(False)
    before = net.head[0].weight.clone()
    run(net, method=MethodConfig("hare_tortoise+shrink_perturb", momentum=0.8, reset_interval=1))
    assert torch.equal(net.head[0].weight, before)


def test_settings_that_cannot_work_are_warned_of() -> None:
    with pytest.warns(SettingWarning, match="longer than a phase"):
        run(method=MethodConfig("hare_tortoise", momentum=0.999))


def test_a_runs_measures_are_means_over_phases_and_epochs() -> None:
    accuracies = [(1, 0.1), (1, 0.4), (2, 0.2), (2, 0.6), (3, 0.5)]
    rows = [
        {"phase": phase, "test_accuracy": accuracy, "train_accuracy": accuracy / 2} for phase, accuracy in accuracies
    ]
    found = summarise(rows)
    assert found["average_accuracy"] == pytest.approx((0.4 + 0.6 + 0.5) / 3)
    assert found["final_accuracy"] == 0.5
    assert found["online_accuracy"] == pytest.approx(1.8 / 5)
    assert found["first_accuracy"] == 0.4
    assert found["final_train_accuracy"] == 0.25


def test_a_stream_without_phases_trains_nothing() -> None:
    net = make_net()
    before = copy.deepcopy(net)
    assert run(net, stream=Stream("empty", ()))[1] == []
    assert_same(net, before)


@pytest.mark.slow
@pytest.mark.data
def test_mnist_is_learned() -> None:
    data = load_data(DataConfig("mnist", root=os.environ["HT_RAY_DATA"], download=False))
    stream = continual(data.train_labels, 10, ContinualConfig(phases=1, epochs=3, noise="none"), seed=0)
    net = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=0)
    rows = fit(net, data, stream, method=MethodConfig("hare_tortoise", momentum=0.99, reset_interval=1))
    assert rows[-1]["test_accuracy"] > 0.95


class _Replacing(Method):
    """Puts a new parameter in the place of the head's weight, in the middle of an epoch."""

    name, title, rank = "replacing", "Replacing", 5

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.steps, self.gradients = 0, []

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        self.steps += 1
        layer = self.module.head[0]
        self.gradients.append(torch.stack([p.grad.norm() for p in self.module.parameters()]).norm().item())
        if self.steps == 3:
            old = layer.weight
            layer.weight = nn.Parameter(old.detach().clone())
            (group,) = optimizer.param_groups
            group["params"] = [layer.weight if p is old else p for p in group["params"]]
            optimizer.state[layer.weight] = optimizer.state.pop(old)


def test_a_parameter_that_is_replaced_between_two_steps_is_trained_on_clipped_and_followed() -> None:
    training = TrainingConfig(batch_size=16, learning_rate=0.01, clip=0.05)
    plain, ordinary = make_net(), make_net()
    replacing = _Replacing(plain)
    rows = fit(plain, DATA, STREAM, method=replacing + HareTortoise(plain, momentum=0.8), training=training)
    assert rows == fit(ordinary, DATA, STREAM, method=HareTortoise(ordinary, momentum=0.8), training=training)
    assert_same(plain, ordinary)
    assert max(replacing.gradients) < 0.0501


def test_the_sums_of_an_epoch_are_those_of_adding_at_each_step() -> None:
    draw = torch.Generator().manual_seed(0)
    sums, loss_sum, correct = EpochSums(), torch.zeros(()), 0
    for size in [32] * 200 + [7]:
        logits, labels = torch.randn((size, 10), generator=draw), torch.randint(10, (size,), generator=draw)
        loss = functional.cross_entropy(logits, labels)
        sums.add(loss, logits, labels)
        loss_sum += loss * size
        correct += int((logits.argmax(1) == labels).sum())
    assert sums.total() == (loss_sum.item(), correct, 6407)
    assert sums.total() == (0.0, 0, 0)
