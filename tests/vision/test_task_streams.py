"""Task streams: each against a construction by hand; packs, evaluation and resuming follow the tasks."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from ht_ray.errors import Interrupted, SettingError
from ht_ray.mechanisms import derive_seed, generator
from ht_ray.vision import (
    BitFlippingConfig,
    ImageData,
    InMemoryLoader,
    MethodConfig,
    ModelConfig,
    Normalise,
    Pack,
    Phase,
    Stream,
    TrainingConfig,
    TrainingRun,
    fit,
    hold_out,
    make_model,
    make_stream,
    plasticity,
    stream_config,
)
from ht_ray.vision.data.transforms import AddPattern, Blur, DrawnPermutation, Rotate
from ht_ray.vision.training.fit import train_phase

CLASSES = 6


@pytest.fixture(scope="module")
def data() -> ImageData:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (90, 1, 4, 6), generator=draw, dtype=torch.uint8)
    labels = torch.arange(90) % CLASSES
    names = tuple("abcdef")
    return ImageData("drawn", images[:60], labels[:60], images[60:], labels[60:], names, (0.5,), (0.3,))


def stream_of(data: ImageData, name: str, seed: int = 3, **settings: Any) -> Stream:
    return make_stream(data.train_labels, data.num_classes, stream_config(name, **settings), seed=seed)


def run_of(data: ImageData, stream: Stream, seed: int = 3, method: str = "plain", **settings: Any) -> TrainingRun:
    model = make_model(ModelConfig("mlp", hidden=(8,)), shape=data.shape, num_classes=data.num_classes, seed=seed)
    return TrainingRun(
        model, data, stream, method=MethodConfig(method, **settings), training=TrainingConfig(batch_size=16), seed=seed
    )


def test_permuted_inputs_are_those_of_one_order_of_pixels_in_training_and_in_the_test(data: ImageData) -> None:
    stream = stream_of(data, "permuted", tasks=2, task_samples=20)
    own = torch.randperm(60, generator=generator(3, "task samples"))[:20]
    normalise = Normalise(data.mean, data.std)
    for phase in stream:
        assert torch.equal(phase.indices, own) and torch.equal(phase.labels, data.train_labels[own])
        draw = generator(derive_seed(3, "permuted inputs", phase.index), "order of pixels")
        order = torch.randperm(24, generator=draw).tolist()
        loader = InMemoryLoader(
            data.train_images, own, own, normalise=normalise, batch_size=20, transform=phase.transform
        )
        ((batch, places),) = loader
        plain = normalise(data.train_images[places])
        for place, source in enumerate(order):
            assert torch.equal(batch.flatten(2)[:, :, place], plain.flatten(2)[:, :, source])
    run = run_of(data, stream)
    run.begin_phase()
    by_hand = torch.stack([normalise(data.test_images).flatten(2)[:, :, k] for k in run.loader.transform.order], 2)  # type: ignore[union-attr]
    logits = run.model.eval()(by_hand.view(30, 1, 4, 6))
    tested = run.evaluate()[0]
    assert tested.accuracy == pytest.approx((logits.argmax(1) == data.test_labels).double().mean().item())
    assert tested.loss == pytest.approx(functional.cross_entropy(logits, data.test_labels).item(), rel=1e-5)


def test_random_labels_are_drawn_anew_and_tested_on_themselves(data: ImageData) -> None:
    stream = stream_of(data, "random_labels", tasks=3, task_epochs=2, task_samples=30)
    for phase in stream:
        drawn = torch.randint(CLASSES, (30,), generator=generator(3, "random labels", phase.index))
        assert torch.equal(phase.labels, drawn) and torch.equal(phase.indices, stream[0].indices)
    assert not torch.equal(stream[0].labels, stream[1].labels)
    run = run_of(data, stream)
    run.begin_phase()
    assert torch.equal(run.tested.images, data.train_images[stream[0].indices])
    assert torch.equal(run.tested.labels, stream[0].labels)


def test_shuffled_classes_are_shuffled_in_the_test_too(data: ImageData) -> None:
    stream = stream_of(data, "shuffled_classes", tasks=2, task_samples=40)
    run = run_of(data, stream)
    run.begin_phase()
    new = torch.randperm(CLASSES, generator=generator(3, "shuffled classes", 0)).tolist()
    assert stream[0].labels.tolist() == [new[k] for k in data.train_labels[stream[0].indices]]
    assert run.tested.labels.tolist() == [new[k] for k in data.test_labels]


def test_classes_arrive_and_the_head_grows(data: ImageData) -> None:
    stream = stream_of(data, "class_incremental", classes_per_task=2, task_epochs=1)
    order = torch.randperm(CLASSES, generator=generator(3, "order of classes", 0)).tolist()
    assert [len(phase) for phase in stream] == [20, 40, 60] and [phase.new for phase in stream] == [20, 20, 20]
    run = run_of(data, stream)
    run.begin_phase()
    assert set(run.tested.labels.tolist()) == set(order[:2]) and len(run.tested.images) == 10
    seen = sorted(order[:2])
    logits = run.model.eval()(Normalise(data.mean, data.std)(run.tested.images))[:, seen]
    target = torch.tensor([seen.index(k) for k in run.tested.labels.tolist()])
    assert run.evaluate()[0].loss == pytest.approx(functional.cross_entropy(logits, target).item(), rel=1e-5)
    head = copy.deepcopy(run.model.head.state_dict())  # type: ignore[union-attr, operator]
    model = run.model
    fit(model, data, Stream("one", stream.phases[:1]), training=TrainingConfig(weight_decay=0, batch_size=16))
    others = sorted(order[2:])
    assert torch.equal(model.head[0].weight[others], head["0.weight"][others])  # type: ignore[index, union-attr]
    with pytest.raises(SettingError, match="3 tasks at most"):
        stream_of(data, "class_incremental", classes_per_task=2, tasks=4)


def test_hard_tasks_have_five_classes_and_easy_ones_another_for_as_many_steps(data: ImageData) -> None:
    stream = stream_of(data, "five_plus_one", tasks=4, task_epochs=2)
    order = torch.randperm(CLASSES, generator=generator(3, "order of classes", 1)).tolist()
    again = torch.randperm(CLASSES, generator=generator(3, "order of classes", 2)).tolist()
    del order, again
    sets = [set(phase.labels.tolist()) for phase in stream]
    assert [len(one) for one in sets] == [5, 1, 5, 1] and not sets[0] & sets[1] and not sets[2] & sets[3]
    assert [(len(phase), phase.epochs) for phase in stream] == [(50, 2), (10, 10)] * 2


def test_drift_is_slow_and_what_it_says() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert torch.allclose(Rotate(torch.tensor(0.0))(images), images, atol=1e-5)
    assert torch.allclose(Rotate(torch.tensor(90.0))(images), torch.rot90(images, 1, (2, 3)), atol=1e-4)
    wide = torch.arange(24.0).view(1, 1, 4, 6)
    assert torch.allclose(Rotate(torch.tensor(180.0))(wide), torch.rot90(wide, 2, (2, 3)), atol=1e-4)
    assert torch.equal(Blur.gaussian(0)(images), images)
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1
    weights = Blur.gaussian(1.0).weights
    assert torch.allclose(Blur.gaussian(1.0)(point)[0, 0, 1:8, 1:8], weights[:, None] * weights, atol=1e-7)
    config = stream_config("drifting", drift="noise", tasks=5)
    labels = torch.arange(4)
    patterns = [phase.transform.prepared(images.shape[1:], "cpu") for phase in make_stream(labels, 4, config, seed=0)]  # type: ignore[union-attr]
    assert all(isinstance(one, AddPattern) for one in patterns)
    assert not patterns[0](images).sub(images).any() and patterns[4](images).sub(images).std() > 0.5


def test_binary_tasks_have_two_classes_and_a_head_of_zeros(data: ImageData) -> None:
    stream = stream_of(data, "binary", tasks=4, task_epochs=1)
    order = torch.randperm(CLASSES, generator=generator(3, "order of classes", 0)).tolist()
    for place, phase in enumerate(stream.phases[:3]):
        first, second = order[2 * place : 2 * place + 2]
        own = data.train_labels[phase.indices]
        assert set(own.tolist()) == {first, second} and torch.equal(phase.labels, (own == second).long())
    run = run_of(data, stream, method="hare_tortoise", momentum=0.9, reset_interval=1)
    run.begin_phase()
    assert not run.model.head[0].weight.any() and not run.model.head[0].bias.any()  # type: ignore[index, union-attr]
    assert run.evaluate()[0].loss == pytest.approx(torch.tensor(2.0).log().item())
    assert set(run.tested.labels.tolist()) == {0, 1}
    assert run.method.tortoise is not None and not run.method.tortoise.weights["head.0.weight"].any()


def test_data_grow_without_noise(data: ImageData) -> None:
    stream = stream_of(data, "growing", tasks=3, task_epochs=1)
    assert [len(phase) for phase in stream] == [20, 40, 60] and stream.plain
    assert all(torch.equal(phase.labels, data.train_labels[phase.indices]) for phase in stream)


def test_one_bit_flips_with_each_task_and_the_target_is_of_threshold_units() -> None:
    config = BitFlippingConfig(tasks=4, task_samples=50, flip_inputs=6, flip_bits=4, flip_units=3)
    data = config.data(seed=1)
    bits = data.train_images.flatten(1).view(4, 50, 7)
    assert torch.equal(bits[:, :1, :4].expand(-1, 50, -1), bits[:, :, :4]) and bool((bits[:, :, 6] == 1).all())
    assert [int((a[0, :4] != b[0, :4]).sum()) for a, b in itertools.pairwise(bits)] == [1, 1, 1]
    draw = generator(1, "bit flipping: target")
    inner = (2 * torch.randint(2, (3, 7), generator=draw) - 1).tolist()
    outer = (2 * torch.randint(2, (3,), generator=draw) - 1).tolist()
    stream = make_stream(data.train_labels, 1, config, seed=1)
    for example, target in zip(bits[2].tolist(), stream[2].labels.tolist(), strict=True):
        active = [
            sum(w * x for w, x in zip(unit, example, strict=True)) > 7 * 0.7 - sum(w < 0 for w in unit)
            for unit in inner
        ]
        assert target == sum(o * a for o, a in zip(outer, active, strict=True))
    with pytest.raises(SettingError, match="makes its own data"):
        make_stream(data.train_labels, 2, config, seed=1)


def test_regression_reports_squared_error_and_r2(data: ImageData) -> None:
    targets = torch.linspace(-1, 1, 60)
    stream = Stream("regression", (Phase(0, 2, torch.arange(60), targets, 0.0, 60, tested_on="own"),))
    run = run_of(data, stream)
    rows = fit(run.model, data, stream, training=TrainingConfig(batch_size=16))
    predicted = run.model.eval()(Normalise(data.mean, data.std)(data.train_images))[:, 0]
    error = (predicted - targets).square().mean().item()
    assert rows[-1]["test_loss"] == pytest.approx(error, rel=1e-4)
    assert rows[-1]["test_accuracy"] == pytest.approx(1 - error / targets.var(correction=0).item(), rel=1e-4)
    assert rows[0]["train_accuracy"] == pytest.approx(1 - rows[0]["train_loss"] / targets.var(correction=0).item())


@pytest.mark.parametrize("name", ["permuted", "random_labels", "shuffled_classes"])
def test_packs_train_tasks_as_the_loop_does(data: ImageData, name: str) -> None:
    settings = {"tasks": 2, "task_epochs": 2, "task_samples": 40}
    alone = [run_of(data, stream_of(data, name, seed, **settings), seed) for seed in range(2)]
    packed = [run_of(data, stream_of(data, name, seed, **settings), seed) for seed in range(2)]
    pack = Pack(packed)
    while pack.runs:
        pack.train_phase()
    for run, other in zip(alone, packed, strict=True):
        rows = fit(run.model, data, run.stream, training=TrainingConfig(batch_size=16), seed=run.seed)
        assert [row["test_loss"] for row in rows] == pytest.approx([row["test_loss"] for row in other.rows], rel=1e-3)


@pytest.mark.parametrize("name", ["class_incremental", "binary", "five_plus_one"])
def test_what_does_not_pack_says_so(data: ImageData, name: str) -> None:
    stream = stream_of(data, name, task_epochs=1, **({} if name == "class_incremental" else {"tasks": 2}))
    assert stream_config(name).not_packed
    with pytest.raises(SettingError, match="cannot be packed: a phase of its stream"):
        Pack([run_of(data, stream)])


def test_a_run_goes_on_within_a_task_and_refuses_other_tasks(data: ImageData, tmp_path: Path) -> None:
    stream = stream_of(data, "permuted", tasks=2, task_epochs=2)
    whole = run_of(data, stream)
    rows = fit(whole.model, data, stream, training=TrainingConfig(batch_size=16))
    halted = run_of(data, stream)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 2

    file = tmp_path / "state.pt"
    from ht_ray.errors import Interrupted

    with pytest.raises(Interrupted):
        fit(halted.model, data, stream, training=TrainingConfig(batch_size=16), checkpoint=file, stop=stop)
    again = run_of(data, stream)
    assert fit(again.model, data, stream, training=TrainingConfig(batch_size=16), checkpoint=file) == rows
    other = Stream("permuted", (stream[0], Phase(**{**vars(stream[1]), "transform": DrawnPermutation(1)})))
    with pytest.raises(ValueError, match="another phases"):
        fit(run_of(data, other).model, data, other, training=TrainingConfig(batch_size=16), checkpoint=file)


def test_plasticity_is_the_slope_over_tasks() -> None:
    rows = [{"phase": k, "train_accuracy": 0.5 - 0.01 * k + e} for k in range(1, 9) for e in (-0.1, 0.1)]
    assert plasticity(rows) == pytest.approx({"average_online_accuracy": 0.455, "plasticity_slope": -0.01})


def accuracy_on(run: TrainingRun, phase: Phase) -> float:
    """By hand: the share of a task's test samples that are right, among the outputs that count."""
    images = run.normalise(run.test_images)
    relabel = torch.arange(CLASSES) if phase.relabel is None else phase.relabel
    labels = relabel[run.test_labels]
    logits = run.model.eval()(images if phase.transform is None else phase.transform(images)).detach()
    logits = logits if phase.outputs is None else logits[:, phase.outputs]
    classes = torch.arange(CLASSES) if phase.outputs is None else phase.outputs.nonzero().flatten()
    counted = labels >= 0
    return float((classes[logits.argmax(1)] == labels)[counted].double().mean())


@pytest.mark.parametrize("name", ["permuted", "class_incremental", "binary", "shuffled_classes", "five_plus_one"])
def test_matrix_has_the_accuracy_on_each_task_after_each(data: ImageData, name: str) -> None:
    tasks = {} if name == "class_incremental" else {"tasks": 3}
    settings = {"classes_per_task": 2} if name == "class_incremental" else {}
    stream = stream_of(data, name, task_epochs=1, **tasks, **settings)
    model = make_model(ModelConfig("mlp", hidden=(8,)), shape=data.shape, num_classes=CLASSES, seed=3)
    training = TrainingConfig(batch_size=16)
    usual = run_of(data, stream)
    run = TrainingRun(model, data, stream, training=training, seed=3, accuracy_matrix=True)
    untrained = [accuracy_on(run, phase) for phase in stream]
    for _ in stream:
        train_phase(run)
        train_phase(usual)
        after = [run.rows[-1][f"test_accuracy_on_{task}"] for task in range(1, len(stream) + 1)]
        assert after == pytest.approx([accuracy_on(run, phase) for phase in stream])
        assert after[run.phase - 1] == run.rows[-1]["test_accuracy"]
        # Training is the same without it.
        assert {name: run.rows[-1][name] for name in usual.rows[-1]} == usual.rows[-1]
    assert [run.rows[0][f"test_accuracy_untrained_on_{task}"] for task in (1, 2, 3)] == pytest.approx(untrained)


def test_stream_accuracy_weighs_tasks_by_their_samples() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 1, 4, 4), generator=draw, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    data = ImageData("drawn", images, labels, images, labels, tuple("abcd"), (0.5,), (0.3,))
    parts = torch.arange(10), torch.arange(10, 40)
    stream = Stream(
        "own",
        tuple(
            Phase(k, 20, part, labels[part], 0.0, len(part), test_indices=part, test_labels=labels[part])
            for k, part in enumerate(parts)
        ),
    )
    model = make_model(ModelConfig("mlp", hidden=(32,)), shape=data.shape, num_classes=4, seed=0)
    row = fit(model, data, stream, training=TrainingConfig(batch_size=8), accuracy_matrix=True)[-1]
    first, second = row["test_accuracy_on_1"], row["test_accuracy_on_2"]
    assert row["test_stream_accuracy"] == pytest.approx(0.25 * first + 0.75 * second)
    assert row["test_accuracy"] == second and second > first
    assert not stream.plain


def test_a_run_with_a_matrix_that_is_stopped_before_the_first_task_ends_goes_on(data: ImageData) -> None:
    stream = stream_of(data, "permuted", tasks=2, task_epochs=2, task_samples=32)

    def run() -> TrainingRun:
        model = make_model(ModelConfig("mlp", hidden=(8,)), shape=data.shape, num_classes=CLASSES, seed=3)
        return TrainingRun(model, data, stream, training=TrainingConfig(batch_size=16), seed=3, accuracy_matrix=True)

    whole, first, second = run(), run(), run()
    while not whole.done:
        train_phase(whole)

    def stop() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train_phase(first, between=stop)
    second.load_state_dict(first.state_dict(), "memory")
    while not second.done:
        train_phase(second)
    assert second.rows == whole.rows
    with pytest.raises(ValueError, match="another accuracy_matrix"):
        second.load_state_dict(run_of(data, stream).state_dict(), "memory")


def test_a_matrix_is_refused_where_tasks_have_no_tests_of_their_own_or_are_too_many(data: ImageData) -> None:
    model = make_model(ModelConfig("mlp", hidden=(8,)), shape=data.shape, num_classes=CLASSES, seed=3)
    for name, tasks, message in [
        ("growing", 3, "accepted are tasks with tests of their own"),
        ("permuted", 201, "has 201 tasks: accepted are 2 to 200"),
        ("permuted", 1, "has 1 task: accepted are 2 to 200"),
    ]:
        with pytest.raises(SettingError, match=message):
            fit(model, data, stream_of(data, name, tasks=tasks, task_epochs=1), accuracy_matrix=True)
    run = TrainingRun(model, data, stream_of(data, "permuted", tasks=2, task_samples=20), accuracy_matrix=True)
    with pytest.raises(SettingError, match="it has an accuracy matrix"):
        Pack([run])
    held_out = hold_out(data, 0.2)[0]
    phase = Phase(
        0, 1, torch.arange(4), torch.arange(4), 0.0, 4, test_indices=torch.arange(4), test_labels=torch.arange(4)
    )
    with pytest.raises(SettingError, match="have test sets of their own, which a validation part has not"):
        fit(model, held_out, Stream("own", (phase,)))
