"""The captured training step, with a graph that works on the CPU: a tape of what was computed, played again."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ht_ray._checks import SettingError, SettingWarning
from ht_ray.vision import ContinualConfig, DataConfig, MethodConfig, ModelConfig, load_data, make_model, make_stream
from ht_ray.vision import training_step as under_test
from ht_ray.vision.fit import fit
from ht_ray.vision.optimizer import TrainingConfig

pytestmark = pytest.mark.filterwarnings("ignore::ht_ray._checks.SettingWarning")


class Tape(TorchDispatchMode):
    """Note every operation; played again, each writes its results where the first results lie."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        for function, args, kwargs, result in self.operations:
            new = function(*args, **kwargs)
            given = {
                tensor.untyped_storage().data_ptr() for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor)
            }
            for old, value in zip(tree_leaves(result), tree_leaves(new), strict=True):
                # What was changed in place, or is a view, is right already.
                if torch.is_tensor(old) and old.untyped_storage().data_ptr() not in given:
                    old.copy_(value)


class TapeGraph:
    made = 0

    def __init__(self) -> None:
        self.tape = Tape()
        self.replays = 0
        type(self).made += 1

    def replay(self) -> None:
        # A CUDA graph only notes while it is captured; the tape has computed, so its first replay is done.
        if self.replays:
            with torch.no_grad():
                self.tape.play()
        self.replays += 1


@pytest.fixture
def tape_graphs(monkeypatch):
    @contextmanager
    def graph(captured: TapeGraph, **settings):
        with captured.tape:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    cuda = SimpleNamespace(
        CUDAGraph=TapeGraph,
        graph=graph,
        Stream=lambda device: stream,
        stream=lambda stream: nullcontext(),
        current_stream=lambda device: stream,
    )
    monkeypatch.setattr(under_test, "_CAPTURING", "cpu")
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(**{**vars(torch.cuda), **vars(cuda)}))
    TapeGraph.made = 0
    return TapeGraph


def run(name: str, graph: str, *, checkpoint=None, on_epoch=None, **settings):
    data = load_data(DataConfig("digits", train_limit=300, test_limit=100))
    stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=3), seed=0)
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
    ("hare_tortoise", {"momentum": 0.9, "reset_interval": 4, "reset_unit": "steps", "optimizer_state": "clear"}),
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
def test_steps_that_are_replayed_compute_what_launched_ones_do(tape_graphs, name, settings) -> None:
    launched = run(name, "off", **settings)
    assert tape_graphs.made == 0
    replayed = run(name, "on", **settings)
    assert tape_graphs.made >= 2  # one a phase at least
    assert replayed == launched


def test_a_replayed_run_goes_on_from_its_checkpoint(tape_graphs, tmp_path) -> None:
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
def test_what_decides_on_the_host_is_refused_by_name_and_launched_by_default(tape_graphs, name, settings, part) -> None:
    with pytest.raises(SettingError, match=rf"graph = 'on': {part} decides or draws on the host"):
        run(name, "on", **settings)
    assert run(name, "auto", **settings) == run(name, "off", **settings)
    assert tape_graphs.made == 0


def test_on_a_cpu_there_is_no_graph() -> None:
    with pytest.raises(SettingError, match=r"fit: graph = 'on': the device is 'cpu', not a CUDA device"):
        run("plain", "on")
    with pytest.raises(SettingError, match=r"fit: graph = 'onn'.*'on'"):
        run("plain", "onn")


def test_a_step_that_cannot_be_captured_is_launched_with_a_warning_or_refused(tape_graphs, monkeypatch) -> None:
    @contextmanager
    def failing(captured, **settings):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
        yield

    monkeypatch.setattr(torch.cuda, "graph", failing)
    launched = run("hare_tortoise", "off", momentum=0.9, reset_interval=1)
    with pytest.warns(SettingWarning, match="cannot be captured as a CUDA graph: operation not permitted"):
        assert run("hare_tortoise", "auto", momentum=0.9, reset_interval=1) == launched
    with pytest.raises(SettingError, match="graph = 'on': the training step cannot be captured"):
        run("hare_tortoise", "on", momentum=0.9, reset_interval=1)
