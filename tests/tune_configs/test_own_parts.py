"""Networks and data of a user's own in the studies: what is refused before Ray starts, and what is recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ht_ray.errors import SettingError
from ht_ray.vision import DataConfig, ModelConfig, load_data, make_model
from tune_configs import command_line, continual, prepare

MODULE = """
import torch
from torch import nn

def make_network(shape, num_classes):
    return nn.Sequential(nn.Linear(shape[0], 16), nn.ReLU(), nn.Linear(16, num_classes))

def no_module(shape, num_classes): return "network"
def no_parameters(shape, num_classes): return nn.Flatten()
def other_arguments(size): return nn.Linear(size, 2)
def raises(shape, num_classes): raise RuntimeError("no such luck")
def other_size(shape, num_classes): return nn.Linear(shape[0] + 1, num_classes)
def other_classes(shape, num_classes): return nn.Linear(shape[0], num_classes + 1)
def a_tuple(shape, num_classes):
    class Two(nn.Linear):
        def forward(self, x): return super().forward(x), x
    return Two(shape[0], num_classes)
def without_head(shape, num_classes):
    return nn.Sequential(nn.Linear(shape[0], num_classes), nn.BatchNorm1d(num_classes))
number = 3

def load(): return load_four()[:2]
def load_four():
    x = torch.arange(480.).reshape(60, 8) % 7
    return x, torch.arange(60) % 3, x[:9], torch.arange(9) % 3
def load_nothing(): return None
def load_lengths(): return load()[0], load()[1][:5]
def load_nan(): return torch.full((60, 8), float("nan")), torch.arange(60) % 3
def load_one_class(): return load()[0], torch.zeros(60, dtype=torch.int64)
def load_numbers(): return load()[0], torch.arange(60) / 7
def load_shapes(): return (*load(), load()[0][:, :4], load()[1])
def load_strange_test(): return (*load(), load()[0][:3], torch.tensor([0, 1, 9]))
def load_channels(): return torch.zeros(60, 5, 8, 8, dtype=torch.uint8), torch.arange(60) % 3
def load_fails(): raise OSError("the disk is away")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with a module and files, where the command is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("own_things", "own_broken"):
        sys.modules.pop(name, None)
    Path("own_things.py").write_text(MODULE)
    Path("own_broken.py").write_text("import module_that_is_not_there\n")
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 8)), np.arange(60) % 3
    np.savez("good.npz", x=x, y=y)
    np.savez("names.npz", features=x, y=y)
    np.savez("objects.npz", x=np.array([{}] * 60), y=y)
    Path("bad.npz").write_bytes(b"this is no archive")
    Path("bad.parquet").write_bytes(b"PAR1 and nothing")
    Path("table.xlsx").write_bytes(b"?")
    Path("empty").mkdir()
    return tmp_path


REFUSED = {
    "no module": ("--model own_thngs:make_network", "--model = 'own_thngs:make_network': there is no module"),
    "no function": ("--model own_things:make_netwrk", "no make_netwrk. Did you mean 'make_network'?"),
    "a module that fails": ("--model own_broken:make_network", "importing own_broken failed"),
    "no callable": ("--model own_things:number", "accepted is a function of shape and num_classes"),
    "no network": ("--model own_things:no_module", "it returned str; accepted is a torch.nn.Module"),
    "no parameters": ("--model own_things:no_parameters", "no parameter to train"),
    "other arguments": ("--model own_things:other_arguments", "called with shape and num_classes"),
    "a factory that raises": ("--model own_things:raises", "RuntimeError: no such luck"),
    "another size": ("--model own_things:other_size", "it cannot compute samples of shape (8,)"),
    "other classes": ("--model own_things:other_classes", "it makes (2, 4); accepted are logits (2, 3)"),
    "a tuple": ("--model own_things:a_tuple", "it makes tuple; accepted are logits (2, 3)"),
    "no such head": ("--model own_things:make_network --head 7", "--head = '7': the network has no such part"),
    "no head found": ("--model own_things:without_head --methods head_reset", "no head found"),
    "a width": ("--model own_things:make_network --width 2", "--width = 2.0: it has no meaning"),
    "a head for mlp": ("--model mlp --head classifier", "--head = 'classifier': accepted for a network of your own"),
    "images' network": ("--model resnet18", "--model = 'resnet18': it takes images"),
    "torchvision's network": ("--model torchvision:resnet8", "torchvision has no such network"),
    "no activation": ("--model own_things:make_network --methods crelu", "--activation = 'crelu'"),
    "augmented": ("--model mlp --augment crop", "--augment = 'crop': the data are a table"),
    "no data module": ("--data own_thngs:load", "--data = 'own_thngs:load': there is no module"),
    "no data": ("--data own_things:load_nothing", "it returned NoneType; accepted are arrays"),
    "other lengths": ("--data own_things:load_lengths", "60 samples have labels of shape (5,)"),
    "NaN": ("--data own_things:load_nan", "feature 0 of sample 0 is nan"),
    "one class": ("--data own_things:load_one_class", "all its labels are 0"),
    "no classes": ("--data own_things:load_numbers", "accepted are classes: whole numbers, or text"),
    "other features": ("--data own_things:load_shapes", "those to test on (4,)"),
    "unknown class": ("--data own_things:load_strange_test", "has the class '9', which no training sample has"),
    "channels": ("--data own_things:load_channels", "accepted are grey or RGB"),
    "loading fails": ("--data own_things:load_fails", "OSError: the disk is away"),
    "no file": ("--data god.npz", "does not exist. Did you mean 'good.npz'?"),
    "no archive": ("--data bad.npz", "bad.npz': it cannot be read"),
    "other names": ("--data names.npz", "it has no x; it has features, y"),
    "pickles": ("--data objects.npz", "it cannot be read: ValueError: Object arrays cannot be loaded"),
    "no Parquet": ("--data bad.parquet", "it cannot be read"),
    "another kind": ("--data table.xlsx", "a file of this kind is not read"),
    "an empty folder": ("--data empty", "it holds no train/<class>/<image>"),
    "torchvision's data": ("--data torchvision:FashionMNST", "Did you mean 'FashionMNIST'?"),
    "a name": ("--data minst", "--data = 'minst': accepted are"),
    "too much validation": ("--validation 0.7", "--validation = 0.7"),
    "too little validation": ("--validation 0.001", "--validation = 0.001 of 48 training samples"),
    "a test ratio": ("--data digits --model mlp --test-ratio 0.3", "--test-ratio = 0.3: it has no meaning"),
    "a large test ratio": ("--test-ratio 0.9", "--test-ratio = 0.9"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(
    case: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_line, "run_study", lambda *_, **__: pytest.fail("Ray would have been started"))
    flags, said = REFUSED[case]
    # What is given twice, the last goes for.
    given = [] if "--data" in flags else ["--data", "own_things:load"]
    given += [] if "--model" in flags else ["--model", "own_things:make_network"]
    code = continual.main([*given, "--methods", "plain", "--results-dir", "out", *flags.split()])
    error = capsys.readouterr().err
    assert code == 2, error
    (line,) = [line for line in error.splitlines() if "error: " in line]
    assert said in line
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"a": [1.0, None] * 30, "label": [0, 1] * 30}, "column 'a' has nothing in row 1"),
        ({"a": [1.0, float("inf")] * 30, "label": [0, 1] * 30}, "column 'a' has inf in row 1"),
        ({"a": ["x", "y"] * 30, "label": [0, 1] * 30}, "column 'a' holds string"),
        ({"a": [1.0, 2.0] * 30, "b": [0, 1] * 30}, "it has no column called label"),
        ({"a": [1.0, 2.0] * 30, "label": [0, None] * 30}, "column 'label' has labels that are missing"),
        ({"a": [1.0] * 4, "label": [0, 1] * 2, "split": ["train"] * 3 + ["tset"]}, "column 'split' has 'tset'"),
        ({"label": [0, 1] * 30}, "no column besides the labels'"),
        ({"image": [b"no image", b"none"], "label": [0, 1]}, "the image in row 0 cannot be decoded"),
    ],
)
def test_tables_that_cannot_be_trained_on(folder: Path, columns: dict[str, Any], said: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), "t.parquet")
    with pytest.raises(SettingError) as raised:
        load_data(DataConfig("t.parquet"))
    assert said in str(raised.value)


def test_tables_and_images_are_read_as_they_are(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from io import BytesIO

    from PIL import Image
    from pyarrow import parquet

    a, labels = [float(n) for n in range(20)], ["yes", "no"] * 10
    table = {"a": a, "kind": labels, "b": [n % 2 == 0 for n in range(20)], "split": ["train"] * 15 + ["test"] * 5}
    parquet.write_table(pyarrow.table(table), "t.parquet")
    data = load_data(DataConfig("t.parquet", label="kind"))
    assert data.classes == ("no", "yes") and data.is_table
    assert data.train_images[:, 0].tolist() == a[:15] and data.test_images[:, 1].tolist() == [0, 1, 0, 1, 0]
    assert [data.classes[label] for label in data.train_labels] == labels[:15]
    assert data.mean == pytest.approx([7.0, 8 / 15])

    images = np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
    files = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    parquet.write_table(pyarrow.table({"image": files, "label": [0, 1] * 10}), "i.parquet")
    np.savez("i.npz", x=images, y=np.array([0, 1] * 10))
    read, same = load_data(DataConfig("i.parquet")), load_data(DataConfig("i.npz"))
    assert read.shape == (3, 6, 5) and len(read.test_labels) == 4
    assert torch.equal(read.train_images, same.train_images) and torch.equal(read.test_labels, same.test_labels)
    rows = {image.transpose(2, 0, 1).tobytes() for image in images}
    assert {image.numpy().tobytes() for image in [*read.train_images, *read.test_images]} == rows


def test_a_network_is_drawn_from_the_seed_and_its_head_is_found(folder: Path) -> None:
    config = ModelConfig("own_things:make_network")
    one, same, other = (make_model(config, shape=(8,), num_classes=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one[0].weight, same[0].weight) and not torch.equal(one[0].weight, other[0].weight)  # type: ignore[index]
    assert one.head_name == "2"
    named = make_model(ModelConfig("own_things:make_network", head="0"), shape=(8,), num_classes=3, seed=0)
    assert named.head_name == "0"
    resnet = make_model(ModelConfig("torchvision:resnet18"), shape=(3, 32, 32), num_classes=5, seed=0)
    assert resnet.head_name == "fc"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model", lambda: Path("own_things.py").write_text(MODULE + "# changed\n")),
        ("data", lambda: np.savez("good.npz", x=np.ones((60, 8)), y=np.arange(60) % 3)),
    ],
)
def test_what_has_changed_is_refused_on_resume(name: str, change: Callable[[], None], folder: Path) -> None:
    settings = continual.ContinualSettings(
        data="good.npz", model="own_things:make_network", methods=("plain",), access=("full",)
    ).resolved()
    planned = continual.trials(settings)
    recorded = prepare.prepare_vision(settings, planned).recorded
    assert [text.partition(" ")[0] for text in recorded["versions"]] == ["model", "data"]
    saved = type(settings).from_json(json.loads(json.dumps({**vars(settings), **recorded})))
    assert prepare.prepare_vision(saved, planned).recorded == recorded
    change()
    with pytest.raises(SettingError, match="not what it was when the study began") as raised:
        prepare.prepare_vision(saved, planned)
    assert raised.value.field == name
