"""Any bit of any file of a study is flipped, any file is cut: what is resumed has the same results, or names the file.

The sweep's own code runs, with a stand-in for Ray Tune; and so does the report's, but for its figures.
"""

from __future__ import annotations

import csv
import io
import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from fake_tune import fake_tune

from ht_ray.errors import SettingError
from ht_ray.report.__main__ import main as report_main
from tune_configs.ablation import AblationSettings, trials
from tune_configs.atari100k import AtariSettings
from tune_configs.command_line import main as study_main
from tune_configs.prepare import Prepared

_COMMON = ["--seeds", "1", "--phases", "4", "--epochs", "2", "--baselines", "plain"]
STUDIES = {
    "grid": ["--momenta", "0.9", "0.99", "--reset-intervals", "1", "2"],
    "halving": ["--search", "optuna", "--samples", "5", "--scheduler", "asha", "--reduction-factor", "2"],
    "population": ["--scheduler", "pbt", "--population", "4", "--perturbation-interval", "1"],
}
#: After how many results the interrupted one of each was cut off.
CUT_OFF = {"grid": 14, "halving": 11, "population": 17}


@pytest.fixture(scope="module", autouse=True)
def _without_figures() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ht_ray.report.write._figures", lambda part: {})
        yield


def command(*arguments: str, results: int | None = None) -> tuple[int, str, str]:
    """Run the study's command line, and return its exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()

    def prepare(settings: Any, planned: Any) -> Prepared:
        return Prepared("sweep_trials:Pretending")

    with fake_tune(results), redirect_stdout(out), redirect_stderr(err):
        code = study_main("ablation", AblationSettings, trials, "", arguments, prepare)
    return code, out.getvalue(), err.getvalue()


def report(directory: Path) -> tuple[int, str]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = report_main([str(directory)])
    return code, err.getvalue()


def results(directory: Path) -> dict[str, Any]:
    """All that came of a study, without what tells of its runs."""
    found: dict[str, Any] = {}
    for path in sorted((directory / "trials").iterdir()):
        lines = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
        status = json.loads((path / "status.json").read_text())
        found[path.name] = [{**line, "seconds": None, "sum": None} for line in lines], status["status"], status["error"]
        found[f"{path.name} events"] = events(path)
    with (directory / "results.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        found["results.csv"] = [{k: v for k, v in row.items() if k not in ("seconds", "restarts")} for row in rows]
    for name in ("table.csv", "drops.csv"):
        found[name] = (directory / name).read_text()
    return found


def events(folder: Path) -> list[Any]:
    from tensorboard.compat.proto.event_pb2 import Event

    from ht_ray.records.event_files import _content, _read

    (path,) = folder.glob("events.out.*")
    found = _read(path.read_bytes())
    assert found is not None, path
    assert all(isinstance(event, Event) for event in found)
    return [_content(event) for event in found]


class Studies:
    """A finished and an interrupted study of each kind, and the results of the finished one."""

    def __init__(self, root: Path) -> None:
        self.directories: list[tuple[str, Path]] = []
        self.results: dict[str, Any] = {}
        for name, flags in STUDIES.items():
            finished, interrupted = root / f"{name}-finished", root / f"{name}-interrupted"
            code, _, err = command("--results-dir", str(finished), *_COMMON, *flags)
            assert code == 0, err
            self.results[name] = results(finished)
            code, _, err = command("--results-dir", str(interrupted), *_COMMON, *flags, results=CUT_OFF[name])
            assert code == 130, err
            assert report(interrupted)[0] == 0
            undamaged = shutil.copytree(interrupted, root / f"{name}-resumed")
            assert command("--resume", str(undamaged))[0] == 0
            assert results(undamaged) == self.results[name]
            self.directories += [(name, finished), (name, interrupted)]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Studies:
    return Studies(tmp_path_factory.mktemp("studies"))


Change = Callable[[bytes, random.Random], bytes]


def flip(content: bytes, draw: random.Random) -> bytes:
    position = draw.randrange(len(content))
    return content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :]


def cut(content: bytes, draw: random.Random) -> bytes:
    # At the end of a line as often as anywhere: what is left then is whole.
    ends = [match.end() for match in re.finditer(b"\n", content)][:-1]
    return content[: draw.choice(ends) if ends and draw.random() < 0.5 else draw.randrange(len(content))]


def kind_of(path: Path) -> str:
    return re.sub(r"events\.out.*", "events.out", path.name)


def check_damaged(studies: Studies, name: str, directory: Path, path: Path, what: str) -> str:
    """Resume a study, one of whose files is damaged, and report; return how that went."""
    code, _, err = command("--resume", str(directory))
    refused = [line for line in err.splitlines() if "error: " in line]
    where = f"{what}: {directory.name}/{path.relative_to(directory)}: {err}"
    assert "Traceback" not in err, where
    if code == 0:
        assert not refused, where
        assert results(directory) == studies.results[name], where
        assert report(directory)[0] == 0, where
        assert results(directory) == studies.results[name], where
        return "equal, and said" if path.name in err else "equal"
    assert (code, len(refused)) == (2, 1), where
    assert path.name in refused[0], where
    code, err = report(directory)
    assert (code, err.count("\n")) in ((0, 0), (2, 1)), (where, err)
    return "refused, and named"


def try_damage(studies: Studies, work: Path, change: Change, times: int, seed: int) -> Counter[str]:
    """Change a file of a study so many times, resume it and report; count what came of it, by the kind of file."""
    draw = random.Random(seed)
    counts: Counter[str] = Counter()
    files = {
        directory: sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
        for _, directory in studies.directories
    }
    for number in range(times):
        name, original = draw.choice(studies.directories)
        kind = draw.choice(sorted(set(map(kind_of, files[original]))))
        chosen = draw.choice([path for path in files[original] if kind_of(path) == kind])
        directory = work / original.name
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(original, directory)
        path = directory / chosen.relative_to(original)
        path.write_bytes(change(path.read_bytes(), draw))
        counts[f"{kind}: {check_damaged(studies, name, directory, path, f'{change.__name__} {number}')}"] += 1
    return counts


def test_damage_to_any_file_changes_no_result(studies: Studies, tmp_path: Path) -> None:
    assert try_damage(studies, tmp_path, flip, 60, seed=1).total() == 60
    assert try_damage(studies, tmp_path, cut, 20, seed=2).total() == 20


WRONG = ["{}", "[]", "null", "3", '"text"', "[{}]", "[[]]", "[" * 5000, "1e999", "\\0", "\ud800"]


def wrong_shapes(studies: Studies, work: Path, some: Callable[[int], bool]) -> int:
    """Put JSON of another shape in place of each kind of file of each study, and of a line of it; resume and report."""
    cases = [
        (name, original, kind, path, wrong)
        for name, original in studies.directories
        for kind in ("config.json", "trials.json", "status.json", "settled.json", "*.jsonl", "manifest.json")
        for path in {path.name: path for path in sorted(original.rglob(kind))}.values()
        for wrong in WRONG
    ]
    done = 0
    for name, original, kind, chosen, wrong in (case for number, case in enumerate(cases) if some(number)):
        directory = work / original.name
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(original, directory)
        path = directory / chosen.relative_to(original)
        rest = path.read_bytes().splitlines(keepends=True)[1:] if kind == "*.jsonl" else []
        path.write_bytes(wrong.encode("utf-8", "surrogatepass") + b"\n" + b"".join(rest))
        check_damaged(studies, name, directory, path, wrong[:9])
        done += 1
    return done


def test_no_json_of_another_shape_stops_a_study(studies: Studies, tmp_path: Path) -> None:
    assert wrong_shapes(studies, tmp_path, lambda number: number % 13 == 5) >= 20


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_json_of_any_other_shape_stops_a_study(studies: Studies, tmp_path: Path) -> None:
    assert wrong_shapes(studies, tmp_path, lambda number: True) >= 300


def test_a_study_of_an_earlier_version_is_resumed_and_repaired(studies: Studies, tmp_path: Path) -> None:
    """Without check sums: lines that are missing, twice or swapped are found by their numbers and their steps."""
    for name, original in studies.directories:
        directory = shutil.copytree(original, tmp_path / original.name)
        for path in directory.rglob("*.json*"):
            if "checkpoints" not in path.parts and "report" not in path.name:
                text = re.sub(r',\s*"(sum|plan)": "\w{8}"', "", path.read_text())
                path.write_text(re.sub(r', "reports": \d+}', "}", text) if path.name == "status.json" else text)
        path = max((directory / "trials").glob("*/results.jsonl"), key=lambda path: path.stat().st_size)
        lines = path.read_text().splitlines(keepends=True)
        for changed in ([*lines[:1], *lines], lines[1:], [*lines[:1], *lines[2:]], [lines[1], lines[0], *lines[2:]]):
            path.write_text("".join(changed))
            code, _, err = command("--resume", str(directory))
            assert code == 0, err
            assert f"{path} is damaged: line" in err
            assert "repaired from its newest checkpoint, or run again" in err
            assert results(directory) == studies.results[name]


@pytest.mark.parametrize("settings_class", [AblationSettings, AtariSettings])
def test_settings_of_the_wrong_type_are_refused(settings_class: Any) -> None:
    saved = json.loads(json.dumps(asdict(settings_class().resolved())))
    assert settings_class.from_json(saved) == settings_class().resolved()
    for name, wrong in product(saved, [{}, [[]], [{}], 1.5, "x", -1, True, None]):
        try:
            settings_class.from_json({**saved, name: wrong}).resolved()
        except SettingError as refused:
            assert "\n" not in str(refused)


def test_a_finished_trial_without_its_checkpoint_is_run_again(studies: Studies, tmp_path: Path) -> None:
    name, original = studies.directories[0]
    directory = shutil.copytree(original, tmp_path / "study")
    shutil.rmtree(directory / "checkpoints")
    path = next((directory / "trials").glob("*/results.jsonl"))
    path.write_bytes(path.read_bytes().replace(b'"index": 2', b'"index": 3'))
    code, _, err = command("--resume", str(directory))
    assert (code, "line 3: its check sum says that it was changed" in err) == (0, True)
    assert results(directory) == studies.results[name]


def test_event_files_are_made_again(studies: Studies, tmp_path: Path) -> None:
    name, original = studies.directories[0]
    for again in ("--resume", "report"):
        directory = shutil.copytree(original, tmp_path / again)
        first, second, third, *others = sorted((directory / "trials").glob("*/events.out.*"))
        first.unlink()
        second.write_bytes(flip(second.read_bytes(), random.Random(0)))
        third.write_bytes(third.read_bytes()[:-40])
        kept = [path.stat().st_mtime_ns for path in others]
        if again == "report":
            out = io.StringIO()
            with redirect_stdout(out):
                assert report_main([str(directory)]) == 0
            assert "Event files of 3 trials that have ended were damaged or missing: written again" in out.getvalue()
        else:
            assert "event files of 3 trials" in command("--resume", str(directory))[2]
        assert results(directory) == studies.results[name]
        assert [path.stat().st_mtime_ns for path in others] == kept
    # A report that is written elsewhere leaves the study alone.
    directory = shutil.copytree(original, tmp_path / "study")
    gone = next((directory / "trials").glob("*/events.out.*"))
    gone.unlink()
    assert report_main([str(directory), "--out", str(tmp_path / "out")]) == 0
    assert not gone.exists()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_thousand_bits_and_two_hundred_cuts(studies: Studies, tmp_path: Path) -> None:
    began = time.monotonic()
    for change, times in ((flip, 1000), (cut, 200)):
        counts = try_damage(studies, tmp_path, change, times, seed=3)
        assert counts.total() == times
        print(f"\n{change.__name__}: {times} in {time.monotonic() - began:.0f} s")
        for what, count in sorted(counts.items()):
            print(f"  {count:4} {what}")
