"""Studies whose results are on an object store: moto's server, in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disturbed_runs import assert_same, journal, run, wait_for
from s3_server import CREDENTIALS, Proxy, Server, free_port, s3_server
from sweep_trials import Counting, load_newest, spec, study

from ht_ray._storage import Storage, StorageError
from ht_ray.errors import SettingError
from ht_ray.records import EventKind
from ht_ray.records.study_files import note
from ht_ray.sweep import SweepConfig, check_before_ray, load_study_settings
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.storage.lease import _machine
from ht_ray.sweep.storage.location import open_study
from ht_ray.sweep.study.plan import create_study, is_study
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore

pytest.importorskip("moto.server", reason="needs moto[server]")
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with s3_server() as found:
            yield found


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local scratch of this process and its children."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def left_in(scratch: Path) -> list[Path]:
    """What is ours in a scratch; packages that Ray Tune imports leave folders, too."""
    return [path for path in scratch.iterdir() if "ht-ray" in path.name]


def took(what: Callable[[], Any]) -> float:
    began = time.monotonic()
    what()
    return time.monotonic() - began


def test_a_storage_is_a_folder(server: Server, tmp_path: Path) -> None:
    storage = Storage(server.uri("a%20study")).child("deep")
    assert (storage.exists(), storage.names(), list(storage.files())) == (False, [], [])
    storage.write("one", b"1")
    storage.write("two/three", b"3")
    (tmp_path / "big").write_bytes(os.urandom(11 << 20))
    storage.upload(tmp_path / "big", "two/big")
    assert storage.names() == ["one", "two"]
    assert list(storage.files()) == ["one", "two/big", "two/three"]
    storage.download("two/big", tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == (tmp_path / "big").read_bytes()
    assert storage.read("two/three") == b"3"
    with pytest.raises(FileNotFoundError):
        storage.read("four")
    storage.remove("two")
    storage.remove("never")
    assert (storage.exists("two"), storage.exists("one"), storage.names("two")) == (False, True, [])
    keys = [found["Key"] for found in server.client.list_objects_v2(Bucket="bucket")["Contents"]]
    assert "a study/deep/one" in keys


def test_checkpoints(server: Server, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    storage = Storage(server.uri("checkpoints"))
    store, trial = CheckpointStore(storage, "one"), Counting({"seed": 1, "parts": 9}, None)
    for part in (1, 2, 3):
        trial.advance()
        store.save(trial.save, Checkpoint((part, 0), ("{}",) * part))
    older, newest = storage.names("one")
    assert (older[:6], newest[:6]) == ("000002", "000003")
    storage.write(f"one/{newest}/trial/deep/state.json", b"{}")
    said: list[str] = []
    again = Counting({"seed": 1, "parts": 9}, None)
    found = load_newest(store, lambda _: again, said.append)
    assert found is not None
    assert (found[1].position, len(said)) == ((2, 0), 1)
    again.advance()
    assert again.advance() == trial.advance()
    store.end(keep=False)
    assert storage.names("one") == []
    assert not left_in(scratch)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("endpoint=127.0.0.1", r"option = 'endpoint': accepted are 'region', .* Did you mean 'endpoint_override'"),
        ("scheme=http&region=us-east-1", None),
    ],
)
def test_options_of_a_uri(server: Server, query: str, message: str | None) -> None:
    uri = f"s3://bucket/first?endpoint_override=127.0.0.1:{server.port}&{query}"
    if message is None:
        assert not Storage(uri).exists()
    else:
        with pytest.raises(SettingError, match=message):
            Storage(uri).exists()


def test_credentials_in_a_uri_are_refused_and_not_shown() -> None:
    with pytest.raises(SettingError, match="accepted is a URI without credentials") as caught:
        check_before_ray(SweepConfig(results_dir="s3://KEY:hush@bucket/first?region=us-east-1"))
    assert "hush" not in str(caught.value)


def test_a_wrong_bucket_or_server_is_refused_quickly(server: Server) -> None:
    wrong = server.uri("first", bucket="no-such-bucket")
    with pytest.raises(SettingError, match=r"SweepConfig.results_dir = 's3://no-such-bucket.*bucket does not exist"):
        check_before_ray(SweepConfig(results_dir=wrong))
    with pytest.raises(SettingError, match="no study: there is no such"):
        check_before_ray(SweepConfig(resume=wrong))
    away = server.uri("first", port=free_port())

    def refused() -> None:
        for field in ("results_dir", "resume", "resume_or_start"):
            with pytest.raises(SettingError, match=r"cannot be read.*onnect to server"):
                check_before_ray(SweepConfig(**{field: away}))

    assert took(refused) < 60


def test_settings_are_checked_on_the_storage(server: Server) -> None:
    uri = server.uri("settings/first")
    assert check_before_ray(SweepConfig(results_dir=uri)) == uri
    assert check_before_ray(SweepConfig(resume_or_start=uri)) == uri
    assert not Storage(server.uri("settings")).names("first")
    with open_study(uri, patience=5, say=pytest.fail) as location:
        create_study(location.directory, study(spec("one")))
    assert is_study(uri)
    assert load_study_settings(uri) == {"parts": 3, "limit": None}
    assert check_before_ray(SweepConfig(resume=uri)) == uri
    assert SweepConfig(resume_or_start=uri).located().resume == uri
    with pytest.raises(SettingError, match=r"nothing is ever overwritten\. To continue it: resume="):
        check_before_ray(SweepConfig(results_dir=uri))


def filled(directory: Path, reports: int) -> TrialRecord:
    record = TrialRecord(directory, spec("one"))
    record.start()
    for index in range(record.reports, reports):
        report = {"index": index, "curves": {}, "summary": {"a": 1.0}, "progress": 0.1, "seconds": 1.0}
        record.append(json.dumps(report), report)
    return record


def test_the_drivers_files_come_and_go(server: Server, scratch: Path) -> None:
    uri = server.uri("mirror/first")
    with open_study(uri, patience=5, say=pytest.fail) as location:
        create_study(location.directory, study(spec("one")))
        filled(location.directory, 2)
        (location.directory / "trials/one/events.out.1").write_bytes(b"first")
        (location.directory / "tensorboard/plain").mkdir(parents=True)
        (location.directory / "tensorboard/plain/events.out.1").write_bytes(b"kept")
        location.sync()
        assert "lease.json" in location.storage.names()
        assert location.storage.read("trials/one/results.jsonl").count(b"\n") == 2
    assert not left_in(scratch)
    assert Storage(uri).names() == ["config.json", "tensorboard", "trials", "trials.json"]
    with open_study(uri, patience=5, say=pytest.fail) as location:
        assert TrialRecord(location.directory, spec("one")).reports == 2
        filled(location.directory, 3)
        (location.directory / "trials/one/events.out.1").unlink()
        (location.directory / "trials/one/events.out.2").write_bytes(b"second")
    assert Storage(uri).read("tensorboard/plain/events.out.1") == b"kept"
    assert Storage(uri).names("trials/one") == ["events.out.2", "results.jsonl", "status.json"]
    assert Storage(uri).read("trials/one/results.jsonl").count(b"\n") == 3


def test_one_driver_at_a_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ht_ray.sweep.storage.lease.BEAT", 0.3)
    monkeypatch.setattr("ht_ray.sweep.storage.lease.LEASE_ENDS", 10.0)
    uri, said = server.uri("lease/first"), []
    with open_study(uri, patience=5, say=said.append) as location:
        create_study(location.directory, study(spec("one")))
        assert location.mirror is not None
        location.mirror._every = 0.2
        with (
            pytest.raises(SettingError, match=rf"is being run by process {os.getpid()} on .*; wait for it or stop it"),
            open_study(uri, patience=5, say=said.append),
        ):
            pass
        assert "Waiting up to 10 s" in said[0]
        # Another driver, on another machine, that has not heard of this one for too long.
        taken = {"host": "elsewhere", "pid": 1, "machine": "other", "token": "other", "beat": 0}
        Storage(uri).write("lease.json", json.dumps(taken).encode())
        filled(location.directory, 5)
        while location.lost is None:
            time.sleep(0.1)
        assert "process 1 on elsewhere has taken over the study" in location.lost
        with pytest.raises(StorageError, match="has taken over"):
            location.sync()
    assert json.loads(Storage(uri).read("lease.json")) == taken
    # A machine's own driver that is gone is not waited for; one elsewhere is, for as long as it may only be slow.
    ours = {**taken, "machine": _machine(), "pid": 2**22 + 1}
    Storage(uri).write("lease.json", json.dumps(ours).encode())
    said.clear()
    with open_study(uri, patience=5, say=said.append):
        assert said == []
    assert not Storage(uri).exists("lease.json")


def test_an_outage_is_reported_and_loses_nothing(server: Server, scratch: Path) -> None:
    proxy, said = Proxy(server.port), []
    uri = server.uri("outage/first", port=proxy.port)
    with open_study(uri, patience=60, say=said.append) as location:
        create_study(location.directory, study(spec("one")))
        written = time.monotonic()
        location.sync()
        with proxy.away():
            location.sync(written)  # it is there already
            filled(location.directory, 4)
            note(location.directory, EventKind.STORAGE)
            assert location.mirror is not None
            with pytest.raises(StorageError):
                location.mirror._bring()
        location.sync()
    assert re.search(r"cannot be used: .*onnect.*; results are kept in .*scratch", said[0])
    assert "answers again, after" in said[1]
    journal = [json.loads(line) for line in Storage(server.uri("outage/first")).read("journal.jsonl").splitlines()]
    assert [line["event"] for line in journal] == ["test", "storage", "storage"] or len(journal) == 3
    assert Storage(server.uri("outage/first")).read("trials/one/results.jsonl").count(b"\n") == 4


def test_what_could_not_be_brought_is_kept(server: Server, scratch: Path) -> None:
    proxy = Proxy(server.port)
    with (
        pytest.raises(StorageError, match=r"What is not at .* yet is kept in .*copy that folder over it") as caught,
        open_study(server.uri("lost/first", port=proxy.port), patience=1, say=lambda text: None) as location,
    ):
        create_study(location.directory, study(spec("one")))
        location.sync()
        proxy.cut()
        filled(location.directory, 4)
    kept = Path(str(caught.value).rpartition("kept in ")[2].partition(":")[0])
    assert TrialRecord(kept, spec("one")).reports == 4
    assert kept.parent.parent == scratch


QUICK = study(spec("one", seed=1), spec("two", seed=2))
LONG = study(*(spec(f"long-{seed}", seed=seed, parts=16, sleep=0.5) for seed in (1, 2)))


@pytest.fixture(scope="module")
def undisturbed(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "study"
    assert run(LONG, results_dir=str(directory))[0].exit_code == 0
    return directory


def test_a_study(cluster: str, server: Server, tmp_path: Path, scratch: Path) -> None:
    run(QUICK, results_dir=str(tmp_path / "plain"))
    uri = server.uri("whole/first")
    result, said = run(QUICK, results_dir=uri, keep_checkpoints=False)
    assert (result.exit_code, result.location) == (0, uri), said
    assert_same(QUICK, uri, tmp_path / "plain")
    assert set(Storage(uri).files()) == {
        *("config.json", "journal.jsonl", "results.csv", "trials.json"),
        *(f"trials/{name}/{file}" for name in ("one", "two") for file in ("results.jsonl", "status.json")),
    }
    assert not left_in(scratch)
    again, _ = run(QUICK, resume_or_start=uri)
    assert (again.finished, again.exit_code) == (2, 0)


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_worker_waits_for_its_storage(server: Server, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """A worker's steps without Ray around it, while its store refuses connections and breaks those that are open."""
    from ht_ray.sweep.worker.trainable import StudyTrainable, WorkerPlan

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    proxy = Proxy(server.port)
    checkpoints = Storage(server.uri(f"worker-{seconds}/checkpoints", port=proxy.port))
    config = {"seed": 1, "parts": 6}
    worker = StudyTrainable.__new__(StudyTrainable)
    worker._plan = WorkerPlan("sweep_trials:Counting", {"one": config}, checkpoints, (), patience=120.0)
    worker._shared, worker._leaving = None, False
    worker._assign({"members": ("one",)})
    results = [*worker._step(), *worker._step()]
    timer = threading.Timer(seconds, proxy.join)
    proxy.cut()
    timer.start()
    while results[-1]["outcome"] != "finished":
        results += worker._step()
    outcomes = [result["outcome"] for result in results if result["outcome"] != "waiting"]
    assert outcomes == [*["running"] * 5, "finished"]
    assert len(results) > 6
    lines = [{**json.loads(result["report"]), "seconds": None} for result in results if "report" in result]
    trial = Counting(config, None)
    assert [line["curves"] for line in lines] == [trial.advance().curves for _ in range(6)]
    assert "cannot be used" in worker._notes[0]["detail"]
    assert "can be used again, after" in worker._notes[1]["detail"]
    assert [name[:6] for name in checkpoints.names("one")] == ["000005", "000006"]


@pytest.mark.slow
def test_a_server_that_is_away_for_half_a_minute_twice(
    cluster: str, server: Server, undisturbed: Path, scratch: Path
) -> None:
    """Once it takes connections and does not answer; once it refuses them and breaks those that are open."""
    proxy = Proxy(server.port)
    uri, direct = server.uri("away/first", port=proxy.port), server.uri("away/first")

    def saved() -> list[str]:
        return Storage(direct).names("checkpoints/long-1")

    def disturb(said: Callable[[], str]) -> None:
        wait_for(saved)
        with server.frozen():
            time.sleep(30)
        before = saved()
        wait_for(lambda: saved() != before)
        with proxy.away():
            time.sleep(30)

    result, said = run(LONG, disturb, results_dir=uri, storage_minutes=4.0)
    assert (result.exit_code, result.stopped) == (0, None), said
    assert_same(LONG, direct, undisturbed)
    assert said.count("answers again, after") + said.count("can be used again, after") >= 2
    details = [line["detail"] for line in journal(direct) if line["event"] == "storage"]
    assert sum("cannot be used" in text for text in details) >= 2
    assert any("again, after" in text for text in details)
    assert not [line for line in journal(direct) if line["event"] == "fault"]
    assert not left_in(scratch)


@pytest.mark.slow
def test_a_killed_driver_is_resumed_from_the_storage(
    cluster: str, server: Server, undisturbed: Path, scratch: Path
) -> None:
    uri = server.uri("killed/first")
    code = (
        "import sys; from ht_ray.sweep import SweepConfig, run_study; from test_sweep_s3 import LONG; "
        "run_study(LONG, SweepConfig(resume_or_start=sys.argv[1]))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    driver = subprocess.Popen(
        [sys.executable, "-c", code, uri],
        env={**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: Storage(uri).exists("trials/long-1/results.jsonl"))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    assert "lease.json" in Storage(uri).names()
    assert left_in(scratch)
    result, said = run(LONG, resume_or_start=uri)
    assert result.exit_code == 0
    assert "Waiting up to" not in said  # its process is known to be gone
    assert_same(LONG, uri, undisturbed)
    assert [line["event"] for line in journal(uri) if line["event"].startswith("run ")] == [
        "run started",
        "run started",
        "run ended",
    ]
    assert not left_in(scratch)


@pytest.mark.slow
def test_wrong_credentials_are_refused_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    # From its second request on the server asks who is there.
    monkeypatch.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nobody")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with s3_server() as strict:
        for field in ("results_dir", "resume", "resume_or_start"):
            with pytest.raises(SettingError, match=r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID"):
                check_before_ray(SweepConfig(**{field: strict.uri("first")}))


@pytest.mark.slow
def test_no_credentials_are_reported_quickly(server: Server) -> None:
    code = (
        "import sys; from ht_ray.sweep import SweepConfig, check_before_ray; "
        "check_before_ray(SweepConfig(results_dir=sys.argv[1]))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code, server.uri("nobody/first")], env=kept, check=False, timeout=120)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_process_ends_though_its_store_is_away(server: Server) -> None:
    """PyArrow ends its S3 clients at exit; an outage, threads or another process begun by fork must not hang that."""
    code = """
import os, sys
from ht_ray._storage import Storage, StorageError, storage_errors
from ht_ray.sweep.storage.location import open_study
storage = Storage(sys.argv[1])
storage.write("a", b"1")
if not (child := os.fork()):
    os._exit(0)
os.waitpid(child, 0)
try:
    with open_study(sys.argv[1], patience=0, say=print) as location:
        (location.directory / "b").write_text("2")
        location.sync()
        os.kill(int(sys.argv[2]), 19)
        (location.directory / "b").write_text("3")
except StorageError as error:
    print(error)
    sys.exit(3)
"""
    proxy = Proxy(server.port)
    process = subprocess.Popen(
        [sys.executable, "-c", code, server.uri("exit/first", port=proxy.port), str(server.process.pid)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=150)
    finally:
        server.process.send_signal(signal.SIGCONT)
        process.kill()
    assert process.returncode == 3
    assert "is kept in" in out
