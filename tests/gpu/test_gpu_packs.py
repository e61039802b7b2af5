"""Packs on a GPU: what they compute, as a graph and launched, alone and continued."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from small_runs import assert_close_rows, deterministic, make_runs, train_pack

from ht_ray.errors import Interrupted, SettingError
from ht_ray.vision import MethodConfig, Pack, fit, load_checkpoint, save_checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")]

CONFIGS = [
    MethodConfig("plain"),
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=1),
    MethodConfig("hare_tortoise", momentum=0.9, reset_interval=5, reset_unit="steps", optimizer_state="clear"),
    MethodConfig("hare_tortoise+shrink_perturb+l2+redo", momentum=0.9, reset_interval=1, redo_interval=1),
    MethodConfig("regenerative+weight_clipping", regenerative_coupling="decoupled", regenerative_strength=0.1),
    MethodConfig("self_distillation+spectral_decoupling+head_reset", momentum=0.9),
    MethodConfig("upgd", upgd_noise=0.0),
    MethodConfig("layer_norm+crelu+ema", momentum=0.9),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_pack_computes_what_its_runs_compute_alone_on_the_cpu(device: torch.device, config: MethodConfig) -> None:
    packed, alone = train_pack(device, config), make_runs("cpu", config)
    for run, other in zip(packed, alone, strict=True):
        net = other.model
        rows = fit(net, other.data, other.stream, method=other.method, training=other.config, seed=other.seed)
        assert_close_rows(run.rows, rows, rel=1e-3, accuracy=0.03)
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(run.model.state_dict()[name].cpu(), tensor, rtol=0.02, atol=2e-3)


def test_a_pack_that_is_saved_in_a_phase_goes_on_on_either_device(device: torch.device, tmp_path: Path) -> None:
    expected = [run.rows for run in train_pack(device)]
    runs = make_runs(device)
    pack = Pack(runs)
    with pytest.raises(Interrupted):
        pack.train_phase(stop=lambda: True)
    for number, run in enumerate(runs):
        save_checkpoint(run.state_dict(), tmp_path / f"{number}.pt")
    for place in ("cpu", device):
        continued = make_runs(place)
        for number, run in enumerate(continued):
            run.load_state_dict(load_checkpoint(tmp_path / f"{number}.pt"), tmp_path)
        pack = Pack(continued)
        while pack.runs:
            pack.train_phase()
        for run, rows in zip(continued, expected, strict=True):
            assert_close_rows(run.rows, rows, rel=1e-3, accuracy=0.03)


# ------------------------------------------------------------------------------------ what needs CUDA itself


ON_THE_HOST = {"redo", "upgd"}
CAPTURED = [config for config in CONFIGS if not ON_THE_HOST & set(config.name.split("+"))]


@pytest.mark.parametrize("config", CAPTURED, ids=lambda config: config.name)
def test_a_packs_replayed_steps_are_its_launched_steps_bit_for_bit(config: MethodConfig) -> None:
    with deterministic(), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be captured.*")
        captured, launched = (train_pack("cuda", config, graph=graph, epochs=3) for graph in ("on", "off"))
    for run, other in zip(captured, launched, strict=True):
        assert run.rows == other.rows
        one, two = run.model.state_dict(), other.model.state_dict()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_pack_with_a_method_that_draws_on_the_host_refuses_a_graph() -> None:
    with pytest.raises(SettingError, match="upgd decides or draws on the host"):
        Pack(make_runs("cuda", MethodConfig("upgd")), graph="on")
