"""Vision trials that are interrupted inside phases report what they report undisturbed, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from hypothesis import given, settings
from hypothesis import strategies as st

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.sweep import Interrupted, Report
from ht_ray.vision import (
    METHODS,
    ContinualConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    WarmStartConfig,
)
from tune_configs.vision_trial import VisionTrial

pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")

SETTINGS: dict[str, Any] = {
    "momentum": 0.8,
    "reset_interval": 2,
    "shrink_perturb_noise": 0.01,
    "redo_threshold": 0.7,
    "redo_interval": 2,
    "snr_longest": 40,
    "snr_interval": 2,
    "continual_backprop_replacement_rate": 0.1,
    "continual_backprop_maturity": 2,
    "optimizer_reset_interval": 3,
    "optimizer_reset_unit": "steps",
}
EVERYTHING = MethodConfig(
    "+".join(name for name in METHODS if name not in ("plain", "ema", "layer_norm", "crelu", "deep_fourier")),
    injection_times=None,
    recalibrate_batchnorm=2,
    **SETTINGS,
)
FOUND = [
    *(MethodConfig(name, **SETTINGS) for name in METHODS),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=5, reset_unit="steps", optimizer_state="clear"),
    MethodConfig("hare_tortoise", momentum=0.8, reset_interval=3, reset_at_phase_end=False, recalibrate_batchnorm=2),
    MethodConfig("ema+shrink_perturb+head_reset", momentum=0.8, toward="fresh", reinitialise_tortoise=False),
    # An epoch has fewer batches than are scored, and the next score is due in the next epoch.
    MethodConfig("redo", redo_threshold=0.7, redo_interval=5, redo_unit="steps", redo_batches=9),
    MethodConfig("augment+redo", redo_threshold=0.7, redo_interval=1, redo_batches=5),
    MethodConfig("regenerative", regenerative_toward="fresh"),
    MethodConfig("plasticity_injection+hare_tortoise+redo", injection_times=None, **SETTINGS),
    EVERYTHING,
]
STREAM = ContinualConfig(phases=3, epochs=4, access="buffer", buffer_size=10)

Position = tuple[int, int]


def images() -> Any:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (48,), generator=draw)
    pictures = torch.randint(0, 256, (48, 1, 6, 6), dtype=torch.uint8, generator=draw)
    data = ImageData("random", pictures, labels, pictures[:20], labels[:20], ("a", "b", "c"), (0.5,), (0.25,))
    return data.to_arrays()


def config_of(
    method: MethodConfig, stream: ContinualConfig | WarmStartConfig = STREAM, *, fresh: bool = True, **changes: Any
) -> dict[str, Any]:
    model = method.model(ModelConfig("mlp", hidden=(8, 6), dropout=0.2))
    kind = "continual" if isinstance(stream, ContinualConfig) else "warm_start"
    return {
        "model": asdict(model),
        "stream": {"kind": kind, **asdict(stream)},
        "training": asdict(TrainingConfig(batch_size=8, learning_rate=0.01, fresh_optimizer=fresh)),
        "indicators": asdict(IndicatorConfig(every=2, names=("weights", "units"))),
        "evaluate_every": 1,
        "method": asdict(method),
        "device": "cpu",
        "seed": 3,
    } | changes


class Interrupting(SupervisedPlugin):  # type: ignore[misc]
    """Interrupts a trial in the middle of epochs, given as (phase, epoch), from 1; each once."""

    def __init__(self, trial: VisionTrial, positions: set[Position]) -> None:
        super().__init__()
        self.trial, self.positions = trial, positions

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        position = (strategy.clock.train_exp_counter + 1, strategy.clock.train_exp_epochs + 1)
        if position in self.positions:
            self.positions.discard(position)
            self.trial.interrupt()


def reports(
    config: dict[str, Any],
    interruptions: Iterable[Position] = (),
    renew: Callable[[int], Path | None] = lambda count: None,
) -> tuple[list[Report], dict[str, Any], int]:
    """Run a trial to its end; return its reports, its state, and how often it was interrupted.

    `renew` is given the number of the interruption, and says where to save for another object, if that is to go on.
    """
    left = set(interruptions)

    def new_trial() -> VisionTrial:
        trial = VisionTrial(config, images())
        trial.strategy.plugins.append(Interrupting(trial, left))
        return trial

    trial, found, count = new_trial(), [], 0
    while not found or found[-1].progress < 1:
        try:
            found.append(trial.advance())
        except Interrupted:
            count += 1
            directory = renew(count)
            if directory is not None:
                directory.mkdir()
                trial.save(directory)
                trial = new_trial()
                trial.load(directory)
                torch.manual_seed(count)  # another process has other generators
    return found, trial.strategy.training_state(), count


def differing(one: Any, other: Any, where: str = "") -> Iterator[str]:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            yield from differing(one[name], other[name], f"{where}/{name}")
    elif isinstance(one, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from differing(*pair, f"{where}/{index}")
    elif not (torch.equal(one, other) if torch.is_tensor(one) else one == other):
        yield where


def assert_same(whole: tuple[list[Report], dict[str, Any], int], interrupted: Any, count: int) -> None:
    assert interrupted[0] == whole[0]
    assert list(differing(whole[1], interrupted[1])) == []
    assert (whole[2], interrupted[2]) == (0, count)


@pytest.mark.parametrize(
    ("method", "fresh"),
    [*((method, True) for method in FOUND), *((method, False) for method in FOUND[-8:])],
    ids=lambda value: value if isinstance(value, bool) else value.name if len(value.parts) < 5 else "everything",
)
def test_every_method(method: MethodConfig, fresh: bool, tmp_path: Path) -> None:
    stream = replace(STREAM, access="buffer" if fresh else "full")
    config = config_of(method, stream, fresh=fresh, evaluate_every=1 if fresh else 3)
    whole = reports(config)
    assert [report.samples for report in whole[0]] == [4 * n for n in ((16, 26, 26) if fresh else (16, 32, 48))]
    at = [(1, 1), (2, 1), (2, 3), (3, 2)]
    assert_same(whole, reports(config, at), 4)
    assert_same(whole, reports(config, at, lambda count: tmp_path / str(count)), 4)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), method=st.sampled_from(FOUND[-6:]))
def test_interrupted_at_random_again_and_again(
    data: st.DataObject, method: MethodConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stream = WarmStartConfig(subset_ratio=0.5, warm_epochs=7, epochs=6)
    config = config_of(method, stream, fresh=data.draw(st.booleans()), evaluate_every=data.draw(st.integers(1, 4)))
    places = st.tuples(st.sampled_from([1, 2]), st.integers(1, 5))
    at = data.draw(st.sets(places, max_size=8))
    moves = data.draw(st.lists(st.booleans(), min_size=len(at), max_size=len(at)))
    tmp_path = tmp_path_factory.mktemp("trial")
    interrupted = reports(config, at, lambda count: tmp_path / str(count) if moves[count - 1] else None)
    assert_same(reports(config), interrupted, len(at))


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (ModelConfig("resnet18", width=0.05), TrainingConfig(batch_size=16, augment="crop_flip", precision="bf16")),
        (ModelConfig("vit_tiny", width=0.1), TrainingConfig(batch_size=16, augment="crop", warmup_ratio=0.6)),
    ],
    ids=["resnet18", "vit_tiny"],
)
def test_other_networks(model: ModelConfig, training: TrainingConfig, tmp_path: Path) -> None:
    stream = ContinualConfig(phases=2, epochs=3)
    method = MethodConfig("hare_tortoise+head_reset", momentum=0.7, reset_interval=2)
    config = config_of(method, stream, model=asdict(model), training=asdict(training))
    assert_same(reports(config), reports(config, [(1, 2), (2, 1)], lambda count: tmp_path / str(count)), 2)


def test_an_interruption_waits_and_happens_once() -> None:
    config = config_of(MethodConfig("hare_tortoise", momentum=0.8))
    trial = VisionTrial(config, images())
    caller = threading.Thread(target=lambda: [trial.interrupt() for _ in range(3)])
    caller.start()
    caller.join()
    with pytest.raises(Interrupted, match="after epoch 1 of experience 0"):
        trial.advance()
    assert len(trial.rows) == 1
    first = trial.advance()
    assert first == reports(config)[0][0]
    trial.advance()
    assert trial.phase == 2


def test_the_last_epoch_of_a_phase_is_its_end() -> None:
    config = config_of(MethodConfig("plain"))
    left = {(1, 4)}
    trial = VisionTrial(config, images())
    trial.strategy.plugins.append(Interrupting(trial, left))
    assert trial.advance().progress == pytest.approx(1 / 3)
    assert not left
    with pytest.raises(Interrupted, match="after epoch 1 of experience 1"):
        trial.advance()  # the request is not lost


def test_another_experience_does_not_go_on_with_an_interrupted_one() -> None:
    trial = VisionTrial(config_of(MethodConfig("plain")), images())
    trial.interrupt()
    with pytest.raises(Interrupted):
        trial.advance()
    with pytest.raises(ValueError, match="experience 0 was interrupted: train on it before experience 1"):
        trial.strategy.train(trial.benchmark.train_stream[1])
    trial.advance()


def test_the_checkpoint_has_no_images_and_is_no_larger(tmp_path: Path) -> None:
    trial = VisionTrial(config_of(EVERYTHING), images())
    sizes = []
    for name in ("within", "between"):
        if name == "within":
            trial.interrupt()
            with pytest.raises(Interrupted):
                trial.advance()
        else:
            trial.advance()
        (tmp_path / name).mkdir()
        trial.save(tmp_path / name)
        content = (tmp_path / name / "state.pt").read_bytes()
        assert not any(image.numpy().tobytes() in content for image in trial.data.train_images)
        sizes.append(len(content))
    assert sizes[0] < 1.05 * sizes[1]


def test_checkpoints_of_before_go_on(tmp_path: Path) -> None:
    """Those that were written between phases only do not say where in a phase they are."""
    config = config_of(EVERYTHING)
    trial = VisionTrial(config, images())
    trial.advance()
    trial.save(tmp_path)
    path = tmp_path / "state.pt"
    state = torch.load(path, weights_only=True)
    for name in ("position", "epochs", "samples"):
        del state["strategy"][name]
    torch.save(state, path)
    resumed = VisionTrial(config, images())
    resumed.load(tmp_path)
    assert [resumed.advance(), resumed.advance()] == reports(config)[0][1:]
