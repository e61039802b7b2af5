"""Run histories of studies, from their journals; and reports of studies at a URI."""

import json
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ht_ray._storage import StorageError
from ht_ray.errors import SettingError
from ht_ray.report import load_study, write_report
from ht_ray.report.__main__ import main
from ht_ray.report.data.journal import JOURNAL, load_journal, summarize_error
from ht_ray.report.run_history import summarize_history

KILLED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: StudyTrainable\n\tactor_id: 0a1b\n"
    "\tpid: 7\n\tnamespace: 9c\n\tip: 10.0.0.1\nThe actor is dead because its worker process has died. Worker exit "
    "type: SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. "
    "There are some potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage."
)
NODE = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: StudyTrainable\n\tactor_id: 0a1b\n"
    "The actor died because its node has died. Node Id: 5f\n\tthe actor's node was terminated unexpectedly: "
    "health check failed due to missing too many heartbeats"
)


def event(name, second=0, **values):
    return {"time": f"2026-01-01T10:{second // 60:02}:{second % 60:02}+02:00", "event": name, **values}


def started(second=0, trials=2):
    values = {"trials": trials, "command": ["a.py"], "driver": "process 7 on head", "nodes": ["head (1)", "b (2)"]}
    return event("run started", second, **values)


def fault(trial, second=0, kind="worker died", **values):
    return event(
        "fault", second, **{"trial": trial, "kind": kind, "node": "b", "reports": 1, "detail": KILLED, **values}
    )


def note(root, *events):
    (root / JOURNAL).write_text("".join(json.dumps(one) + "\n" for one in events))


@pytest.fixture
def study(write_study, planned):
    return write_study([planned("Plain", 0, [[0.5], [0.6]]), planned("EMA", 0, [[0.5], [0.6]])])


def history_of(root):
    history = summarize_history(load_study(root))
    return history.sentence, " ".join(history.notes), {table.title: table for table in history.tables}


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_a_study_without_a_journal_says_nothing(study):
    assert load_study(study).journal is None and summarize_history(load_study(study)) is None
    write_report(study)
    for name in ("table.md", "report.html"):
        assert "happened" not in (study / name).read_text().partition("</style>")[2]
    assert "happened" not in (study / "table.md").read_text()


def test_an_undisturbed_study_is_one_sentence(study):
    note(study, started(), event("run ended", 60, how="finished"))
    assert history_of(study) == ("2 trials, one run, no faults.", "", {})
    said = []
    write_report(study, log=said.append)
    assert "What happened: 2 trials, one run, no faults." in said
    assert "## What happened\n\n2 trials, one run, no faults." in (study / "table.md").read_text()
    page = (study / "report.html").read_text()
    assert "<p>2 trials, one run, no faults.</p>" in page and "<h3 id=" not in page


def test_everything_that_happened_is_reported(study):
    status = study / "trials" / "plain--s0" / "status.json"
    status.write_text(json.dumps({"status": "finished", "error": None, "restarts": 3}))
    note(
        study,
        started(),
        fault("plain--s0", 1),
        event("node lost", 2, node="b (2)", trials=["plain--s0", "ema--s0"]),
        fault("plain--s0", 3, kind="node lost", detail=NODE),
        event("resumed", 4, trial="plain--s0", node="c", reports=1, known=3),
        started(10),
        event("node joined", 11, node="c (3)", trials=[]),
        event("checkpoint damaged", 12, trial="plain--s0", node="c", detail="<its> manifest"),
        event("resumed", 12, trial="plain--s0", node="c", reports=1, known=1),
        event("storage", 13, trial="ema--s0", node="c", detail="it answered after 30 s"),
        fault("ema--s0", 14, kind="error", reports=None, detail="ValueError: <b>no</b>"),
        event("run ended", 20, how="interrupted"),
        started(30, 1),
        event("a thing of tomorrow", 31, colour="blue & green"),
        fault("plain--s0", 32),
        event("run ended", 40, how="finished"),
    )
    sentence, notes, tables = history_of(study)
    assert sentence == (
        "2 trials, 3 runs (1 cut off, as the driver died; 1 interrupted), 4 faults (2 worker died, 1 node lost, "
        "1 error), 3 restarts."
    )
    assert "Of the 2 trials with faults: 2 finished." in notes
    assert "Nodes: 1 lost, 1 joined." in notes
    assert "1 checkpoint found damaged" in notes and "1 outage of the storage" in notes
    assert "Trials went on from a checkpoint: 2 times, 1 of them behind what was known (2 reports made again)." in notes
    runs = texts(tables["Runs"])
    assert runs[0] == [
        *("1", "2026-01-01 10:00:00", "driver died after 2026-01-01 10:00:04"),
        *("2", "2", "process 7 on head"),
    ]
    assert [row[2] for row in runs[1:]] == ["2026-01-01 10:00:20 (interrupted)", "2026-01-01 10:00:40 (finished)"]
    faults = texts(tables["Faults"])
    assert faults[0] == [
        *("plain--s0", "worker died", "2026-01-01 10:00:01", "1", "b", "3"),
        "Worker unexpectedly exits with a connection error code 2. End of file.",
    ]
    assert "missing too many heartbeats" in faults[1][-1]
    assert [row[0] for row in faults] == ["plain--s0", "plain--s0", "ema--s0", "plain--s0"]
    others = texts(tables["Nodes, checkpoints, storage"])
    assert [row[0].partition(":")[0] for row in others] == [
        *("node lost", "node joined", "checkpoint damaged", "storage", "a thing of tomorrow")
    ]
    assert [row[3] for row in others] == ["2 trials", "–", "plain--s0", "ema--s0", "–"]
    assert others[2] == ["checkpoint damaged: <its> manifest", "2026-01-01 10:00:12", "c", "plain--s0"]
    assert "blue & green" in others[4][0]

    said = []
    write_report(study, log=said.append)
    page = (study / "report.html").read_text()
    assert 'href="#study-1-happened"' in page and 'id="study-1-happened"' in page
    assert (
        "<its>" not in page and "<b>no" not in page and "&lt;b&gt;no&lt;/b&gt;" in page and "blue &amp; green" in page
    )
    markdown = (study / "table.md").read_text()
    assert "### Faults" in markdown and "connection error code 2" in markdown
    (text,) = (text for text in said if text.startswith("What happened"))
    assert max(map(len, text.splitlines())) <= 100
    assert "potential root causes" not in page + markdown + text


def test_a_run_that_may_go_on_is_not_called_dead(study):
    note(study, started(), fault("ema--s0", 5))
    sentence, _, tables = history_of(study)
    assert "one run (without an end: it goes on, or its driver died), 1 fault (1 worker died)." in sentence
    assert texts(tables["Runs"])[0][2] == "open; last event 2026-01-01 10:00:05"


def test_of_very_many_faults_those_of_trials_without_an_end_are_shown(write_study, planned):
    study = write_study([planned("Plain", 0, [[0.5]]), planned("EMA", 0, [[0.5]], status="failed")])
    note(study, started(), *(fault("plain--s0", second) for second in range(60)), fault("ema--s0", 99))
    table = history_of(study)[2]["Faults"]
    assert len(table.rows) == 50 and table.rows[-1][0].text == "ema--s0"
    assert table.notes[0] == "And 11 more: journal.jsonl."
    text = summarize_history(load_study(study)).to_text()
    assert text.count("plain--s0") == 10 and "More of them: table.md." in text


def test_what_a_kill_tore_is_counted_and_the_rest_read(study):
    whole = json.dumps(event("run ended", 9, how="finished"))
    lines = [json.dumps(started()), '{"time": "2026-01-', '["no event"]', '{"time": "20' + whole, whole[:30]]
    (study / JOURNAL).write_bytes("\n".join(lines).encode() + b"\xff")
    journal = load_study(study).journal
    assert [one.name for one in journal.events] == ["run started", "run ended"] and journal.damaged == 4
    assert "4 lines of journal.jsonl could not be read" in history_of(study)[1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["time", "event", "trial", "trials", "kind", "reports", "known", "nodes", "driver", "how", "detail"]
            ),
            st.none()
            | st.booleans()
            | st.integers()
            | st.text(max_size=8)
            | st.lists(st.integers(), max_size=2)
            | st.sampled_from(["run started", "run ended", "fault", "resumed", "storage", "2026-01-01T10:00:00"]),
        ),
        max_size=6,
    ),
    st.binary(max_size=12),
)
def test_no_journal_breaks_the_report(tmp_path_factory, lines, rest):
    root = tmp_path_factory.mktemp("study")
    config = {"format": 1, "study": "s", "metric": "m", "mode": "max", "settings": {}}
    (root / "config.json").write_text(json.dumps(config))
    (root / "trials.json").write_text("[]")
    (root / JOURNAL).write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + rest)
    history = summarize_history(load_study(root))
    assert history.sentence and history.to_text() and history.to_markdown()


@pytest.mark.parametrize(
    ("detail", "telling"),
    [
        ("", ""),
        ("\n the storage is full \n", "the storage is full"),
        (
            "The actor died unexpectedly before finishing this task.",
            "The actor died unexpectedly before finishing this",
        ),
        (
            "Task was killed due to the node running low on memory.\nMemory on the node was 15 GB",
            "Task was killed due to the node running low on memory.",
        ),
        (
            '\x1b[36mray::f()\x1b[39m (pid=1)\n  File "a.py", line 1, in f\n    x\n    ^\nKeyError: 1\n\nDuring '
            'handling:\n\n  File "b.py", line 2, in g\n    y\ntorch.OutOfMemoryError: CUDA\nmore',
            "torch.OutOfMemoryError: CUDA",
        ),
        ("word" * 100, "word" * 39 + "wor…"),
    ],
)
def test_the_telling_line(detail, telling):
    assert summarize_error(detail).startswith(telling)
    assert bool(telling) == bool(summarize_error(detail)) and len(summarize_error(detail)) <= 160


def test_an_unreadable_journal_is_reported(tmp_path):
    assert load_journal(tmp_path) is None
    (tmp_path / JOURNAL).mkdir()
    assert load_journal(tmp_path).damaged == 1


def test_a_study_at_a_uri_is_reported_elsewhere(study, tmp_path, capsys):
    note(study, started(), fault("ema--s0", 5), event("run ended", 9, how="finished"))
    (study / "trials" / "ema--s0" / "events.out.tfevents").write_text("not fetched")
    before = set(study.rglob("*"))
    uri = study.as_uri()
    found = load_study(uri)
    assert found.location == found.source == uri and found.directory.name == "study" and not found.directory.exists()
    here = load_study(study)
    assert [trial.summary for trial in found.trials] == [trial.summary for trial in here.trials]
    assert found.journal == here.journal and found.seeds == here.seeds
    assert main([uri, "--out", str(tmp_path / "out")]) == 0
    assert set(study.rglob("*")) == before
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"python -m ht_ray.report {uri} --out" in page and "1 fault (1 worker died)" in page
    assert "ht-ray-report-" not in page
    write_report(study)
    assert (study / "table.md").read_text() == (tmp_path / "out" / "table.md").read_text()
    capsys.readouterr()


def test_studies_here_and_at_a_uri_make_one_page(write_study, planned, tmp_path, capsys):
    one = write_study([planned("Plain", 0, [[0.5]])], name="one")
    two = write_study([planned("EMA", 0, [[0.5]])], name="two")
    assert main([str(one), f"{two.as_uri()}/", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Report: one, two" in page and f" {two.as_uri()}/ --out" in page
    assert (tmp_path / "out" / "two" / "table.md").is_file() and not (two / "table.md").exists()
    for twice in (two.as_uri(), str(two)):
        assert main([two.as_uri(), twice, "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert f"{two.as_uri()} is named twice" in errors and f"{two.as_uri()} and {two} have the same name" in errors


def test_what_is_no_study_at_a_uri_is_refused(write_study, planned, tmp_path, capsys):
    root = write_study([planned("Plain", 0, [[0.5]])])
    with pytest.raises(SettingError, match="name a directory for its report"):
        write_report(root.as_uri())
    assert main([root.as_uri(), str(root)]) == 2
    assert "name a directory for the report with --out" in capsys.readouterr().err
    with pytest.raises(SettingError, match=r"nowhere is no study: it has no config\.json and no trials\.json"):
        load_study((tmp_path / "nowhere").as_uri())
    with pytest.raises(SettingError, match="cannot be used"):
        load_study("nonsense://bucket/study")
    (root / "config.json").write_text("{}")
    with pytest.raises(SettingError, match=r"study/config\.json: it has no 'format'") as refused:
        load_study(root.as_uri())
    assert str(refused.value).startswith("file://")


def test_a_storage_that_does_not_answer_is_reported(study, tmp_path, monkeypatch, capsys):
    def lost(self, name, target):
        raise OSError("the network is down")

    monkeypatch.setattr("ht_ray._storage.Storage.download", lost)
    with pytest.raises(StorageError, match="the network is down"):
        load_study(study.as_uri())
    assert main([study.as_uri(), "--out", str(tmp_path / "out")]) == 1
    assert "error: the storage" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_pyarrow_is_needed_for_a_uri_only(study):
    code = (
        "import sys; from ht_ray.report.__main__ import main; code = main(sys.argv[1:]);"
        "assert not {'pyarrow', 'ray', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, check=False).returncode == 0
