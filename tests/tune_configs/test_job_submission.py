"""`ray job submit` to a cluster that asks for a token: what is let in, what is refused, stop and resume."""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from study_files import all_reports, table
from token_cluster import TOKEN, Head, started, status_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

CHECKOUT = Path(__file__).parents[2]
STUDY = "--momenta 0.5 --reset-intervals 1 --baselines plain --seeds 1 --phases 3 --epochs 20 --train-limit 400"
WRONG = "8" * 64


def copy_of_the_source(folder: Path, mark: str) -> Path:
    """The three packages in a folder, whose checkpoints have a file called `mark`: so it is seen what ran."""
    for package in ("ht_ray", "strategies", "tune_configs"):
        shutil.copytree(CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "tune_configs" / "vision_trial.py").open("a") as file:
        file.write(f'\n_STATE = "{mark}"\n')
    return folder


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started(tmp_path_factory.mktemp("home")) as found:
        yield found


def run_code(directory: Path, more: str = "") -> str:
    return f"{STUDY} --results-dir {shlex.quote(str(directory))} {more}"


def marks(directory: Path) -> set[str]:
    """Which copies of the source have written checkpoints."""
    return {path.name for path in (directory / "checkpoints").rglob("*.pt")}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_source(tmp_path_factory.mktemp("checkout"), "of-the-working-directory.pt")


@pytest.fixture(scope="module")
def submitted(head: Head, source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A study submitted from a checkout, with the right token: its directory, the exit code, what was printed."""
    directory = tmp_path_factory.mktemp("submitted") / "study"
    command = f"--submission-id whole --working-dir {source} -- python tune_configs/ablation.py {run_code(directory)}"
    return directory, *head.job("submit", *shlex.split(command))


def test_the_right_token_runs_the_working_directory(head: Head, submitted: tuple[Path, int, str]) -> None:
    directory, code, out = submitted
    assert code == 0, out
    assert "2 finished" in out
    assert marks(directory) == {"of-the-working-directory.pt"}
    code, log = head.job("logs", "whole")
    assert code == 0
    assert "2 finished" in log
    assert f"{directory}" in log
    code, log = head.client("print(client.get_job_logs('whole'))")
    assert code == 0
    assert "2 finished" in log


@pytest.mark.parametrize(
    ("token", "mode"), [(WRONG, "token"), (None, "token"), (None, "disabled")], ids=["wrong", "missing", "unasked"]
)
def test_another_token_or_none_is_refused_and_nothing_runs(
    head: Head, source: Path, tmp_path: Path, token: str | None, mode: str
) -> None:
    before = head.jobs()
    directory = tmp_path / "study"
    command = f"--submission-id refused --working-dir {source} -- python tune_configs/ablation.py {run_code(directory)}"
    code, out = head.job("submit", *shlex.split(command), token=token, mode=mode)
    assert code != 0
    assert "token" in out.lower()
    for other, arguments in (("logs", ["whole"]), ("stop", ["whole"]), ("list", [])):
        code, out = head.job(other, *arguments, token=token, mode=mode)
        assert code != 0, out
        assert "finished" not in out
    assert head.jobs() == before
    assert not directory.exists()


def test_the_client_of_python_is_refused_too(head: Head, tmp_path: Path) -> None:
    before = head.jobs()
    for token in (WRONG, None):
        code, out = head.client(f"client.submit_job(entrypoint='touch {tmp_path}/ran')", token=token)
        assert code != 0
        assert "token" in out.lower()
    assert head.jobs() == before
    assert not (tmp_path / "ran").exists()


def test_the_job_interface_itself_asks_for_the_token(head: Head) -> None:
    assert status_of(f"{head.url}/api/jobs/", TOKEN) == 200
    assert status_of(f"{head.url}/api/jobs/", None) == 401
    assert status_of(f"{head.url}/api/jobs/", WRONG) == 403


def test_a_stopped_job_is_resumed_by_another_to_the_same_results(
    head: Head, source: Path, submitted: tuple[Path, int, str], tmp_path: Path
) -> None:
    directory = tmp_path / "study"
    begin = f"--submission-id first --no-wait --working-dir {source} -- python tune_configs/ablation.py"
    code, out = head.job("submit", *shlex.split(begin), *shlex.split(run_code(directory, "--max-concurrent 1")))
    assert code == 0, out
    end = time.monotonic() + 900
    while not list(directory.glob("trials/*/results.jsonl")):
        assert time.monotonic() < end, head.job("logs", "first")
        time.sleep(0.1)
    code, out = head.job("stop", "first")
    assert code == 0, out
    assert head.wait_for("first") == "STOPPED"
    reported = sum(len(reports) for reports in all_reports(directory).values())
    assert 0 < reported < 6
    go_on = f"--submission-id second --working-dir {source} -- python tune_configs/ablation.py --resume {directory}"
    code, out = head.job("submit", *shlex.split(go_on))
    assert code == 0, out
    assert "2 finished" in out
    assert all_reports(directory) == all_reports(submitted[0])
    assert table(directory) == table(submitted[0])


def test_the_installed_package_runs_without_a_working_directory(
    head: Head, submitted: tuple[Path, int, str], tmp_path: Path
) -> None:
    installed = copy_of_the_source(tmp_path / "installed", "of-the-installed-package.pt")
    directory = tmp_path / "study"
    environment: Mapping[str, object] = {"env_vars": {"PYTHONPATH": str(installed)}}
    code, out = head.client(
        f"client.submit_job(submission_id='installed', runtime_env={json.dumps(environment)}, "
        f"entrypoint={'python -m tune_configs.ablation ' + run_code(directory)!r})"
    )
    assert code == 0, out
    assert head.wait_for("installed") == "SUCCEEDED", head.job("logs", "installed")
    assert marks(directory) == {"of-the-installed-package.pt"}
    assert all_reports(directory) == all_reports(submitted[0])
