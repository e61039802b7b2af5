"""Table of results: ``results.csv``, a row per trial."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ht_ray._files import write_atomic
from ht_ray._storage import storage_errors
from ht_ray.records.checked_json import Scalar
from ht_ray.sweep.records.failure_log import last_line
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.study.trial import RESERVED_COLUMNS

__all__ = ["write_results_csv"]


def write_results_csv(directory: Path, records: Sequence[TrialRecord]) -> None:
    """Write ``results.csv``: a row per trial with its settings and its last summary.

    A summary key that is also the name of another column is written as ``summary.KEY``. Where trials were packed, the
    column ``executor`` says which: "pack" or "lone".
    """
    packed = any(record.spec.pack is not None for record in records)
    settings = list(dict.fromkeys(name for record in records for name in record.spec.settings))
    summary = list(dict.fromkeys(name for record in records for name in record.summary))
    taken = {*settings, *RESERVED_COLUMNS}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [f"summary.{name}" if name in taken else name for name in summary]
    executor = ["executor"] if packed else []
    table.writerow(["id", "label", "status", *settings, *names, *executor, "restarts", "seconds", "error"])
    for record in records:
        values: list[Scalar] = [record.spec.id, record.spec.label, record.status]
        values += [record.spec.settings.get(name) for name in settings]
        values += [record.summary.get(name) for name in summary]
        values += ["lone" if record.spec.pack is None else "pack"] if packed else []
        values += [record.restarts, round(record.seconds, 3), last_line(record.error)]
        table.writerow(values)
    with storage_errors(directory):
        write_atomic(directory / "results.csv", text.getvalue())
