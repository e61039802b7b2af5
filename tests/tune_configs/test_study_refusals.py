"""Command lines that cannot work: exit code 2, one message that names flag and value, and nothing done."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ht_ray.sweep import RayStartError, Study
from ht_ray.sweep.study.plan import create_study
from tune_configs import ablation, command_line
from tune_configs.ablation import AblationSettings

CHECKOUT = Path(__file__).parents[2]

# The flag --results-dir, shortened.
RESULTS = "--results-dir = '{tmp}"
# Script, arguments, and what the message must hold. {tmp} is the test's directory.
CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "momentum": ("ablation", "--momenta 0.9 1.5", ("--momenta = 1.5", "0 <= momenta < 1")),
    "momentum of continual": ("continual", "--momentum 1", ("--momentum = 1.0",)),
    "interval": ("ablation", "--reset-intervals 0", ("--reset-intervals = 0",)),
    "interval of continual": ("continual", "--reset-interval 0", ("--reset-interval = 0",)),
    "interval in halves": ("ablation", "--reset-intervals 1.5", ("--reset-intervals", "1.5")),
    "no momentum": ("ablation", "--momenta", ("--momenta", "at least one")),
    "momentum twice": ("ablation", "--momenta 0.9 0.9", ("--momenta = 0.9", "twice")),
    "baseline": ("ablation", "--baselines emma", ("--baselines = 'emma'", "Did you mean 'ema'?")),
    "baseline twice": ("ablation", "--baselines ema ema", ("--baselines = 'ema'", "twice")),
    "method": ("continual", "--methods tortoise", ("--methods = 'tortoise'", "Did you mean 'hare_tortoise'?")),
    "methods that do not combine": ("continual", "--methods plain+ema", ("--methods = 'plain+ema'",)),
    "one method in two spellings": ("continual", "--methods head_reset head-reset", ("--methods = 'head-reset'",)),
    "setting of another method": ("continual", "--methods l2:redo_interval=3", ("'l2:redo_interval=3'", "no setting")),
    "network without that form": ("continual", "--methods layer_norm --model vit_tiny", ("--methods = 'layer_norm'",)),
    "indicators": ("continual", "--indicators weight", ("--indicators = 'weight'", "Did you mean 'weights'?")),
    "access": ("continual", "--access ful", ("--access = 'ful'", "Did you mean 'full'?")),
    "data set": ("ablation", "--data mnsit", ("--data = 'mnsit'", "Did you mean 'mnist'?")),
    "no directory": ("ablation", "--data mnist --data-root {tmp}/nowhere", ("--data-root = '{tmp}/nowhere'", "exist")),
    "no data in it": ("ablation", "--data cifar10 --no-download --data-root {tmp}", ("--data-root = '{tmp}'", "no 'c")),
    "truncated archive": ("ablation", "--data cifar10 --data-root {tmp}/cut.tar.xz", ("{tmp}/cut.tar.xz'",)),
    "limit": ("ablation", "--train-limit 1438", ("--train-limit = 1438", "1437")),
    "too few images": ("ablation", "--train-limit 9", ("--phases = 10", "9 samples")),
    "one image in a phase": ("continual", "--train-limit 10", ("Phase 1", "1 of the 10 training images")),
    "network": ("ablation", "--model resnet", ("--model = 'resnet'", "Did you mean 'resnet18'?")),
    "hidden layers": ("ablation", "--model vgg16 --hidden 9", ("--hidden = (9,)",)),
    "buffer": ("continual", "--buffer-size 0", ("--buffer-size = 0",)),
    "noise": ("ablation", "--noise 0.5,0", ("--noise = '0.5,0'", "10 phases")),
    "noise of the other stream": ("ablation", "--label-noise 0.1", ("--label-noise = 0.1", "--stream = 'continual'")),
    "several tortoises": ("continual", "--tortoise-momenta 0.9 0.99", ("--validation = 0.0", "has several tortoises")),
    "perturbation": ("ablation", "--shrink-perturb-perturb -1", ("--shrink-perturb-perturb = -1.0",)),
    "noise of the weights": ("ablation", "--shrink-perturb-noise -1", ("--shrink-perturb-noise = -1.0",)),
    "batch": ("ablation", "--batch-size 1", ("--batch-size = 1",)),
    "seeds": ("ablation", "--seeds 0", ("--seeds = 0",)),
    "device": ("ablation", "--device tpu", ("--device = 'tpu'",)),
    "cuda without a GPU": ("ablation", "--device cuda", ("--device = 'cuda'", "--gpus-per-trial")),
    "samples of a grid": ("ablation", "--samples 9", ("--samples = 9 changes nothing", "--search = 'random'")),
    "scheduler": ("ablation", "--scheduler ahsa", ("--scheduler = 'ahsa'", "Did you mean 'asha'?")),
    "scheduler and search": ("ablation", "--scheduler pbt --search random", ("--search = 'random'", "'pbt'")),
    "unknown flag": ("ablation", "--momentums 0.9", ("--momentums",)),
    "no number": ("ablation", "--epochs many", ("--epochs", "many")),
    "cpus": ("ablation", "--cpus-per-trial 0", ("--cpus-per-trial = 0.0",)),
    "unwritable results": ("ablation", "--results-dir {tmp}/file/study", (RESULTS + "/file/study'",)),
    "results of something else": ("ablation", "--results-dir {tmp}/full", (RESULTS + "/full'",)),
    "results of a study": ("ablation", "--results-dir {tmp}/study", (RESULTS, "--resume='{tmp}/study'")),
    "resume and results": ("ablation", "--resume {tmp}/study --results-dir {tmp}/x", (RESULTS, "--resume")),
    "resume nothing": ("ablation", "--resume {tmp}/nowhere", ("--resume = '{tmp}/nowhere'", "no such directory")),
    "resume something else": ("ablation", "--resume {tmp}/full", ("--resume = '{tmp}/full'", "no study")),
    "resume another study": ("continual", "--resume {tmp}/study", ("--resume = '{tmp}/study'", "another script")),
    "resume with other epochs": ("ablation", "--resume {tmp}/study --epochs 7", ("--epochs = 7", "has 3")),
    # Given, and contradicting, though it is what a new study would take.
    "resume with the default": ("ablation", "--resume {tmp}/study --epochs 20", ("--epochs = 20", "has 3")),
    "resume with another grid": ("ablation", "--resume {tmp}/study --momenta 0.5", ("--momenta = (0.5,)", "(0.9,)")),
    "ratio": ("warm_start", "--subset-ratios 0.1 2", ("--subset-ratios = 2.0", "0 < subset_ratios <= 1")),
    "ratio of a grid": ("warm_start", "--subset-ratio 0.5", ("--subset-ratio = 0.5", "give --subset-ratios.")),
    "noise of a grid": ("warm_start", "--label-noises -1", ("--label-noises = -1.0",)),
    "method of a grid": ("warm_start", "--methods plain", ("--methods = ('plain',)", "--compare = 'grid'")),
    "comparison": ("warm_start", "--compare methosd", ("--compare = 'methosd'", "Did you mean 'methods'?")),
    "fresh head": ("warm_start", "--compare methods --methods fresh+head_reset", ("--methods = 'fresh+head_reset'",)),
    "base": ("warm_start", "--compare methods --base agument", ("--base = 'agument'", "Did you mean 'augment'?")),
    "base twice": ("warm_start", "--compare methods --base l2+l2", ("--base = 'l2+l2'", "twice")),
    "noise of phases": ("warm_start", "--noise 0.5", ("--noise = '0.5'", "give --label-noises.")),
    "Adam of a grid": ("warm_start", "--compare adam --adam-eps 0.1", ("--adam-eps = 0.1", "give --epsilons.")),
    "fewer seeds in the corners": ("warm_start", "--corner-seeds 3", ("--corner-seeds = 3", "5 <= corner_seeds")),
    "beta": ("warm_start", "--compare adam --beta1s 1", ("--beta1s = 1.0", "beta1s < 1")),
    "a subset of one": ("warm_start", "--subset-ratios 1.0 0.001", ("Phase 1", "1 of the 1437 training images")),
    "evaluations": ("warm_start", "--evaluate-every 0", ("--evaluate-every = 0",)),
    "other stream": ("warm_start", "--stream continual", ("--stream = 'continual'", "'warm_start'")),
    "resume with bad value": ("ablation", "--resume {tmp}/study --momenta 1.5", ("--momenta = 1.5",)),
}  # fmt: skip


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("refusals")
    (tmp / "home").mkdir()
    (tmp / "file").touch()
    (tmp / "full").mkdir()
    (tmp / "full" / "mine.txt").touch()
    settings = AblationSettings(epochs=3, momenta=(0.9,)).resolved()
    trials = ablation.trials(settings)
    create_study(tmp / "study", Study("ablation", "a:b", trials, "average_accuracy", settings=asdict(settings)))
    (tmp / "cut.tar.xz").write_bytes(_archive()[:-200])
    return tmp


def _archive() -> bytes:
    draw = np.random.default_rng(0)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as archive:
        for split in ("train", "test"):
            for number in range(4):
                image = io.BytesIO()
                Image.fromarray(draw.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(image, "png")
                member = tarfile.TarInfo(f"{split}/class{number % 2}/{number}.png")
                member.size = image.tell()
                image.seek(0)
                archive.addfile(member, image)
    return content.getvalue()


def _environment(tmp: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
    return {**kept, "HOME": str(tmp / "home"), "XDG_CACHE_HOME": str(tmp / "home" / "cache"), "OMP_NUM_THREADS": "1"}


def _content(directory: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(directory.rglob("*"))}


@pytest.fixture(scope="module")
def refusals(tmp: Path) -> dict[str, dict[str, Any]]:
    """What came of each of `CASES`, all run in one process that has imported neither ray nor avalanche."""
    lines = [[script, arguments.format(tmp=tmp).split()] for script, arguments, _ in CASES.values()]
    before = _content(tmp)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("many_command_lines.py"))],
        input=json.dumps(lines),
        env=_environment(tmp),
        cwd=tmp,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert _content(tmp) == before, "something was written"
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_work_is_refused(case: str, refusals: dict[str, dict[str, Any]], tmp: Path) -> None:
    found = refusals[case]
    assert found["code"] == 2, found
    assert found["out"] == ""
    assert "Traceback" not in found["err"]
    assert "Config" not in found["err"], "a field's name instead of its flag"
    message = " ".join(found["err"].replace("│", " ").split())
    for part in CASES[case][2]:
        assert part.format(tmp=tmp) in message
    assert found["heavy"] == []


def test_refusals_of_our_own_are_one_line(refusals: dict[str, dict[str, Any]]) -> None:
    # The command line's parser frames what it cannot read.
    framed = {case for case, found in refusals.items() if found["err"].count("\n") != 1}
    assert framed == {"interval in halves", "unknown flag", "no number"}


@pytest.mark.parametrize("where", [pytest.param("root", marks=pytest.mark.slow), "elsewhere"])
def test_script_of_a_checkout_that_is_not_installed(where: str, tmp: Path) -> None:
    # -S leaves out what makes the checkout importable; its dependencies stay.
    script = "tune_configs/ablation.py" if where == "root" else str(CHECKOUT / "tune_configs" / "ablation.py")
    done = subprocess.run(
        [sys.executable, "-S", script, "--momenta", "1.5"],
        env={**_environment(tmp), "PYTHONPATH": sysconfig.get_path("purelib")},
        cwd=CHECKOUT if where == "root" else tmp,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "ablation.py: error: --momenta = 1.5: accepted is a number with 0 <= momenta < 1.\n"
    assert done.stdout == ""


def test_more_gpus_than_the_cluster_has(cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = ablation.main(["--gpus-per-trial", "1", "--results-dir", str(tmp_path / "study")])
    message = capsys.readouterr().err
    assert code == 2
    assert "error: --cpus-per-trial = 1.0, --gpus-per-trial = 1.0: no node" in message
    assert "2 CPUs and 0 GPUs" in message
    assert not list(tmp_path.iterdir())


def test_ctrl_c_before_the_trials(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(settings: AblationSettings) -> tuple[Any, ...]:
        raise KeyboardInterrupt

    monkeypatch.setattr(ablation, "trials", interrupted)
    assert ablation.main([]) == 130
    assert capsys.readouterr().err == "ablation.py: interrupted\n"


def test_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def busy(*arguments: Any, **settings: Any) -> Any:
        raise RayStartError("Ray did not start on this machine.")

    monkeypatch.setattr(command_line, "run_study", busy)
    assert ablation.main(["--momenta", "0.5"]) == 75
    assert capsys.readouterr().err.splitlines()[-1] == "ablation.py: error: Ray did not start on this machine."
