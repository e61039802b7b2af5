"""The captured training step, with a graph that works on the CPU."""

from __future__ import annotations

import sys

import pytest
import torch
from recorded_graph import Recorded

from ht_ray import cuda_graph
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.vision import ContinualConfig, DataConfig, MethodConfig, ModelConfig, load_data, make_model, make_stream
from ht_ray.vision.training import training_step as under_test
from ht_ray.vision.training.fit import fit
from ht_ray.vision.training.optimizer import TrainingConfig

fitting = sys.modules[fit.__module__]
pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")


@pytest.fixture
def recorded(monkeypatch):
    """Let `fit` capture on the CPU; counts what is captured and replayed."""

    monkeypatch.setattr(cuda_graph, "Graph", Recorded)
    monkeypatch.setattr(Recorded, "captures", 0)
    monkeypatch.setattr(Recorded, "replays", 0)
    monkeypatch.setattr(fitting, "use_graph", as_on_a_gpu)
    monkeypatch.setattr(under_test, "_CAPTURING", "cpu")
    return Recorded


def as_on_a_gpu(where: str, graph: str, device: torch.device, *, obstacle: str = "") -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        return cuda_graph.use_graph(where, graph, torch.device("cuda"), obstacle=obstacle)


def run(name: str, graph: str, *, checkpoint=None, on_epoch=None, **settings):
    data = load_data(DataConfig("digits", train_limit=300, test_limit=100))
    stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=4), seed=0)
    method = MethodConfig(name, **settings)
    model = make_model(method.model(ModelConfig("mlp")), shape=data.shape, num_classes=data.num_classes, seed=0)
    # The paper's norms of 0.5 are always clipped; here both cases happen.
    training = TrainingConfig(batch_size=32, augment="crop", clip=2.0)
    kept = {"graph": graph, "checkpoint": checkpoint, "on_epoch": on_epoch}
    return fit(model, data, stream, method=method, training=training, seed=0, **kept)


CAPTURED = [
    ("plain", {}),
    ("ema", {"momentum": 0.9}),
    ("hare_tortoise", {"momentum": 0.9, "reset_interval": 1}),
    ("hare_tortoise", {"momentum": 0.9, "reset_interval": 3, "reset_unit": "steps"}),
    ("hare_tortoise", {"momentum": 0.9, "reset_interval": 9, "reset_unit": "steps", "optimizer_state": "clear"}),
    ("hare_tortoise", {"momentum": 0.9, "reset_interval": 1, "recalibrate_batchnorm": 3}),
    ("shrink_perturb+hare_tortoise", {"momentum": 0.9, "reset_interval": 1}),
    ("head_reset", {}),
    ("plasticity_injection", {}),
    ("l2", {}),
    ("l2", {"l2_coupling": "loss"}),
    ("spectral_decoupling", {}),
    ("regenerative", {}),
    ("self_distillation", {"momentum": 0.9}),
    ("weight_clipping", {}),
    ("optimizer_reset", {}),
    ("layer_norm", {}),
]


@pytest.mark.parametrize(("name", "settings"), CAPTURED, ids=[f"{name}-{len(s)}" for name, s in CAPTURED])
def test_steps_that_are_replayed_compute_what_launched_ones_do(recorded, name, settings) -> None:
    launched = run(name, "off", **settings)
    assert recorded.captures == 0
    replayed = run(name, "on", **settings)
    assert recorded.captures >= 2  # one a phase at least
    assert recorded.replays > 10
    assert replayed == launched


def test_a_replayed_run_goes_on_from_its_checkpoint(recorded, tmp_path) -> None:
    settings = {"momentum": 0.9, "reset_interval": 2}
    whole = run("hare_tortoise", "on", **settings)

    class Stop(Exception): ...

    def stop(row):
        if row["phase"] == 2:
            raise Stop

    with pytest.raises(Stop):
        run("hare_tortoise", "on", checkpoint=tmp_path / "run.pt", on_epoch=stop, **settings)
    assert run("hare_tortoise", "on", checkpoint=tmp_path / "run.pt", **settings) == whole


@pytest.mark.parametrize(
    ("name", "settings", "part"),
    [
        ("redo", {}, "redo"),
        ("upgd+redo", {}, "upgd and redo"),
        ("continual_backprop", {}, "continual_backprop"),
        ("regenerative", {"regenerative_coupling": "decoupled"}, "regenerative"),
        ("regenerative", {"regenerative_toward": "fresh"}, "regenerative"),
    ],
)
def test_what_decides_on_the_host_is_refused_by_name_and_launched_by_default(recorded, name, settings, part) -> None:
    with pytest.raises(SettingError, match=rf"graph = 'on': {part} decides or draws on the host"):
        run(name, "on", **settings)
    assert run(name, "auto", **settings) == run(name, "off", **settings)
    assert recorded.captures == 0


def test_on_a_cpu_there_is_no_graph() -> None:
    with pytest.raises(SettingError, match=r"fit: graph = 'on': CUDA graphs need a GPU, and the device is 'cpu'"):
        run("plain", "on")
    with pytest.raises(SettingError, match=r"fit: graph = 'onn'.*'on'"):
        run("plain", "onn")


def test_a_step_that_cannot_be_captured_is_launched_with_a_warning_or_refused(recorded, monkeypatch) -> None:
    def refusing(self, function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    launched = run("hare_tortoise", "off", momentum=0.9, reset_interval=1)
    monkeypatch.setattr(Recorded, "run", refusing)
    with pytest.warns(SettingWarning, match="cannot be captured as a CUDA graph.*operation not permitted"):
        assert run("hare_tortoise", "auto", momentum=0.9, reset_interval=1) == launched
    with pytest.raises(RuntimeError, match="operation not permitted"):
        run("hare_tortoise", "on", momentum=0.9, reset_interval=1)
