"""A Ray that a study starts: who reaches it, how it starts on a busy machine, and what it leaves."""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ht_ray.errors import SettingError
from ht_ray.sweep import RayStartError
from ht_ray.sweep.driver.local_ray import _free_ports, _make_token, start_ray
from ht_ray.sweep.worker import late_start, setup_worker

HERE = Path(__file__).parent
Driver = Callable[..., dict[str, Any]]


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    # Ray's sockets lie in it, and the system has names of 107 bytes for them.
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def driver(ray_folder: Path, tmp_path: Path) -> Driver:
    def run(*arguments: str) -> dict[str, Any]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
        done = subprocess.run(
            [sys.executable, str(HERE / "lone_study.py"), *arguments],
            env={**kept, "HOME": str(tmp_path), "RAY_TMPDIR": str(ray_folder), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return run


@pytest.fixture
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def token_of(home: Path) -> Path:
    return home / ".ray" / "auth_token"


@pytest.mark.timeout(600)
def test_a_study_alone_is_reached_by_this_machine_only_and_leaves_nothing(
    driver: Driver, ray_folder: Path, tmp_path: Path
) -> None:
    found = driver("study", str(tmp_path / "study"))
    assert found["exit_code"] == 0
    assert found["summary"] == {"hidden": 1.0, "waited": 1.0, "threads": 1.0}
    assert not found["kept"]
    # The driver, GCS, raylet, its two agents and a worker, at least.
    names = {name for name, _ in found["listening"]}
    assert {"gcs_server", "raylet"} <= names
    assert len(found["listening"]) >= 8
    mapped = [ipaddress.ip_address(address) for _, address in found["listening"]]
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in mapped), found["listening"]
    assert found["drained"][0] == 0, found["drained"][1]
    assert stat.S_IMODE(token_of(tmp_path).stat().st_mode) == 0o600
    assert not list((ray_folder / "ray").iterdir())
    assert not processes_that_name(ray_folder)


@pytest.mark.timeout(600)
def test_what_a_failed_start_left_is_gone_before_the_next(driver: Driver, ray_folder: Path) -> None:
    found = driver("fail", "1")
    assert found["error"] is None
    (said,) = found["said"]
    assert said == (
        "Ray has not started (Exception: The current node timed out during startup.); trying again in 0.1 s"
    )
    # Processes ran when the start failed, and as many when the next one had come as far.
    assert found["begun"][0] == found["begun"][1] >= 3
    assert len(found["sessions"]) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_last_failed_start_leaves_the_logs_it_names(driver: Driver, ray_folder: Path) -> None:
    found = driver("fail", "9")
    assert len(found["begun"]) == 3
    assert len(found["said"]) == 2
    assert found["left"] == 1, "something besides the driver"
    (session,) = found["sessions"]
    logs = ray_folder / "ray" / session / "logs"
    assert found["error"] == (
        "Ray did not start on this machine (Exception: The current node timed out during startup.). The machine may be "
        f"too busy, or have too little memory or shared memory. Ray's logs are in {logs}."
    )
    assert any(logs.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_agents_that_come_late_delay_nothing(driver: Driver) -> None:
    # Ray's own node waits 17 seconds for them, and gives up.
    found = driver("late", "40")
    assert found == {"said": [], "seen": 2}


def processes_that_name(folder: Path) -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return [line for line in lines if str(folder) in line]


def test_workers_are_begun_at_once_where_they_need_no_environment() -> None:
    worker = ["default_worker.py", "--node-id=7", "--runtime-env-hash=0"]
    plain = ["--language=PYTHON", "--serialized-runtime-env-context={}"]
    assert setup_worker.main([*worker, *plain]) == [sys.executable, *worker]
    assert setup_worker.main(worker) == [sys.executable, *worker]
    for other in (["--language=JAVA"], ['--serialized-runtime-env-context={"env_vars": {"A": "1"}}']):
        command, script, *arguments = setup_worker.main([*worker, *other])
        assert (command, arguments) == (sys.executable, [*worker, *other])
        assert script.endswith("ray/_private/workers/setup_worker.py")
        assert Path(script).is_file()


def test_what_begins_late_ends_with_its_parent() -> None:
    # The shell ends, and with it whose child the waiting process was. It has the output open until it ends itself.
    late = f"{sys.executable} {late_start.__file__} 600 {sys.executable} -c pass"
    subprocess.run(["sh", "-c", f"{late} & sleep 5"], stdout=subprocess.PIPE, timeout=60, check=True)
    begun = subprocess.run(
        [sys.executable, late_start.__file__, "0.1", sys.executable, "-c", "print(7)"], capture_output=True, text=True
    )
    assert (begun.returncode, begun.stdout) == (0, "7\n")


def test_what_cannot_pass_is_not_tried_again() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    with pytest.raises(RayStartError, match=r"\(OSError: \[Errno 28\] No space left on device\)"):
        start_ray(full, say=said.append)
    assert not said


def test_a_ray_that_starts_otherwise_is_started_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray._raylet

    monkeypatch.delattr(ray._raylet, "persist_port")
    said: list[str] = []
    assert start_ray(lambda: 7, loopback=True, say=said.append) == 7
    (warning,) = said
    assert warning.startswith("warning: how Ray ")
    assert "persist_port" in warning
    assert "other machines may reach its ports" in warning


def test_a_node_that_has_become_another_thing_is_started_plainly() -> None:
    import ray._private.node as module

    def starts() -> str:
        if module.Node.__name__ == "SteadyNode":
            raise AttributeError("'SteadyNode' object has no attribute '_ray_params'")
        return module.Node.__name__

    said: list[str] = []
    assert start_ray(starts, say=said.append) == "Node"
    (warning,) = said
    assert "has no attribute '_ray_params'" in warning


def test_ports_are_free_and_nobody_elses() -> None:
    import socket

    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = _free_ports(4)
    assert len(set(ports)) == 4
    for port in ports:
        assert port >= 20000
        assert not low <= port <= high or (low <= 20000 and high >= 65535)
        with socket.socket() as probe:
            probe.bind(("", port))


@pytest.mark.usefixtures("_home")
def test_a_token_is_its_owners_from_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("made for all, and changed after")

    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, never)
    said: list[str] = []
    before = os.umask(0)
    try:
        _make_token(said.append)
    finally:
        os.umask(before)
    token = token_of(tmp_path)
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(bytes.fromhex(token.read_text())) == 32
    assert not said
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


@pytest.mark.usefixtures("_home")
def test_a_token_that_is_there_stays_and_an_open_one_is_warned_of(
    ray_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(ray_folder))
    ray_folder.chmod(0o755)
    token = token_of(ray_folder)
    token.parent.mkdir(mode=0o755)
    token.write_text("mine")
    token.chmod(0o644)
    said: list[str] = []
    _make_token(said.append)
    assert token.read_text() == "mine"
    (warning,) = said
    assert f"{token} can be read by every user of this machine (mode 644)" in warning
    for closed, mode in ((token, 0o600), (ray_folder, 0o700)):
        token.chmod(0o644)
        closed.chmod(mode)
        _make_token(said.append)
        assert len(said) == 1
    # Ray takes an empty one for none.
    token.write_text("")
    _make_token(said.append)
    assert len(token.read_text()) == 64


@pytest.mark.usefixtures("_home")
@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "x"), ("RAY_AUTH_TOKEN_PATH", "/x")]
)
def test_no_token_is_made_where_none_is_asked_for(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    _make_token(print)
    assert not token_of(tmp_path).exists()


@pytest.mark.usefixtures("_home")
def test_a_token_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / ".ray").touch()
    with pytest.raises(SettingError, match=r"auth_token cannot be made .* RAY_AUTH_TOKEN"):
        _make_token(print)
