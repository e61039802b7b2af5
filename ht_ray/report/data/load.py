"""Reading of study directories, here or at a URI, whole or damaged."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ht_ray._storage import Storage, is_uri, storage_errors
from ht_ray.errors import SettingError
from ht_ray.records.checked_json import Damaged, parse, sum_of
from ht_ray.records.study_files import CONFIG, FORMAT, JOURNAL, PLAN, REPORT, SETTLED, STATUS
from ht_ray.report.data.journal import load_journal
from ht_ray.report.data.record import load_record
from ht_ray.report.data.study import Curve, StudyData, TrialData

__all__ = ["load_study", "redact"]

NEEDED = ("config.json", "trials.json")
#: Files of a study at a URI that are fetched at a time.
AT_A_TIME = 8
ADVICE = (
    "Restore it from a copy; if it was edited on purpose, delete the check sum ('sum' there, 'plan' in config.json)."
)
#: Larger numbers are no count of steps, but damage; up to here a float holds every whole number.
MOST_STEPS = 2**53


def load_study(directory: str | os.PathLike[str]) -> StudyData:
    """Read a study directory written by ``ht_ray.sweep``, finished or not.

    Parameters
    ----------
    directory : path
        The folder that holds ``config.json`` and ``trials.json``, or its URI (``s3://bucket/studies/first``); or a
        record (``runs.jsonl``) of ``python -m ht_ray.agents.continual``.

    Raises
    ------
    SettingError
        If `directory` is no study, or a study of another format.
    StorageError
        If a URI's storage does not answer.
    """
    if not is_uri(os.fspath(directory)):
        path = Path(directory)
        return load_record(path) if path.is_file() else _load_study(path)
    uri = os.fspath(directory)
    source = redact(uri)
    with _fetched(uri) as root:
        try:
            study = _load_study(root)
        except SettingError as error:
            raise SettingError(str(error).replace(str(root), source)) from error
    trials = tuple(
        dataclasses.replace(trial, damage=tuple(text.replace(str(root), source) for text in trial.damage))
        for trial in study.trials
    )
    return dataclasses.replace(study, trials=trials, source=source)


def _load_study(root: Path) -> StudyData:
    if not root.is_dir():
        raise SettingError(f"{root}: there is no such directory.")
    missing = [name for name in NEEDED if not (root / name).is_file()]
    if missing:
        studies = sorted(path.parent.name for path in root.glob("*/trials.json"))
        inside = f" It holds the studies {', '.join(studies[:4])}: name one of them." if studies else ""
        raise SettingError(f"{root} is no study directory: it has no {' and no '.join(missing)}.{inside}")
    config, _ = _read(root / "config.json", {"format": int})
    if config["format"] != FORMAT:
        raise SettingError(
            f"{root / 'config.json'}: format = {config['format']!r}: this version of ht_ray reads format {FORMAT}."
        )
    _read(root / "config.json", CONFIG)
    planned, content = _read(root / "trials.json", PLAN)
    if config.get("plan", sum_of(content)) != sum_of(content):
        raise SettingError(f"{root / 'trials.json'}: the check sum in config.json says that it was changed. {ADVICE}")
    trials = tuple(_load_trial(plan, root / "trials" / plan["id"]) for plan in planned)
    ids = {trial.id for trial in trials}
    orphans = sorted(
        path.parent.name for path in (root / "trials").glob("*/results.jsonl") if path.parent.name not in ids
    )
    return StudyData(
        root,
        config,
        trials,
        tuple(f"trials/{name} is no trial of this study: it is left out." for name in orphans),
        load_journal(root),
    )


@contextmanager
def _fetched(uri: str) -> Iterator[Path]:
    """Keep the files that a report needs of the study at `uri` in a directory of its name, while the block runs.

    Event files and checkpoints are not fetched.

    Raises
    ------
    SettingError
        If there is no study, or no file system for such a URI.
    StorageError
        If the storage does not answer.
    """
    storage = Storage(uri).child()
    shown = redact(uri)
    with tempfile.TemporaryDirectory(prefix="ht-ray-report-") as scratch:
        directory = Path(scratch) / (Path(uri.partition("?")[0]).name or "study")
        try:
            with storage_errors(shown):
                missing = [name for name in NEEDED if not storage.exists(name)]
                if missing:
                    raise SettingError(f"{shown} is no study: it has no {' and no '.join(missing)}.")
                names = [*NEEDED, *([JOURNAL] if storage.exists(JOURNAL) else [])]
                names += [
                    f"trials/{name}" for name in storage.files("trials") if Path(name).suffix in (".json", ".jsonl")
                ]
                with ThreadPoolExecutor(AT_A_TIME) as pool:
                    for _ in pool.map(lambda name: storage.download(name, directory / name), names):
                        pass
        except ImportError as error:
            raise SettingError(f"{shown}: a study at a URI is read with PyArrow ({error}).") from error
        yield directory


def redact(uri: str) -> str:
    """Return `uri` without a key and its secret: a report may be sent to others.

    Examples
    --------
    >>> redact("s3://key:secret@bucket/study")
    's3://bucket/study'
    """
    return re.sub(r"(?<=://)[^/?#]*@", "", uri)


def _read(path: Path, form: Any) -> tuple[Any, bytes]:
    """Return the JSON of a file, and its bytes."""
    try:
        content = path.read_bytes()
        return parse(content, form), content
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except Damaged as damage:
        raise SettingError(f"{path}: {damage}. {ADVICE}") from damage


def _load_trial(plan: Mapping[str, Any], folder: Path) -> TrialData:
    name = f"Trial {plan['id']}"
    sentences: list[str] = []
    settled = folder / "settled.json"
    if settled.is_file():
        # The settings that a search chose while the study ran.
        try:
            plan = {**plan, **_read(settled, SETTLED)[0]}
        except SettingError as damage:
            sentences.append(f"{name}: {damage}")
    status, error = "missing", ""
    status_file = folder / "status.json"
    restarts = expected = 0
    if os.path.lexists(status_file):
        try:
            state, _ = _read(status_file, STATUS)
        except SettingError as damage:
            status = "damaged"
            sentences.append(f"{name}: {damage}")
        else:
            status = str(state["status"])
            error = (str(state.get("error") or "").strip().splitlines() or [""])[-1].strip()
            restarts, expected = state.get("restarts", 0), state.get("reports", 0)
    reports, damage_found = _read_reports(folder / "results.jsonl")
    sentences += [f"{name}: {text}" for text in damage_found]
    progress = _number(reports[-1]["progress"]) if reports else 0.0
    if status == "missing" and reports:
        status = "running"
    # A finished trial whose last report is lost would otherwise enter the averages with an earlier phase's summary.
    if status == "finished" and (not reports or progress < 1 - 1e-9):
        status = "damaged"
        sentences.append(f"{name}: it says finished, and its results end at {progress:.0%}.")
    elif status == "finished" and any("skipped" in text for text in damage_found):
        status = "damaged"
    elif len(reports) < expected and status in ("finished", "diverged", "stopped"):
        sentences.append(f"{name}: results.jsonl has {len(reports)} reports, and should have {expected}.")
        status = "damaged"
    return TrialData(
        id=plan["id"],
        label=plan["label"],
        settings=dict(plan["settings"]),
        status=status,
        error=error,
        curves=_join_curves(reports),
        summary={name: _number(value) for name, value in reports[-1]["summary"].items()} if reports else {},
        progress=progress,
        seconds=sum(_number(report["seconds"]) for report in reports),
        damage=tuple(sentences),
        config=dict(plan["config"]) if isinstance(plan.get("config"), dict) else {},
        restarts=restarts,
        packed=plan.get("pack") is not None,
    )


def _read_reports(path: Path) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the reports up to the first that is missing or unreadable, and sentences on the damage."""
    try:
        content = path.read_bytes().rstrip(b"\n")
    except FileNotFoundError:
        content = b""
    except OSError as error:
        return [], [f"results.jsonl cannot be read ({error.strerror or error}); all of it is skipped."]
    lines = content.split(b"\n") if content else []
    reports: list[Mapping[str, Any]] = []
    reached: dict[str, float] = {}
    for number, line in enumerate(lines, start=1):
        try:
            report = parse(line, REPORT)
            index = report["index"]
            if index == len(reports):
                reached |= {name: _last_step(name, points, reached) for name, points in report["curves"].items()}
        except ValueError as error:
            if number == len(lines) and isinstance(error.__cause__, json.JSONDecodeError):
                return reports, [
                    f"the last line of results.jsonl is torn; what stood in it is lost ({number - 1} are whole)."
                ]
            return reports, [f"line {number} of results.jsonl is damaged ({error}); it and what follows are skipped."]
        if index != len(reports):
            found = f"line {number} of results.jsonl has index {index!r} instead of {len(reports)}"
            return reports, [f"{found}; it and what follows are skipped."]
        reports.append(report)
    return reports, []


def _last_step(curve: str, points: Sequence[Mapping[str, float]], before: Mapping[str, float]) -> float:
    """Return the last step of a report's rows; raise if they do not count on from the report before."""
    last = before.get(curve, -1.0)
    for point in points:
        step = float(point["step"])
        if not (last < step <= MOST_STEPS and step.is_integer()):
            raise ValueError(f"{curve}: steps are whole numbers that increase, and {step:g} is not")
        last = step
    return last


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _join_curves(reports: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    rows: dict[str, list[dict[str, float | None]]] = {}
    for report in reports:
        for name, points in report["curves"].items():
            rows.setdefault(name, []).extend(points)
    return {
        name: {
            column: np.array([point.get(column) for point in points], dtype=np.float64)
            for column in dict.fromkeys(key for point in points for key in point)
        }
        for name, points in rows.items()
    }
