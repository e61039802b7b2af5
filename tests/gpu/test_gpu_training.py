"""Precision, memory formats, repetition, checkpoints, graphs and waits of training on a GPU."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path

import pytest
import torch
from small_runs import HARE_TORTOISE, assert_close_rows, deterministic, train

from ht_ray.vision import MethodConfig

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")]

CROPS = {"augment": "crop_flip"}


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("network", ["mlp", "resnet18", "vgg16", "vit_tiny"])
def test_half_precision_is_near_float32_and_keeps_float32_weights(
    device: torch.device, network: str, channels_last: bool
) -> None:
    training = {"precision": "bf16", "channels_last": channels_last}
    net, acting, rows = train(device, network=network, training=training, phases=1)
    _, _, expected = train("cpu", network=network, phases=1)
    assert_close_rows(rows, expected, rel=0.03, accuracy=0.1)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert acting.tortoise is not None
    floats = [tensor for tensor in acting.tortoise.weights.tensors.values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}


@pytest.mark.parametrize("network", ["mlp", "resnet18", "vit_tiny"])
def test_two_runs_are_the_same_with_deterministic_kernels(device: torch.device, network: str) -> None:
    with deterministic(network):
        runs = [train(device, network=network, training=CROPS, phases=1) for _ in range(2)]
    assert runs[0][2] == runs[1][2]
    one, other = (run[0].state_dict() for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


class Stopped(Exception):
    pass


def stop_in_the_second_phase(row: dict[str, float]) -> None:
    if row["phase"] == 2:
        raise Stopped


@pytest.mark.parametrize(
    "config",
    [
        HARE_TORTOISE,
        MethodConfig("hare_tortoise+redo+l2", momentum=0.9, reset_interval=1, redo_interval=1),
        MethodConfig("continual_backprop", continual_backprop_replacement_rate=0.01, continual_backprop_maturity=2),
        MethodConfig("upgd", upgd_noise=0.0),
        MethodConfig("plasticity_injection"),
    ],
    ids=lambda config: config.name,
)
@pytest.mark.parametrize("route", ["to the device", "to the CPU", "on the device"])
def test_a_run_is_continued_on_another_device(
    device: torch.device, config: MethodConfig, route: str, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    first, second = {"to the device": (cpu, device), "to the CPU": (device, cpu), "on the device": (device,) * 2}[route]
    path = tmp_path / "state.pt"
    _, _, expected = train(second, config)
    with pytest.raises(Stopped):
        train(first, config, checkpoint=path, on_epoch=stop_in_the_second_phase)
    saved = torch.load(path, weights_only=True)
    assert saved["phases"] == 1
    _, _, rows = train(second, config, checkpoint=path)
    assert_close_rows(rows, expected, rel=1e-4, accuracy=0.02)


def test_a_continued_run_is_the_run_that_was_not_stopped(device: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with deterministic():
        _, _, expected = train(device)
        with pytest.raises(Stopped):
            train(device, checkpoint=path, on_epoch=stop_in_the_second_phase)
        assert train(device, checkpoint=path)[2] == expected


def test_the_optimizers_fresh_start_and_its_continuation_are_those_of_the_cpu(device: torch.device) -> None:
    runs = [train(place, training={"fresh_optimizer": False, "clip": None})[2] for place in (device, "cpu")]
    assert_close_rows(*runs, rel=1e-4, accuracy=0.02)


# ------------------------------------------------------------------------------------ what needs CUDA itself


@pytest.mark.parametrize("network", ["mlp", "resnet18", "vgg16", "vit_tiny"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_are_launched_steps_bit_for_bit(network: str, precision: str) -> None:
    training = {**(CROPS if network != "mlp" else {}), "precision": precision}
    with deterministic(network):
        rows = {graph: train("cuda", network=network, training=training, graph=graph)[2] for graph in ("on", "off")}
    assert rows["on"] == rows["off"]


@pytest.mark.parametrize(
    "config",
    [
        MethodConfig("plain"),
        MethodConfig("ema", momentum=0.9),
        MethodConfig("l2"),
        MethodConfig("spectral_decoupling"),
        MethodConfig("regenerative"),
        MethodConfig("self_distillation", momentum=0.9),
        MethodConfig("weight_clipping"),
        MethodConfig("redo", redo_interval=1, redo_threshold=0.3),
        MethodConfig("plasticity_injection"),
        MethodConfig("hare_tortoise", momentum=0.9, reset_interval=5, reset_unit="steps", optimizer_state="clear"),
    ],
    ids=lambda config: config.name,
)
def test_methods_are_the_same_with_graphs_where_they_can_be(config: MethodConfig) -> None:
    with deterministic():
        rows = {graph: train("cuda", config, graph=graph)[2] for graph in ("auto", "off")}
    assert rows["auto"] == rows["off"]


@pytest.mark.parametrize(
    ("config", "network"),
    [
        (MethodConfig("plain"), "mlp"),
        (HARE_TORTOISE, "mlp"),
        (HARE_TORTOISE, "resnet18"),
        (HARE_TORTOISE, "vit_tiny"),
        (MethodConfig("upgd"), "mlp"),
        (MethodConfig("continual_backprop"), "mlp"),
        (MethodConfig("self_distillation", momentum=0.9), "mlp"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_step_waits_for_nothing(config: MethodConfig, network: str) -> None:
    def waits(count: int) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                train("cuda", config, network, phases=1, training=CROPS, count=count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)

    few, more = waits(128), waits(512)
    assert few > 0  # an epoch's results are read, so waits are seen
    assert more <= few


def test_memory_is_given_back_after_a_run() -> None:
    train("cuda", network="resnet18", phases=1)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        train("cuda", network="resnet18", phases=1)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before + 2**20
