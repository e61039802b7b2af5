"""The time left, and the lines that tell it."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_trials import spec

from ht_ray.records import TrialStatus
from ht_ray.records.checked_json import to_json
from ht_ray.sweep.records.progress import Console, StudyProgress, Workload, clock, seconds_left
from ht_ray.sweep.records.trial_record import TrialRecord

DONE = Workload(1.0, 10.0, ended=True)
WAITING = Workload(0.0, 0.0)


def test_nothing_is_known_before_the_first_report() -> None:
    assert seconds_left([WAITING, Workload(0.0, 0.0, running_for=5.0)], 2) is None


def test_nothing_is_left_at_the_end() -> None:
    assert seconds_left([DONE, Workload(0.4, 3.0, ended=True)], 2) == 0


def test_waiting_trials_share_the_slots() -> None:
    assert seconds_left([DONE, *[WAITING] * 4], 1) == 40
    assert seconds_left([DONE, *[WAITING] * 4], 2) == 20
    assert seconds_left([DONE, *[WAITING] * 5], 2) == 30
    assert seconds_left([DONE, WAITING], 8) == 10


def test_a_running_trial_goes_on_at_its_own_speed() -> None:
    slow = Workload(0.25, 25.0, running_for=5.0)
    assert seconds_left([DONE, slow], 2) == 70
    # The others take the mean of all: 35 seconds for 1.25 trials.
    assert seconds_left([DONE, slow, WAITING, WAITING, WAITING], 2) == pytest.approx(3 * 28)


def test_a_part_that_takes_longer_than_thought_is_about_to_end() -> None:
    assert seconds_left([Workload(0.5, 5.0, running_for=60.0)], 1) == 0


@given(
    shares=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=8),
    speed=st.floats(0.1, 100),
    waiting=st.integers(0, 8),
    slots=st.integers(1, 8),
)
def test_time_left_lies_between_perfect_and_serial_work(
    shares: list[float], speed: float, waiting: int, slots: int
) -> None:
    trials = [Workload(share, share * speed) for share in shares] + [WAITING] * waiting
    left = seconds_left(trials, slots)
    work = [(1 - share) * speed for share in shares] + [speed] * waiting
    assert left is not None
    assert max(sum(work) / slots, max(work)) * (1 - 1e-9) <= left <= sum(work) * (1 + 1e-9)


@given(
    known=st.lists(
        st.builds(
            Workload,
            progress=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
            seconds=st.floats(0.1, 50),
            ended=st.booleans(),
            running_for=st.sampled_from([None, 0.0, 7.0]),
        ),
        max_size=6,
    ),
    untouched=st.integers(0, 60),
    slots=st.integers(1, 5),
)
def test_untouched_trials_by_their_number_are_as_untouched_trials_one_by_one(
    known: list[Workload], untouched: int, slots: int
) -> None:
    one_by_one = seconds_left([*known, *[WAITING] * untouched], slots)
    by_number = seconds_left(known, slots, untouched=untouched)
    assert by_number == (None if one_by_one is None else pytest.approx(one_by_one))


CHANGES = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["start", "report", "cut", "cut off", "end"])))
ENDS = st.sampled_from([TrialStatus.FINISHED, TrialStatus.FAILED, TrialStatus.DIVERGED])


def test_the_time_left_does_not_depend_on_which_trial_was_opened_first(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    records = [TrialRecord(tmp_path, spec(f"t{seed}", seed=seed)) for seed in range(5)]
    progress = StudyProgress("s", records, "loss", "min", slots=2)
    report = {"index": 0, "curves": {}, "progress": 0.5, "summary": {"loss": None}, "seconds": 1.0}
    for number in (0, 2, 1):
        records[number].start()
    for number in (0, 1):
        records[number].append(to_json(report), report)
    # Of two slots one takes 1 + 2 (the third trial) seconds, the other 1 + 2, then 2 more.
    assert progress.seconds_left() == StudyProgress("s", records, "loss", "min", slots=2).seconds_left() == 5


@settings(deadline=None, max_examples=50)
@given(changes=CHANGES, data=st.data())
def test_lines_after_many_changes_are_those_of_a_new_look(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, str]], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("changes")
    (directory / "trials").mkdir()
    records = [TrialRecord(directory, spec(f"t{seed}", seed=seed)) for seed in range(5)]
    progress = StudyProgress("s", records, "loss", "min", slots=2)
    for number, change in changes:
        record = records[number]
        if change == "start":
            record.start()
        elif change == "report" and record.directory.exists():
            loss = data.draw(st.one_of(st.none(), st.integers(0, 3)))
            report = {"index": record.reports, "curves": {}, "progress": 0.5, "summary": {"loss": loss}, "seconds": 1.0}
            record.append(to_json(report), report)
        elif change == "cut":
            record.cut(min(record.reports, 1))
        elif change == "cut off":
            record.cut_off()
        elif change == "end":
            record.end(data.draw(ENDS))
    assert {status: number for status, number in progress.counts.items() if number} == Counter(
        record.status for record in records
    )
    with pytest.MonkeyPatch.context() as clock_stands:
        clock_stands.setattr("ht_ray.sweep.records.progress.time.monotonic", lambda: progress._start + 3)
        anew = StudyProgress("s", records, "loss", "min", slots=2)
        clock_stands.setattr(anew, "_start", progress._start)
        assert progress.lines() == anew.lines()


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.6, 3600, 360000)] == ["0:00:00", "0:01:00", "1:00:00", "100:00:00"]


def test_summary_names_the_best_finished_trial(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    records = [TrialRecord(tmp_path, spec(f"t{seed}", label=f"m={seed}", seed=seed)) for seed in range(4)]
    for record, loss in zip(records, (0.5, 0.2, 0.1, None), strict=True):
        record.start()
        report = {"index": 0, "progress": 1.0, "summary": {"loss": loss}, "seconds": 1.0}
        record.append("{}", report)
    for record, status in zip(records, map(TrialStatus, ("finished", "finished", "diverged", "finished")), strict=True):
        record.end(status)
    lines = StudyProgress("s", records, "loss", "min", slots=1).lines()
    assert lines == ["s: 3 of 4 trials done, 1 diverged, 0:00:00 elapsed", "best loss so far 0.2: m=1 (seed 1)"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_repainted_and_texts_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    console = Console(stream)
    console.status(["a" * 30, "b"])
    console.say("told")
    console.status(["c"])
    up = "\x1b[2F\x1b[J"
    first = "a" * 19 + "\nb\n"
    assert stream.getvalue() == f"{first}{up}told\n{first}{up}c\n"


def test_without_a_terminal_lines_are_few_and_plain() -> None:
    stream = io.StringIO()
    console = Console(stream, every=1000.0)
    assert console.due()
    console.status(["a", "b"])
    assert not console.due()
    console.say("told")
    assert stream.getvalue() == "a; b\ntold\n"


class Notebook(io.StringIO):
    __module__ = "ipykernel.iostream"  # as that of a kernel's standard error


def test_in_a_notebook_one_line_is_written_over() -> None:
    stream = Notebook()
    console = Console(stream)
    console.status(["1 of 10", "later"])
    console.say("told")
    console.status(["9 of 10"])
    shown = []  # as a notebook shows it
    for line in stream.getvalue().split("\n"):
        row = ""
        for part in line.split("\r"):
            row = part + row[len(part) :]
        shown.append(row.rstrip())
    assert shown == ["told", "9 of 10"]


def some_records(tmp_path: Path) -> list[TrialRecord]:
    (tmp_path / "trials").mkdir()
    return [TrialRecord(tmp_path, spec(f"t{seed}", label=f"m={seed}", seed=seed)) for seed in range(8)]


def advance(record: TrialRecord, share: float, accuracy: float) -> None:
    summary = {"average_accuracy": accuracy}
    report = {"index": record.reports, "curves": {}, "progress": share, "summary": summary, "seconds": 1.0}
    record.append(to_json(report), report)


def test_a_panel_has_a_bar_the_states_the_rate_the_time_left_and_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = some_records(tmp_path)
    records[7].start()
    records[7].end(TrialStatus.FINISHED)  # by an earlier run: it says nothing of this one's rate
    progress = StudyProgress("s", records, "average_accuracy", "max", slots=2)
    for record, share, status in ((records[0], 1.0, "finished"), (records[1], 1.0, "diverged"), (records[2], 0.5, "")):
        record.start()
        advance(record, share, 0.5)
        if status:
            record.end(TrialStatus(status))
    monkeypatch.setattr("ht_ray.sweep.records.progress.time.monotonic", lambda: progress._start + 60)
    bar, counts, times, best = progress.panel(60)
    assert len(bar) == 60 and bar.startswith("s  ━") and bar.endswith("3 of 8 trials   44%")
    assert bar.count("━") / (bar.count("━") + bar.count("─")) == pytest.approx(3.5 / 8, abs=0.02)
    assert counts == "2 finished   1 running   1 diverged   4 waiting"
    assert times.startswith("0:01:00 elapsed   about ") and times.endswith("left   2.0 trials a minute")
    assert best == "best average accuracy so far 50.00 %: m=0 (seed 0)"
    assert "━" not in progress.panel(60, ascii_only=True)[0] and "##" in progress.panel(60, ascii_only=True)[0]
    assert len(progress.panel(5)[0]) > 8  # too narrow: it is cut


def test_a_terminal_shows_the_panel_and_everything_else_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.delenv("NO_COLOR", raising=False)
    records = some_records(tmp_path)
    progress = StudyProgress("s", records, "loss", "min", slots=2)
    records[0].start()
    advance(records[0], 1.0, 0.5)
    records[0].end(TrialStatus.DIVERGED)
    stream, plain = Terminal(), io.StringIO()
    Console(stream).show(progress)
    Console(plain).show(progress)
    shown = stream.getvalue().splitlines()
    assert "\x1b[36m━" in shown[0] and "\x1b[31m1 diverged\x1b[0m" in shown[1]
    assert plain.getvalue().startswith("s: 0 of 8 trials done, 1 diverged, 0:00:00 elapsed")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    Console(stream).show(progress)
    assert "\x1b" not in stream.getvalue()
