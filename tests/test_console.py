"""The command ``ht-ray``: what it lists, what it starts, and what it says to what is mistyped."""

from __future__ import annotations

import resource
import subprocess
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ht_ray import __version__
from ht_ray.__main__ import COMMANDS, main
from ht_ray.diagnostics import INDICATORS
from ht_ray.methods import METHODS
from ht_ray.vision import STREAMS, DataConfig, ModelConfig, load_data, make_model


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main(arguments)
    return code, *capsys.readouterr()


def test_help_takes_a_fraction_of_a_second_and_imports_nothing_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = (
        "import sys; from ht_ray.__main__ import main; code = main()\n"
        "sys.exit(code or len({'torch', 'ray', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    assert all(name in done.stdout for name in COMMANDS)


def test_every_command_has_a_help_page_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name, (module, _) in COMMANDS.items():
        assert callable(import_module(module).main)
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: ht-ray {name} ")
    assert run(capsys=capsys)[1].startswith("usage: ht-ray COMMAND")
    assert run("--version", capsys=capsys)[1] == f"ht-ray {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ablaton"], "ht-ray: error: 'ablaton': accepted are ablation, .* Did you mean 'ablation'?"),
        (["ablation", "--momenta", "1.5"], "ht-ray ablation: error: --momenta = 1.5: accepted is a number"),
        (["warm_start", "--compare", "grids"], "ht-ray warm-start: error: --compare = 'grids'.* Did you mean 'grid'"),
        (["methods", "rdo"], "ht-ray methods: error: method = 'rdo'.* Did you mean 'redo'"),
        (["streams", "continuel"], "ht-ray streams: error: stream = 'continuel'.* Did you mean 'continual'"),
        (["indicators", "sranc"], "ht-ray indicators: error: indicator = 'sranc'.* Did you mean 'srank'"),
        (["report", "/nowhere"], "error: /nowhere: there is no such directory"),
    ],
)
def test_what_is_mistyped_is_refused_in_a_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(*arguments, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1)
    import re

    assert re.match(said, err), err


def test_lists_have_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    for command, registry in (("methods", METHODS), ("streams", STREAMS), ("indicators", INDICATORS)):
        code, out, _ = run(command, capsys=capsys)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines() if not line.startswith(" ")] == list(registry)
        assert max(map(len, out.splitlines())) <= 100
        for name in registry:
            code, out, _ = run(command, name, capsys=capsys)
            assert code == 0 and out.startswith(f"{name}: ")
    out = run("methods", "redo", capsys=capsys)[1]
    assert "--redo-threshold" in out and "0.025" in out
    assert "It has no settings." in run("methods", "crelu", capsys=capsys)[1]
    assert "buffer_size" in run("streams", "continual", capsys=capsys)[1]


# --- doctor


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained network's checkpoint, as several writers lay them out, and batches."""
    folder = tmp_path_factory.mktemp("doctor")
    data = load_data(DataConfig("digits"))
    network = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=3)
    with torch.no_grad():
        for weight in network.parameters():
            weight *= 5
    torch.save(network.state_dict(), folder / "bare.pt")
    torch.save({"model": network.state_dict(), "epoch": 3}, folder / "nested.pt")
    inputs = data.train_images[:200].float() / 255
    torch.save({"inputs": inputs, "labels": data.train_labels[:200]}, folder / "batch.pt")
    torch.save((inputs, data.train_labels[:200]), folder / "pair.pt")
    np.savez(folder / "batch.npz", x=inputs.numpy(), y=data.train_labels[:200].numpy())
    np.savez(folder / "flat.npz", inputs=inputs.flatten(1).numpy(), labels=inputs.flatten(1)[:, :1].numpy())
    np.savez(folder / "bytes.npz", inputs=data.train_images[:9].numpy(), labels=data.train_labels[:9].numpy())
    np.savez(folder / "nan.npz", inputs=np.full((9, 4), np.nan), labels=np.zeros(9, dtype=int))
    np.savez(folder / "nameless.npz", a=np.zeros(3))
    (folder / "no.pt").write_text("no")
    return folder


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("own_networks")

    def regression(shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Linear(shape[0], 16), nn.ReLU(), nn.Linear(16, 1))

    module.regression = regression
    module.nothing = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    module.wide = lambda: nn.Linear(1000, 10)
    module.no_network = lambda: 3
    module.more = lambda depth: nn.Linear(1, 1)
    monkeypatch.setitem(sys.modules, "own_networks", module)


QUICK = ["--steps", "20", "--fresh", "2", "--samples", "100"]


def test_doctor_reads_networks_and_batches_as_they_are_written(
    files: Path, own_module: None, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = set()
    for checkpoint in ("bare.pt", "nested.pt"):
        for batch in ("batch.pt", "pair.pt", "batch.npz"):
            where = ["--checkpoint", str(files / checkpoint), "--data", str(files / batch)]
            code, out, _ = run("doctor", "--model", "mlp", *where, *QUICK, capsys=capsys)
            assert code == 0
            texts.add(out)
    (text,) = texts
    assert "Weight magnitude, strong" in text and "weight_clipping" in text
    code, out, _ = run(
        "doctor", "--model", "own_networks:nothing", "--data", "digits", *QUICK, "--backbone", "2", capsys=capsys
    )
    assert code == 0 and "No sign of lost plasticity" in out
    where = ["--model", "own_networks:regression", "--data", str(files / "flat.npz"), "--backbone", "1"]
    assert run("doctor", *where, *QUICK, capsys=capsys)[0] == 0


@pytest.mark.parametrize(
    ("model", "data", "more", "said"),
    [
        ("mpl", "digits", [], "--model = 'mpl': accepted are mlp, .* Did you mean 'mlp'"),
        ("no_such_module:net", "digits", [], "--model = 'no_such_module:net': there is no module 'no_such_module'"),
        ("own_networks:net", "digits", [], "--model = 'own_networks:net': the module own_networks has no net"),
        ("own_networks:no_network", "digits", [], "it returns int, and should return a torch.nn.Module"),
        ("own_networks:more", "digits", [], "accepted is a function of shape and num_classes, or of nothing"),
        ("own_networks:nothing", "{files}/flat.npz", [], r"outputs are \(200, 10\) and targets \(200, 1\)"),
        (
            "own_networks:wide",
            "digits",
            [],
            "it cannot be measured on --data = 'digits' .*RuntimeError: .*mat1 and mat2",
        ),
        ("mlp", "{files}/flat.npz", [], "it takes images with classes"),
        ("mlp", "digist", [], "--data = 'digist': accepted are .* Did you mean 'digits'"),
        ("mlp", "{files}/nowhere.pt", [], "it cannot be read"),
        ("mlp", "{files}/no.pt", [], "it cannot be read"),
        ("mlp", "{files}/nameless.npz", [], "no tensor called 'inputs' or .*; it has 'a'"),
        ("mlp", "{files}/bytes.npz", [], "inputs are uint8"),
        ("mlp", "{files}/nan.npz", [], "values that are not finite"),
        ("mlp", "{files}/bare.pt", [], "no tensor called 'inputs'"),
        ("mlp", "digits", ["--checkpoint", "{files}/no.pt"], "--checkpoint = .*it cannot be read"),
        ("resnet18", "digits", ["--checkpoint", "{files}/bare.pt"], "its weights are not those of the network"),
        ("mlp", "digits", ["--checkpoint", "{files}/pair.pt"], "accepted is a state dict"),
        ("mlp", "digits", ["--steps", "0"], "--steps = 0"),
        ("mlp", "digits", ["--learning-rate", "0"], "--learning-rate = 0"),
        ("mlp", "digits", ["--device", "tpu"], "--device"),
        ("mlp", "digits", ["--backbone", "neck"], "neck"),
    ],
)
def test_doctor_refuses_in_one_line(
    files: Path, own_module: None, capsys: pytest.CaptureFixture[str], model: str, data: str, more: list[str], said: str
) -> None:
    import re

    more = [text.format(files=files) for text in more]
    code, out, err = run("doctor", "--model", model, "--data", data.format(files=files), *more, capsys=capsys)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("ht-ray doctor: error: ") and re.search(said, err), err


@pytest.mark.parametrize("arguments", [["--help"], ["methods"], ["continual", "--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "ht_ray", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as "| true" does
        said = process.stderr.read().decode()
    assert (process.returncode, said) == (0, "")
