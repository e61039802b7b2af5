"""A training step never waits for the device, and copies nothing that is not pinned: counted on a simulated one."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from simulated_cuda import simulated_cuda
from small_runs import make_data, make_runs, train, train_pack

from ht_ray.vision import METHODS, MethodConfig

pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")

NETWORKS = ("mlp", "resnet18", "vgg16", "vit_tiny")


def waits(config: MethodConfig, network: str, count: int) -> tuple[Counter[str], Counter[str]]:
    training = {"batch_size": 16, "augment": "crop_flip"}
    with simulated_cuda() as counts:
        train("cuda", config, network, phases=1, epochs=1, count=count, training=training, plain_steps=True)
    return counts.waits, counts.unpinned


def assert_steps_do_not_wait(config: MethodConfig, network: str) -> None:
    """A run of eight steps waits as often, and where, as one of four: before, after and between epochs."""
    few, more = (waits(config, network, count) for count in (64, 128))
    assert few[0].total() > 0
    for less, greater in zip(few, more, strict=True):
        assert not greater - less


@pytest.mark.parametrize(
    ("method", "network"),
    [
        pytest.param(
            method, network, marks=() if network == "mlp" or method == "hare_tortoise" else (pytest.mark.slow,)
        )
        for network in NETWORKS
        for method in METHODS
        # Whether a unit has been silent for too long is known after each step, and looked at by the host.
        if method != "snr"
        and (method, network) not in [("layer_norm", "vit_tiny"), ("aid", "vit_tiny"), ("muon", "resnet18")]
    ],
)
def test_a_step_waits_for_nothing(method: str, network: str) -> None:
    assert_steps_do_not_wait(MethodConfig(method, momentum=0.9), network)


@pytest.mark.parametrize(
    "config",
    [
        MethodConfig("hare_tortoise", momentum=0.9, reset_interval=2, reset_unit="steps", optimizer_state="clear"),
        MethodConfig("hare_tortoise+shrink_perturb+l2+redo", momentum=0.9),
        MethodConfig("l2", l2_coupling="loss"),
        MethodConfig("regenerative", regenerative_norm="l1"),
        MethodConfig("regenerative", regenerative_coupling="decoupled"),
        MethodConfig("regenerative", regenerative_toward="fresh"),
    ],
    ids=lambda config: config.name,
)
def test_other_forms_of_a_method_wait_for_nothing_either(config: MethodConfig) -> None:
    assert_steps_do_not_wait(config, "mlp")


def test_a_step_that_recycles_on_the_host_is_seen_to_wait() -> None:
    config = MethodConfig("redo", redo_interval=2, redo_unit="steps", redo_threshold=0.5)
    few, more = (waits(config, "mlp", count)[0] for count in (64, 128))
    assert (more - few).total() > 0


@pytest.mark.parametrize(
    "config",
    [
        MethodConfig("hare_tortoise", momentum=0.9),
        MethodConfig("hare_tortoise+shrink_perturb+l2+redo", momentum=0.9),
        MethodConfig("regenerative+weight_clipping", regenerative_coupling="decoupled"),
        MethodConfig("self_distillation+spectral_decoupling+regenerative", momentum=0.9),
    ],
    ids=lambda config: config.name,
)
def test_a_step_of_a_pack_waits_for_nothing(config: MethodConfig) -> None:
    found = []
    for count in (64, 128):
        with simulated_cuda() as counts:
            train_pack("cuda", config, phases=1, epochs=1, count=count, training={"batch_size": 16}, graph="off")
        found.append((counts.waits, counts.unpinned))
    for few, more in zip(*found, strict=True):
        assert few.total() > 0
        assert not more - few


def test_runs_on_a_device_share_one_copy_of_the_data_while_one_of_them_is_there() -> None:
    copied = []
    for seeds in ((0, 1), (0, 1, 2, 3)):
        with simulated_cuda() as counts:
            runs = make_runs("cuda", seeds=seeds)
            copied.append(sum(n for place, n in counts.unpinned.items() if "data/dataset.py" in place))
            assert all(run.images is runs[0].images for run in runs)
            assert all(run.test_images is runs[0].test_images for run in runs)
            held = weakref.ref(runs[0]._held)
            del runs
            gc.collect()
            assert held() is None
    assert copied == [3, 3]
    data = make_data()
    assert data.on(torch.device("cpu")).train_images is data.train_images
