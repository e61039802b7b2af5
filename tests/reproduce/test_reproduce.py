"""The ledger: what is run next, within the time there is; what is left goes on; the page says what the files say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.__main__ import main as ht_ray_main
from ht_ray.agents.registry import agent_from_dict
from ht_ray.errors import SettingError
from ht_ray.report import human_normalized, method_value
from ht_ray.reproduce import (
    AtariCell,
    Cell,
    Clock,
    Run,
    __main__,
    all_cells,
    ledger_page,
    plan,
    read_records,
    write_record,
)
from ht_ray.reproduce import run as run_module
from ht_ray.reproduce.run import Bench, DataSets, Estimate, Timings, choose, run_once
from ht_ray.vision import ImageData, WarmStartConfig

ROOT = Path(__file__).resolve().parents[2]
LEDGER = ROOT / "docs" / "reproduction"
CPU = torch.device("cpu")
TINY = (
    Cell("mnist-tiny-plain", "mnist", "mlp", WarmStartConfig(0.5, 0.5, epochs=2), "plain", 1),
    Cell("mnist-tiny-ema", "mnist", "mlp", WarmStartConfig(0.5, 0.5, epochs=2), "ema", 1),
)
pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")


def images(count: int = 600, tests: int = 100) -> ImageData:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 10
    pixels = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=draw)
    return ImageData("mnist", pixels, labels, pixels[:tests], labels[:tests], tuple("0123456789"), (0.5,), (0.25,))


class Images(DataSets):
    """Random images in place of MNIST; no other data set."""

    def _load(self, name: str) -> tuple[ImageData, dict[str, Any]]:
        if name != "mnist":
            raise SettingError(f"there is no {name} here")
        described = {"name": name, "train_images": 600, "test_images": 100, "encoding": "PNG", "digest": "0" * 16}
        return images(), described


def bench(folder: Path, seconds: float = 600.0) -> Bench:
    return Bench(CPU, Images(None), folder / "underway", Clock(seconds))


class Killed(Exception):
    pass


class StopAt(Clock):
    """A clock that does something when it is asked for the `call`-th time, and goes on."""

    def __init__(self, call: int, act: Callable[[], bool]) -> None:
        super().__init__(600)
        self.calls, self.call, self.act = 0, call, act

    def stop(self) -> bool:
        self.calls += 1
        return self.act() if self.calls == self.call else super().stop()


# --- what is run next ---


def test_the_first_runs_are_the_most_valuable() -> None:
    runs = plan(all_cells(), [])
    assert [run.id for run in runs[:4]] == [
        "cifar10-r0.1-n0.5-plain-seed0",
        "cifar10-fresh-seed0",
        "cifar10-r0.1-n0.5-shrink_perturb-seed0",
        "cifar10-r0.1-n0.5-hare_tortoise-seed0",
    ]


def test_every_cell_has_one_seed_before_any_has_two_and_as_many_as_the_paper() -> None:
    cells = all_cells()
    runs = plan(cells, [])
    assert [run.cell for run in runs[: len(cells)]] == list(cells)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    seeds = {data: max(run.seed for run in runs if run.cell.data == data) + 1 for data in ("mnist", "tiny-imagenet")}
    assert seeds == {"mnist": 5, "tiny-imagenet": 3}


def test_what_is_there_is_not_run_again() -> None:
    cells = all_cells()[:2]
    there = [Run(cells[0], 0).id, Run(cells[1], 0).id, Run(cells[0], 1).id]
    assert plan(cells, there)[0] == Run(cells[1], 1)
    assert plan(cells, [Run(cell, seed).id for cell in cells for seed in range(5)]) == ()


def test_names_of_cells_are_names_of_files_and_of_one_cell_each() -> None:
    names = [cell.id for cell in all_cells()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


def test_cells_have_the_papers_protocol() -> None:
    cells = {cell.id: cell for cell in all_cells()}
    ours = cells["cifar10-r0.1-n0.5-hare_tortoise"]
    training = ours.training(CPU)
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (256, 1e-3, 1e-5)
    assert (training.augment, training.precision) == ("none", "fp32")
    assert (ours.method_config.momentum, ours.method_config.reset_interval) == (0.999, 10)
    fast = ours.training(torch.device("cuda"))
    assert (fast.precision, fast.channels_last) == ("bf16", True)
    assert cells["cifar10-fresh-augment"].method_config.name == "augment"
    assert cells["cifar10-buffer-hare_tortoise"].training(CPU).augment == "crop_flip"
    assert cells["cifar10-r0.1-n0.5-crelu"].model_config.activation == "crelu"


@pytest.mark.parametrize(
    ("left", "seconds", "expected"),
    [
        (100, {"plain": (90, 1), "ema": (10, 1)}, "plain"),
        (50, {"plain": (90, 1), "ema": (10, 1)}, "ema"),
        (5, {"plain": (90, 1), "ema": (10, 1)}, "plain"),  # begun, to be left
        (5, {"plain": (90, 9), "ema": (10, 1)}, "ema"),  # an epoch of the first does not fit
        (5, {"plain": (90, 9), "ema": (99, 9)}, None),
    ],
)
def test_the_first_that_fits_is_taken(
    left: float, seconds: dict[str, tuple[float, float]], expected: str | None, tmp_path: Path
) -> None:
    chosen = choose(
        plan(TINY, []),
        bench(tmp_path, left),
        lambda cell: Estimate(*map(float, seconds[cell.method])),
        lambda text: None,
    )
    assert (chosen and chosen.cell.method) == expected


def test_what_is_underway_goes_first_and_what_has_no_data_is_left_out(tmp_path: Path) -> None:
    said: list[str] = []
    there = bench(tmp_path)
    runs = plan((all_cells()[0], *TINY), [])

    def estimate(cell: Cell) -> Estimate:
        return Estimate(1.0, 1.0)

    assert choose(runs, there, estimate, said.append) == Run(TINY[0], 0)
    assert said[0] == "left out: there is no cifar10 here"
    there.folder(Run(TINY[1], 3)).mkdir(parents=True)
    assert choose(runs, there, estimate, said.append) == Run(TINY[1], 3)


def test_estimates_are_the_steps_and_tests_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def second_a_step(cell: Cell, data: ImageData, samples: int, there: Bench) -> float:
        measured.append(samples)
        return samples / 256

    monkeypatch.setattr(run_module, "_epoch_seconds", second_a_step)
    timings = Timings(bench(tmp_path))
    # 4 epochs of 300 and 2 of 600 images, 2 and 3 steps each; 6 tests of 100 images.
    tests = 100 / 256 * run_module.TEST_SHARE
    assert timings(TINY[0]) == pytest.approx((1.1 * (4 * 2 + 2 * 3 + 6 * tests), 1.1 * (3 + tests)))
    timings(TINY[1])
    assert measured == [256]  # once for a data set and network


def test_a_step_is_measured_by_training(tmp_path: Path) -> None:
    estimate = Timings(bench(tmp_path))(TINY[0])
    assert 0 < estimate.epoch < estimate.run < 60


def test_data_that_are_not_whole_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "load_data", lambda config: images())
    with pytest.raises(SettingError, match=r"mnist: there are 600 and 100 images; a cell takes all \(60000, 10000\)"):
        DataSets("somewhere")("mnist")


@pytest.mark.data
def test_cifar10_is_read_whole_and_said_to_be_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data, described = DataSets(os.environ["HT_RAY_DATA"])("cifar10")
    assert data.train_images.shape == (50_000, 3, 32, 32)
    assert described["encoding"] == "JPEG, quality 75"
    with pytest.raises(SettingError, match=r"a cell takes all \(100000, 10000\)"):
        DataSets(os.environ["HT_RAY_DATA"])("tiny-imagenet")


# --- leaving and going on ---


def without_calls(record: dict[str, Any] | None) -> dict[str, Any]:
    assert record is not None
    return {name: value for name, value in record.items() if name != "calls"}


@pytest.mark.parametrize("call", [1, 3, 4])  # inside the first phase, and inside the second
def test_a_run_out_of_time_goes_on_to_the_same_record(call: int, tmp_path: Path) -> None:
    run = Run(TINY[1], 2)
    whole = run_once(run, bench(tmp_path / "whole"))
    there = Bench(CPU, Images(None), tmp_path, StopAt(call, lambda: True))
    assert run_once(run, there) is None
    record = run_once(run, there)
    assert without_calls(record) == without_calls(whole)
    assert record is not None
    assert [call["seconds"] is not None for call in record["calls"]] == [True, True]


@pytest.mark.parametrize("call", [1, 4])
def test_a_run_that_was_killed_goes_on_to_the_same_record(call: int, tmp_path: Path) -> None:
    def kill() -> bool:
        raise Killed

    run = Run(TINY[0], 0)
    whole = run_once(run, bench(tmp_path / "whole"))
    there = Bench(CPU, Images(None), tmp_path, StopAt(call, kill))
    with pytest.raises(Killed):
        run_once(run, there)
    record = run_once(run, there)
    assert without_calls(record) == without_calls(whole)
    assert record is not None
    assert [call["seconds"] is not None for call in record["calls"]] == [False, True]


def test_what_is_underway_with_other_settings_is_refused(tmp_path: Path) -> None:
    there = Bench(CPU, Images(None), tmp_path, StopAt(1, lambda: True))
    assert run_once(Run(TINY[0], 0), there) is None
    changed = replace(TINY[0], stream=replace(TINY[0].stream, label_noise=0.2))
    with pytest.raises(
        SettingError, match=r"mnist-tiny-plain-seed0 cannot go on: .*another phases\. Remove .*-fp32 to"
    ):
        run_once(Run(changed, 0), there)


def test_another_epoch_is_not_begun_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    clock = Clock(10)
    clock.begin()
    stops = []
    for now[0] in (101.0, 104.0, 106.9, 107.1):
        stops.append(clock.stop())
    assert stops == [False, False, False, False]
    now[0] = 108.0
    assert not clock.stop()
    now[0] = 109.2
    assert clock.stop()
    clock = Clock(10)
    clock.asked = True
    assert clock.stop()
    assert clock.left == 0


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line over the tiny cells, in one seed each."""
    monkeypatch.setattr(__main__, "all_cells", lambda: TINY)
    monkeypatch.setattr(__main__, "plan", lambda cells, finished: [r for r in plan(cells, finished) if r.seed == 0])
    monkeypatch.setattr(__main__, "DataSets", Images)
    monkeypatch.setattr("ht_ray.reproduce.page.all_cells", lambda: (*TINY, *all_cells()))


def command(folder: Path, *more: str) -> int:
    return __main__.main(["--out", str(folder / "out"), "--checkpoints", str(folder / "underway"), *more])


@pytest.mark.usefixtures("tiny")
def test_the_command_runs_what_is_missing_and_makes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "--only", "mnist-tiny-ema") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "mnist-tiny-ema-seed0.json"]
    assert list((tmp_path / "underway").iterdir()) == []
    assert command(tmp_path) == 0
    assert [record["cell"] for record in read_records(out)] == ["mnist-tiny-ema", "mnist-tiny-plain"]
    assert (out / "README.md").read_text() == ledger_page(read_records(out))
    said = capsys.readouterr().out
    assert "nothing is missing" in said
    before = (out / "README.md").read_text()
    (out / "README.md").unlink()
    assert command(tmp_path, "--page") == 0
    assert (out / "README.md").read_text() == before
    capsys.readouterr()
    assert command(tmp_path, "--list") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["mnist-tiny-plain", "1", "of", "5", "seeds"],
        ["mnist-tiny-ema", "1", "of", "5", "seeds"],
    ]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_run_underway(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    assert command(tmp_path / "whole") == 0

    def ask() -> bool:
        signal.raise_signal(number)
        return Clock.stop(clock)

    clock = StopAt(3, ask)
    with monkeypatch.context() as patch:
        patch.setattr(__main__, "Clock", lambda seconds: clock)
        assert command(tmp_path) == 128 + number
    assert not (tmp_path / "out").exists()
    assert "mnist-tiny-plain-seed0: left underway in" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    assert command(tmp_path) == 0
    whole, resumed = (read_records(folder / "out") for folder in (tmp_path / "whole", tmp_path))
    assert list(map(without_calls, resumed)) == list(map(without_calls, whole))


@pytest.mark.usefixtures("tiny")
def test_no_time_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, "--minutes", "1e-9") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes = 0.0: accepted is a number with 0 < --minutes"),
        (["--minutes", "nan"], "--minutes = nan: accepted is a number"),
        (["--minutes", "soon"], "argument --minutes: invalid float value: 'soon'"),
        (["--only", "cifar10-fresk"], "Did you mean 'cifar10-fresh'?"),
        (["--only"], "argument --only: expected at least one argument"),
        (["--device", "cuda:77"], "--device = 'cuda:77': there is no such device here"),
        (["--device", "gpu"], "--device = 'gpu': there is no such device here"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["--out", __file__], "is a file: accepted is a folder for the records"),
        ([], "--out is not given and there is no docs/reproduction here"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    arguments: Sequence[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ht_ray_main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("ht-ray reproduce: error: ")
    assert error.count("\n") == 1


def test_it_runs_without_what_a_machine_with_torch_lacks(tmp_path: Path) -> None:
    lacking = ["ray", "avalanche", "gymnasium", "ale_py", "tyro", "sklearn", "tensorboard", "cv2"]
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({lacking})); "
        f"from ht_ray.__main__ import main; sys.exit(main(['reproduce', '--list', '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(all_cells())


# --- records ---


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = run_once(Run(TINY[0], 0), bench(tmp_path_factory.mktemp("record")))
    assert found is not None
    return found


def test_a_record_says_how_it_was_made(record: dict[str, Any], tmp_path: Path) -> None:
    path = write_record(tmp_path, record)
    (read,) = read_records(tmp_path)
    # Through JSON, where tuples are lists.
    assert read == json.loads(json.dumps(record)) == json.loads(path.read_text())
    assert read["protocol"] == {
        "phases": [
            {"samples": 300, "epochs": 4, "steps": 8, "label_noise": 0.5},
            {"samples": 600, "epochs": 2, "steps": 6, "label_noise": 0.0},
        ],
        "evaluate_every": 1,
    }
    assert read["curve"]["phase"] == [1, 1, 1, 1, 2, 2]
    assert read["results"]["final_accuracy"] == read["curve"]["test_accuracy"][-1]
    assert read["settings"]["training"]["batch_size"] == 256
    assert read["calls"][0]["torch"] == torch.__version__
    assert max(map(len, path.read_text().splitlines())) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("seed"), "seed is missing"),
        (lambda r: r.update(mood="good"), "mood is unknown"),
        (lambda r: r.update(seed="0"), "seed: expected int, got '0'"),
        (lambda r: r.update(seed=True), "seed: expected int, got True"),
        (lambda r: r["data"].pop("encoding"), "data: encoding is missing"),
        (lambda r: r.update(calls=[]), "calls: expected a list that is not empty"),
        (lambda r: r["calls"][0].update(seconds="long"), "seconds: expected int or float or NoneType, got 'long'"),
        (lambda r: r["curve"].update(epoch=[1, 2.5]), "curve: epoch: expected int, got 2.5"),
        (lambda r: r["curve"]["epoch"].pop(), "curve: the columns have different lengths"),
        (lambda r: r.update(results=3), "results: expected an object, got 3"),
        (lambda r: r.update(format=2), "format = 2: accepted is 1"),
        (lambda r: r.update(seed=1), "is the record of mnist-tiny-plain-seed1.json"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(
    change: Callable[[dict[str, Any]], Any], message: str, record: dict[str, Any], tmp_path: Path
) -> None:
    path = write_record(tmp_path, record)
    changed = json.loads(path.read_text())
    change(changed)
    path.write_text(json.dumps(changed))
    with pytest.raises(SettingError) as caught:
        read_records(tmp_path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    path.write_text("{")
    with pytest.raises(SettingError, match="cannot be read as JSON"):
        read_records(tmp_path)


# --- the page ---


def renamed(record: dict[str, Any], cell: str, seed: int, accuracy: float, **data: str) -> dict[str, Any]:
    results = {**record["results"], "final_accuracy": accuracy}
    return {**record, "cell": cell, "seed": seed, "results": results, "data": {**record["data"], **data}}


def row(page: str, section: str, start: str) -> list[str]:
    part = page.split(f"{section}\n", 1)[1]
    line = next(line for line in part.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_without_runs_has_the_papers_numbers_alone() -> None:
    page = ledger_page(())
    assert f"0 of {len(all_cells())} cells have a run" in page
    assert row(page, "### CIFAR-10, ResNet-18, test accuracy", "0.1")[-1] == "to do (69)"
    assert row(page, "### CIFAR-10, ResNet-18, methods", "Plain") == ["Plain", "to do", "70.4", "", "to do", "99.8", ""]
    assert row(page, "### CIFAR-10, ResNet-18, methods", "Hare & Tortoise")[1:4] == ["to do", "–", ""]
    assert row(page, "## Table 1: Atari-100k", "DrQ + H&T")[:3] == ["DrQ + H&T", "to do", "0.287"]
    assert "†" not in page


def test_the_page_has_ours_next_to_the_papers(record: dict[str, Any]) -> None:
    cell = "cifar10-r0.1-n0.5-plain"
    jpeg = {"name": "cifar10", "encoding": "JPEG, quality 75"}
    page = ledger_page([renamed(record, cell, 0, 0.70, **jpeg), renamed(record, cell, 1, 0.72, **jpeg)])
    assert f"1 of {len(all_cells())} cells have a run, 2 runs in all." in page
    assert row(page, "### CIFAR-10, ResNet-18, test accuracy", "0.1")[-1] == "71.00 ± 1.41†, n=2 (69, +2.00)"
    assert row(page, "### CIFAR-10, ResNet-18, methods", "Plain")[1:4] == ["71.00 ± 1.41†, n=2", "70.4", "+0.60"]
    assert "CIFAR-10 was at hand as JPEG, quality 75 only" in page
    assert f"[{cell}]({cell}-seed1.json) | 1 | 72.00† | " in page


def test_images_as_published_are_not_marked(record: dict[str, Any]) -> None:
    # Tiny ImageNet's own images are JPEG files.
    tiny = renamed(record, "tiny-imagenet-fresh", 0, 0.4, name="tiny-imagenet", encoding="JPEG, quality 75")
    assert "†" not in ledger_page([tiny, renamed(record, "mnist-r1-n0-plain", 0, 0.98, name="mnist")])


def test_the_committed_page_is_that_of_the_committed_records() -> None:
    assert (LEDGER / "README.md").read_text(encoding="utf-8") == ledger_page(read_records(LEDGER))


def test_the_committed_records_are_runs_of_their_cells() -> None:
    cells = {cell.id: cell for cell in all_cells()}
    records = read_records(LEDGER)
    assert records
    for found in records:
        cell, curve, results = cells[found["cell"]], found["curve"], found["results"]
        if isinstance(cell, AtariCell):
            assert (found["game"], found["protocol"]["steps"]) == (cell.game, cell.steps)
            assert found["protocol"]["episodes"] == cell.episodes
            assert agent_from_dict(found["settings"]["agent"]) == cell.agent
            assert curve["step"][-1] == cell.steps and curve["score"][-1] == results["score"]
            assert results["human_normalised"] == human_normalized(cell.game, results["score"])
            continue
        assert found["data"]["name"] == cell.data
        assert (found["data"]["train_images"], found["data"]["test_images"]) == run_module.IMAGES[cell.data]
        assert found["settings"]["method"]["name"] == cell.method
        assert [phase["epochs"] for phase in found["protocol"]["phases"]][-1] == 100
        assert curve["step"][-1] == sum(phase["epochs"] for phase in found["protocol"]["phases"])
        assert (curve["test_accuracy"][-1], curve["train_accuracy"][-1]) == (
            results["final_accuracy"],
            results["final_train_accuracy"],
        )


@pytest.mark.parametrize("split", ["test", "train"])
def test_every_number_of_the_papers_tables_has_a_cell(split: str) -> None:
    shown = ledger_page(())
    grid = "Table 5: test accuracy" if split == "test" else "Table 4: training accuracy"
    assert shown.split(f"## {grid}", 1)[1].split("\n## ", 1)[0].count("to do (") == 4 * 36
    cells = [cell for cell in all_cells() if isinstance(cell, Cell)]
    rows = {cell.method for cell in cells if method_value(cell.data, cell.model, method=cell.method, split=split)}
    assert len(rows) == 12
