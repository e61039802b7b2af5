"""The whole report, and its command line."""

import csv
import io
import shutil
import subprocess
import sys

import pytest

from ht_ray._storage import StorageError
from ht_ray.errors import SettingError
from ht_ray.report import write_report
from ht_ray.report.__main__ import main

FIGURES = ["epoch_curves", "heat_map_average_accuracy", "heat_map_final_accuracy", "phase_curves"]


def files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_writes_tables_and_figures_and_touches_nothing_else(write_study, grid_trials):
    root = write_study(grid_trials)
    (root / "figures").mkdir()
    (root / "figures" / "mine.txt").write_text("mine")
    before = files(root)
    (root / "table.md").write_text("old")
    (root / "figures" / "epoch_curves.png").write_text("old")
    written = write_report(root)
    after = files(root)
    expected = ["table.md", "table.csv", "choice.csv", "drops.csv"]
    expected += [f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]
    expected += ["report.html"]
    labels = {trial.label for trial in grid_trials}
    events = [name for name in after if name.startswith("report/")]
    assert len(events) == 1 + len(labels)
    expected += events
    assert sorted(path.relative_to(root).as_posix() for path in written) == sorted(expected)
    assert set(after) == set(before) | set(expected)
    assert {name: after[name] for name in before} == before
    assert after["figures/epoch_curves.png"].startswith(b"\x89PNG")
    assert after["figures/epoch_curves.pdf"].startswith(b"%PDF")
    markdown = after["table.md"].decode()
    assert "## Summary of study" in markdown and "## Drops at phase changes of study" in markdown


def test_each_access_mode_has_its_own_tables_and_figures(write_study, planned):
    trials = [
        planned("Plain", seed, [[0.4, value], [0.4, value]], settings={"access": access})
        for access, value in (("full", 0.8), ("buffer", 0.6))
        for seed in (0, 1)
    ]
    said = []
    root = write_study(trials)
    write_report(root, log=said.append)
    assert {path.name for path in (root / "figures").glob("*.png")} == {
        f"{name}_{access}.png" for name in ("epoch_curves", "phase_curves") for access in ("full", "buffer")
    }
    rows = list(csv.DictReader(io.StringIO((root / "table.csv").read_text())))
    assert [(row["access"], float(row["final_accuracy_mean"])) for row in rows] == [("full", 0.8), ("buffer", 0.6)]
    assert [row["access"] for row in csv.DictReader((root / "drops.csv").open())] == ["full", "buffer"]
    assert any("Skipped (buffer access): heat_map of final_accuracy" in text for text in said)
    assert "Skipped (full access): heat_map of final_accuracy" in (root / "table.md").read_text()


def test_a_study_with_nothing_finished_still_has_its_table(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.1]], status="missing"), planned("EMA", 0, [[0.1]], status="missing")])
    written = write_report(root)
    assert {path.name for path in written if path.parent == root} == {"report.html", "table.md", "table.csv"}
    assert not (root / "figures").exists()
    text = (root / "table.md").read_text()
    assert "- Plain, seed 0: not started." in text
    assert "| EMA | 0 of 1 | – | – |" in text


def test_a_study_without_a_plain_method_is_compared_with_nothing(write_study, planned):
    root = write_study([planned("EMA", 0, [[0.5]], "ema")])
    write_report(root)
    assert "minus" not in (root / "table.csv").read_text()


def test_what_cannot_be_written_is_said(write_study, planned):
    root = write_study([planned("Plain", 0, [[0.5]])])
    (root / "figures").write_text("a file where the folder should be")
    with pytest.raises(SettingError, match="cannot be written"):
        write_report(root)


def test_the_command_prints_the_tables(write_study, planned, capsys):
    root = write_study([planned("Plain", 0, [[0.5], [0.6]])])
    assert main([str(root)]) == 0
    out = capsys.readouterr().out
    assert "Summary of study: CIFAR-10, ResNet-18, seed 0" in out
    assert "60.00*" in out
    assert f"wrote {root / 'table.md'}" in out


def test_the_command_refuses_what_is_no_study_before_it_writes(write_study, planned, tmp_path):
    root = write_study([planned("Plain", 0, [[0.5]])])
    command = [sys.executable, "-m", "ht_ray.report", str(root), str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == f"error: {tmp_path / 'nowhere'}: there is no such directory.\n"
    assert not (root / "table.md").exists()


def test_what_no_report_wrote_is_not_replaced(write_study, planned, tmp_path, capsys):
    root = write_study([planned("Plain", 0, [[0.5]])])
    other = write_study([planned("Plain", 0, [[0.5]])], name="other")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "table.md").write_text("mine")
    (taken / "report.html").write_text("mine")
    before = files(other) | files(taken)
    for out in (taken, other):
        assert main([str(root), "--out", str(out)]) == 2
        assert main([str(root), str(other), "--out", str(out)]) == 2
    assert files(other) | files(taken) == before
    errors = capsys.readouterr().err
    assert "taken has report.html, table.md already" in errors
    assert "other is a study's directory, the place of its own report" in errors
    # A folder for a study's files that is the user's.
    (tmp_path / "out" / "study").mkdir(parents=True)
    assert main([str(root), str(other), "--out", str(tmp_path / "out")]) == 2
    # The study's own directory, an empty folder, and an earlier report are as good as none.
    (tmp_path / "empty").mkdir()
    for out in (root, tmp_path / "empty", tmp_path / "empty", tmp_path / "new", tmp_path / "new"):
        assert main([str(root), "--out", str(out)]) == 0
    for _ in range(2):
        assert main([str(root), str(other), "--out", str(tmp_path / "both")]) == 0
    # Where the studies lie, each one's files go to it.
    assert main([str(root), str(other), "--out", str(tmp_path)]) == 0
    assert (other / "table.md").is_file() and (tmp_path / "report.html").is_file()


def test_a_report_that_was_cut_off_is_made_again(write_study, planned, tmp_path):
    root = write_study([planned("Plain", 0, [[0.5]])])

    def stop(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_report(root, log=stop, out=tmp_path / "out")
    assert "not finished" in (tmp_path / "out" / "report.html").read_text()
    write_report(root, out=tmp_path / "out")
    assert "not finished" not in (tmp_path / "out" / "report.html").read_text()


def test_a_study_named_twice_is_refused(write_study, planned, tmp_path, capsys):
    root = write_study([planned("Plain", 0, [[0.5]])])
    assert main([str(root), f"{root}/../study", "--out", str(tmp_path / "out")]) == 2
    assert "is named twice" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_reader_who_has_enough_does_not_stop_the_report(write_study, planned, tmp_path):
    root = write_study([planned("Plain", 0, [[0.5]])])
    command = [sys.executable, "-m", "ht_ray.report", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        error = process.stderr.read()
        assert (process.wait(), error) == (0, "")
    assert (root / "report.html").is_file()


def test_names_that_utf8_cannot_hold_are_written(write_study, planned, tmp_path):
    root = write_study([planned("Plain", 0, [[0.5]])])
    root = root.rename(root.with_name("caf\udce9 π"))
    assert main([str(root)]) == 0
    assert "caf\\udce9 π" in (root / "report.html").read_text(encoding="utf-8")


def fill(disk):
    with (disk / "filler").open("ab", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_a_full_disk_is_waited_for(write_study, grid_trials, small_disk, monkeypatch):
    root = write_study(grid_trials)
    expected = {path.relative_to(root).as_posix() for path in write_report(root)}
    shutil.rmtree(root / "figures")
    disk = small_disk / "study"
    shutil.copytree(root, disk, ignore=shutil.ignore_patterns("report*", "table*", "drops*"))
    fill(small_disk)
    said = []

    def say(text):
        said.append(text)
        if "waiting up to 1 minutes" in text:
            (small_disk / "filler").unlink()

    # Figures are larger than this disk.
    monkeypatch.setattr("ht_ray.report.write._figures", lambda part: {})
    written = {path.relative_to(disk).as_posix() for path in write_report(disk, log=say, patience=60)}
    made = {name for name in expected if not name.startswith(("figures/", "report/"))}
    assert made <= written and any(name.startswith("report/") for name in written)
    assert sum("No space left on device; waiting up to 1 minutes for it" in text for text in said) == 1
    assert not list(disk.rglob("*.tmp"))


def test_a_disk_that_stays_full_is_exit_code_one(write_study, planned, small_disk, capsys):
    disk = small_disk / "study"
    shutil.copytree(write_study([planned("Plain", 0, [[0.5]])]), disk)
    fill(small_disk)
    with pytest.raises(StorageError, match="cannot be written: No space left on device"):
        write_report(disk, patience=0.3)
    assert main([str(disk), "--storage-minutes", "0.005"]) == 1
    printed = capsys.readouterr()
    assert "waiting up to 0.005 minutes for it" in printed.out
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
