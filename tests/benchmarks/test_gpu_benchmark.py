"""The script that measures on a GPU works without one, and goes on where it was cut short."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def measure(out: Path, *arguments: str) -> tuple[str, list[dict]]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(out), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_every_part_works_on_the_cpu(tmp_path: Path) -> None:
    printed, rows = measure(tmp_path / "gpu.jsonl")
    parts = {row["part"] for row in rows}
    assert {"card", "methods", "throughput", "agents", "agent_speed", "waits", "repeated", "indicators"} <= parts
    assert not [row for row in rows if row.get("ok") is False or "error" in row or "late" in row]
    assert f"{len(rows)} cases, 0 not as they should be" in printed
    assert all(f"### {part}" in printed for part in parts)


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    measure(out, "--only", "methods")
    whole = out.read_text().splitlines()
    late = {**json.loads(whole[-1]), "late": "the part took more than 1 s", "ok": False}
    out.write_text("\n".join([*whole[:-1], json.dumps(late)]) + "\n")
    printed, rows = measure(out, "--only", "methods")
    measured = [line for line in printed.splitlines() if line.startswith("{")]
    assert len(measured) == 1
    assert json.loads(measured[0])["case"] == late["case"]
    assert [row["case"] for row in rows] == [json.loads(line)["case"] for line in whole]
    assert out.read_text().splitlines()[:-1] == whole[:-1]


def paper_checkout(folder: Path, *, imports: str = "torch") -> Path:
    """Write what stands in for a checkout of the paper's code: the same entry points, a small network."""
    modules = {
        "omegaconf": """
            import json
            class OmegaConf:
                load = staticmethod(lambda path: json.loads(path.read_text()))
                @staticmethod
                def merge(first, *others):
                    merged = dict(first)
                    for name, value in (pair for other in others for pair in other.items()):
                        inner = merged.get(name)
                        merged[name] = OmegaConf.merge(inner, value) if isinstance(inner, dict) else value
                    return merged
            """,
        "src/models/__init__": f"""
            import {imports}
            from torch import nn
            def build_model(cfg):
                assert cfg["backbone"]["type"] == "resnet" and cfg["head"]["type"] == "gap"
                return nn.Sequential(nn.Flatten(), nn.Linear(192, cfg["output_size"]))
            """,
        "src/datasets/__init__": """
            from torch.utils.data import DataLoader
            from torchvision.datasets import ImageFolder
            from torchvision.transforms import v2
            from torchvision.transforms.functional import to_tensor
            def build_dataloader(cfg):
                images = ImageFolder(cfg["train"]["root"], transform=v2.Lambda(lambda image: to_tensor(image)))
                return [DataLoader(images, shuffle=True, **cfg["dataloader"])], None
            """,
        "src/common/logger": """
            import wandb
            class WandbTrainerLogger:
                def __init__(self, cfg):
                    wandb.init(project=cfg["project_name"], config=cfg, group="")
                def log(self, step, **values):
                    wandb.log(values, step=step)
            """,
        "src/trainers/__init__": """
            import json
            from pathlib import Path
            import torch
            class Trainer:
                def __init__(self, cfg, device, train_loaders, test_loader, logger, model):
                    self.cfg, self.loaders, self.logger, self.model = cfg, train_loaders, logger, model.to(device)
                def train(self, task):
                    optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
                    seen = {"settings": self.cfg, "steps": len(self.loaders[task]), "shapes": []}
                    for epoch in range(self.cfg["base_epochs"]):
                        for images, labels in self.loaders[task]:
                            loss = torch.nn.functional.cross_entropy(self.model(images), labels)
                            optimizer.zero_grad()
                            loss.backward()
                            optimizer.step()
                            seen["shapes"].append(list(images.shape))
                        self.logger.log(epoch, train_loss=loss.item())
                    with (Path(__file__).parents[2] / "seen.jsonl").open("a") as file:
                        file.write(json.dumps(seen) + "\\n")
            def build_trainer(**settings):
                return Trainer(**settings)
            """,
    }
    settings = {
        "_base": {"project_name": "plasticity"},
        "dataset/cifar10": {"train": {}, "test": {}, "dataloader": {"batch_size": 256, "num_workers": 1}},
        "model/resnet18_gap": {"output_size": 10},
        "model/backbone/resnet18": {"type": "resnet"},
        "model/head/gap": {"type": "gap"},
        "trainer/base": {"ema": 0.0, "base_epochs": 100, "base_test_every": 5, "optimizer": {"lr": 1e-4}},
        "b_cifar10_resnet18": {"trainer": {"optimizer": {"lr": 1e-3}}, "defaults": ["_base"]},
    }
    texts = {f"{name}.py": textwrap.dedent(text) for name, text in modules.items()}
    texts |= {f"configs/{name}.yaml": json.dumps(values) for name, values in settings.items()}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.slow
def test_the_papers_code_is_measured_next_to_ours(tmp_path: Path) -> None:
    folder = paper_checkout(tmp_path / "paper")
    _, rows = measure(tmp_path / "gpu.jsonl", "--only", "paper_code", "--paper-code", str(folder))
    assert [row["case"]["batches"] for row in rows] == ["in memory", "PNG files"]
    for row in rows:
        assert row["ok"] is True
        assert row["samples_per_s"] == pytest.approx(16 / row["ms_per_step"] * 1e3)
        assert row["ratio"]["off"] == pytest.approx(row["ours_samples_per_s"]["off"] / row["samples_per_s"])
        assert row["parameters"] == 1930
        assert row["ours_parameters"] == 11_436_618  # the authors' network for CIFAR-10
    assert rows[0]["ours_ms_per_step"] == rows[1]["ours_ms_per_step"]
    for line in (folder / "seen.jsonl").read_text().splitlines():
        seen = json.loads(line)
        assert seen["steps"] == 3
        assert seen["shapes"] == [[16, 3, 8, 8]] * 9
        assert seen["settings"] == {
            "ema": 0.99,
            "base_epochs": 3,
            "base_test_every": -1,
            "optimizer": {"lr": 1e-3},
            "hare_tortoise": {"reset_every": 2},
        }


def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_benchmark", module)
    spec.loader.exec_module(module)
    return module


def refusal(module: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        module.main(["--device", "cpu", "--tiny", "--out", str(folder / "gpu.jsonl"), "--paper-code", str(folder)])
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_a_folder_without_the_papers_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(monkeypatch)
    for folder in (tmp_path / "missing", tmp_path):
        error = refusal(module, folder, capsys)
        assert f"{folder} is no checkout of dojeon-ai/Hare-Tortoise: it has no src/models/__init__.py" in error


def test_what_the_papers_code_lacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = paper_checkout(tmp_path / "paper", imports="torch, no_such_a.part, no_such_b as b")
    error = refusal(script(monkeypatch), folder, capsys)
    assert error.endswith("imports what is not installed: no_such_a, no_such_b\n")


def test_without_the_papers_code_its_part_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(monkeypatch)
    assert list(module.PARTS["paper_code"].cases(module.Machine(None, True))) == []
    assert capsys.readouterr().err == "paper_code: give --paper-code FOLDER, a checkout of the authors' repository\n"
