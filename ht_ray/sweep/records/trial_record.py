"""Record of a trial: what it has reported and how it stands, in its folder of the study directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ht_ray._files import write_atomic
from ht_ray._storage import storage_errors
from ht_ray.errors import SettingError
from ht_ray.records import TrialStatus
from ht_ray.records.checked_json import Damaged, to_sealed_json
from ht_ray.records.study_files import CHECKPOINTS, SETTLED, STATUS, TRIALS, Reports, append_line, read_file
from ht_ray.sweep.study.trial import TrialSpec

__all__ = ["TrialRecord"]

_SETTLED, _STATUS = "settled.json", "status.json"


class TrialRecord:
    """What one trial has reported and how it stands, kept in its folder.

    Reading a record changes nothing on disk.

    Attributes
    ----------
    status
        How it stands.
    reports
        The number of complete reports.
    progress, summary
        As the last report has them.
    seconds
        The worker's time, over all reports.
    torn
        Whether lines were left out: one that a kill had torn, or those from the first that is damaged.
    damage
        Sentences on what is damaged of its files. What was lost with it is not part of the record.
    on_change
        If set, called after each change made here.
    """

    on_change: Callable[[TrialRecord], None] | None = None

    def __init__(self, directory: Path, spec: TrialSpec) -> None:
        self.directory = directory / TRIALS / spec.id
        self.spec = spec
        self.status = TrialStatus.UNFINISHED
        self.error: str | None = None
        self.restarts = 0
        self.node: str | None = None
        self.summary: dict[str, float | None] = {}
        self.damage: list[str] = []
        self._results = self.directory / "results.jsonl"
        self._read_settled()
        expected = self._read_status()
        self._read_reports()
        self._compare(expected)

    @property
    def finite_summary(self) -> dict[str, float]:
        """The finite values of the summary."""
        return {name: value for name, value in self.summary.items() if value is not None}

    def settle(self, spec: TrialSpec) -> None:
        """Note what a trial is that was planned without its settings."""
        content = {"label": spec.label, "settings": spec.settings, "config": spec.config}
        self._write(self.directory / _SETTLED, to_sealed_json(content, indent=1) + "\n")
        self.spec = spec
        self._changed()

    def start(self) -> None:
        """Note that the trial runs."""
        self._stand(TrialStatus.RUNNING, None)

    def end(self, status: TrialStatus, error: str | None = None) -> None:
        """Note how the trial ended."""
        self._stand(status, error)

    def _stand(self, status: TrialStatus, error: str | None) -> None:
        self.status, self.error = status, error
        content = {
            "status": self.status,
            "error": self.error,
            "restarts": self.restarts,
            "node": self.node,
            "reports": self.reports,
        }
        self._write(self.directory / _STATUS, to_sealed_json(content) + "\n")
        self._changed()

    def append(self, line: str, report: Mapping[str, Any]) -> None:
        """Add the next report, `line` being `report` as JSON."""
        if report["index"] != self.reports:
            raise ValueError(f"trial {self.spec.id}: report {report['index']} came when {self.reports} was due")
        self._make_folder()
        append_line(self._results, line)
        self._count(report)
        self._changed()

    def cut(self, reports: int) -> None:
        """Forget all but the first `reports` reports, and any torn line."""
        if reports == self.reports and not self.torn:
            return
        lines = self._content().split(b"\n")[:-1]
        self._replace(b"".join(line + b"\n" for line in lines[:reports]))

    def restore(self, lines: Sequence[str]) -> bool:
        """Let `lines` be all reports, and return whether that changed anything."""
        content = "".join(f"{line}\n" for line in lines).encode()
        if self._results.exists() and self._content() == content:
            return False
        self._replace(content)
        return True

    def cut_off(self) -> None:
        """Note, here only, that the driver stops before the trial ends. On disk that looks as if it had been killed."""
        if not self.status.ended:
            self.status = TrialStatus.UNFINISHED
            self._changed()

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the complete reports."""
        for line in self._content().split(b"\n")[:-1][: self.reports]:
            yield json.loads(line)

    def _content(self) -> bytes:
        return self._results.read_bytes() if self._results.exists() else b""

    def _replace(self, content: bytes) -> None:
        self._write(self._results, content)
        self._read_reports()
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change(self)

    def _write(self, path: Path, content: str | bytes) -> None:
        self._make_folder()
        with storage_errors(self.directory):
            write_atomic(path, content)

    def _make_folder(self) -> None:
        # Not its parents: a study whose directory is gone is not to be made again in an empty one.
        with storage_errors(self.directory):
            self.directory.mkdir(exist_ok=True)

    def _count(self, report: Mapping[str, Any]) -> None:
        self.progress, self.summary = report["progress"], report["summary"]
        self.seconds += report["seconds"]
        self.reports += 1

    def _read_reports(self) -> None:
        self.reports, self.progress, self.seconds, self.torn = 0, 0.0, 0.0, False
        self.summary = {}
        reports = Reports(self._content())
        for report in reports:
            self._count(report)
        if reports.damage is not None:
            self.torn = True
            if not reports.torn:
                self.damage.append(f"{self._results} is damaged: {reports.damage}; that and what follows is left out")
                if self.status.ended:
                    self.status = TrialStatus.UNFINISHED

    def _compare(self, expected: int | None) -> None:
        """Find out whether a trial that is said to have ended has all its reports, `expected` many if that is known."""
        short = expected is not None and self.reports < expected
        if short or (self.status == TrialStatus.FINISHED and self.progress < 1):
            if not self.damage:
                found = f"{self.reports} reports, up to {self.progress:.0%} of the trial"
                self.damage.append(f"{self._results} is damaged: it has {found}, and the trial is {self.status}")
            self.status = TrialStatus.UNFINISHED

    def _read_settled(self) -> None:
        try:
            saved = read_file(self.directory / _SETTLED, SETTLED)
        except FileNotFoundError:
            return
        except Damaged as damage:
            # With other settings than it began with a trial would not be itself.
            raise SettingError(
                f"{damage}. Restore it from a copy; or delete {self.directory} and the trial's folder in "
                f"{CHECKPOINTS}: then it begins again, with other settings."
            ) from damage
        self.spec = TrialSpec(self.spec.id, saved["label"], saved["settings"], saved["config"], self.spec.pack)

    def _read_status(self) -> int | None:
        """Read how the trial stands, and return how many reports it must have for that, if it has ended."""
        try:
            saved = read_file(self.directory / _STATUS, STATUS)
        except FileNotFoundError:
            return None
        except Damaged as damage:
            self.damage.append(f"{damage}; how the trial stands is found from its reports")
            return None
        self.error, self.restarts, self.node = saved.get("error"), saved.get("restarts", 0), saved.get("node")
        status = TrialStatus(saved["status"])
        if not status.ended:
            return None  # it runs, says a driver that was killed
        self.status = status
        reports: int | None = saved.get("reports")
        return reports
