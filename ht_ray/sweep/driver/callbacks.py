"""Callbacks of Ray Tune that a user brings to a study. Importing this module imports Ray."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune
from ray.tune.experiment import Trial

from ht_ray._checks import refused
from ht_ray._parts import load_part
from ht_ray.records import EventKind, TrialStatus
from ht_ray.records.study_files import CONFIG_FILE
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.study.config import SweepConfig, check_callback

__all__ = ["Brought", "StudyCallbacks", "StudyTrial", "make_callbacks", "results_of", "set_up"]


class Brought(NamedTuple):
    """A callback, and the setting that it came from."""

    setting: str
    value: object
    callback: tune.Callback


def make_callbacks(config: SweepConfig, study_name: str, more: Sequence[Any] = ()) -> list[Brought]:
    """Return the callbacks that the settings name, and `more`: callbacks, their classes, or functions that return one.

    Raises
    ------
    SettingError
        If one cannot be made.
    """
    given = [("SweepConfig.callback", path, load_part("SweepConfig", "callback", path)) for path in config.callback]
    given += [("Study: callbacks", one, one) for one in more]
    made = [_made(setting, value, part) for setting, value, part in given]
    if config.wandb is not None:
        from ht_ray.sweep.driver.trackers import Wandb

        made.append(_made("SweepConfig.wandb", config.wandb, lambda: Wandb(str(config.wandb))))
    if config.mlflow is not None:
        from ht_ray.sweep.driver.trackers import MLflow

        made.append(_made("SweepConfig.mlflow", config.mlflow, lambda: MLflow(str(config.mlflow), study_name)))
    return made


def _made(setting: str, value: object, part: Any) -> Brought:
    check_callback(setting, value, part)
    if not isinstance(part, tune.Callback):
        try:
            part = part()
        except Exception as error:  # of a user's own code, whatever it raises
            raise refused(setting, value, ": making it raised {error}.", error=_said(error)) from error
        if not isinstance(part, tune.Callback):
            why = ": it returned {made!r}; accepted is a ray.tune.Callback."
            raise refused(setting, value, why, made=part)
    return Brought(setting, value, part)


def set_up(brought: Sequence[Brought], trials: int) -> None:
    """Call what Tune calls before its first trial.

    Raises
    ------
    SettingError
        If one raises: it could take nothing in, and nothing is trained yet.
    """
    for one in brought:
        try:
            one.callback.setup(stop=None, num_samples=1, total_num_samples=trials)
        except Exception as error:
            raise refused(one.setting, one.value, ": its setup raised {error}.", error=_said(error)) from error


class StudyTrial(Trial):
    """A trial of a study as callbacks of Tune know one. Tune itself runs others: packs, and one after the other.

    Its name is the trial's id in the study; its ``trial_id`` is the same in all runs of the study, and in no other
    study. Its folder is the trial's in the study directory.

    Parameters
    ----------
    record
        The trial's.
    study
        What distinguishes the study from all others.
    """

    def __init__(self, record: TrialRecord, study: str) -> None:
        spec, self._folder = record.spec, record.directory
        digest = hashlib.sha256(f"{study}/{spec.id}".encode()).hexdigest()
        super().__init__(
            "ht-ray",
            config={"label": spec.label, **spec.settings, "config": spec.config},
            # MLflow would take an id of digits for a measured number.
            trial_id=f"t{digest[:15]}",
            trial_name_creator=lambda trial: spec.id,
            stub=True,
        )

    @property
    def local_path(self) -> str:
        """The trial's folder."""
        self._folder.mkdir(exist_ok=True)
        return str(self._folder)

    path = local_path

    @property
    def local_experiment_path(self) -> str:
        """The study's directory."""
        return str(self._folder.parent.parent)

    @property
    def experiment_dir_name(self) -> str:
        """The name of the study's directory."""
        return self._folder.parent.parent.name


@dataclass
class _Fed:
    """What the callbacks have had of a trial."""

    trial: StudyTrial
    reports: int
    results: int
    seconds: float
    running: bool = False


class StudyCallbacks:
    """Lets callbacks of Tune see the trials of a study, each by itself, also where several run as a pack.

    They are called in the driver, between what the study itself does, and after it: what they see is kept already. A
    report is one result for each row of its longest curve. A result that a trial makes again after a fault, and what
    an earlier run of the study had, does not come again.

    A callback that raises is called no more, and the study goes on: the console says so at once and at the end, and the
    journal has it.

    Parameters
    ----------
    brought
        The callbacks; they are set up.
    directory
        The study's.
    due
        The records of the trials of this run.
    note
        Adds an event to the journal.
    say
        Prints a text that stays.

    Attributes
    ----------
    failures
        A sentence for each callback that raised.
    """

    def __init__(
        self,
        brought: Sequence[Brought],
        directory: Path,
        due: Sequence[TrialRecord],
        note: Callable[..., None],
        say: Callable[[str], None],
    ) -> None:
        self.failures: list[str] = []
        self._callbacks = [one.callback for one in brought]
        self._note = note
        self._say = say
        self._iteration = 0
        self._fed: dict[str, _Fed] = {}
        # It stays as it was written when the study began, and has the study's own id.
        self._study = hashlib.sha256((directory / CONFIG_FILE).read_bytes()).hexdigest() if brought else ""
        self._due = due

    def start(self, record: TrialRecord) -> None:
        """A trial starts, or is taken up again after a fault."""
        if not self._callbacks:
            return
        fed = self._fed.get(record.spec.id)
        if fed is None:
            known = list(record.read())
            results = sum(_length(report) for report in known)
            fed = _Fed(StudyTrial(record, self._study), len(known), results, record.seconds)
            self._fed[record.spec.id] = fed
        if not fed.running:
            fed.running = True
            fed.trial.set_status(Trial.RUNNING)
            self._call("on_trial_start", trial=fed.trial)

    def feed(self, record: TrialRecord, report: Mapping[str, Any] | None = None) -> None:
        """A trial has reports that may be new; `report` is the last of them, if it is at hand."""
        fed = self._fed.get(record.spec.id)
        if fed is None or record.reports <= fed.reports:
            return
        new = [report] if report is not None and report["index"] == fed.reports else None
        for one in new or list(islice(record.read(), fed.reports, None)):
            for result in results_of(one, fed.results, fed.seconds):
                result |= {"trial_id": fed.trial.trial_id, "config": fed.trial.config}
                fed.trial.update_last_result(result)
                self._call("on_trial_result", trial=fed.trial, result=result)
                fed.results += 1
            fed.reports += 1
            fed.seconds += one["seconds"]

    def recover(self, record: TrialRecord) -> None:
        """A trial was cut off by a fault, and is to start again."""
        self._leave(record, Trial.PENDING, "on_trial_recover")

    def end(self, record: TrialRecord) -> None:
        """A trial has ended, as its record says."""
        if record.status == TrialStatus.FAILED:
            self._leave(record, Trial.ERROR, "on_trial_error")
        else:
            self._leave(record, Trial.TERMINATED, "on_trial_complete")

    def _leave(self, record: TrialRecord, status: str, hook: str) -> None:
        fed = self._fed.get(record.spec.id)
        if fed is not None and fed.running:
            fed.running = False
            fed.trial.set_status(status)
            self._call(hook, trial=fed.trial)

    def step(self, iteration: int, *, begins: bool) -> None:
        """A step of Tune's loop begins or ends."""
        self._iteration = iteration
        self._call("on_step_begin" if begins else "on_step_end")

    def close(self) -> None:
        """The run ends: trials that have not ended were cut off, which is no success."""
        for record in self._due:
            self._leave(record, Trial.ERROR, "on_trial_error")
        self._call("on_experiment_end")

    def _call(self, hook: str, **arguments: Any) -> None:
        arguments["trials"] = [fed.trial for fed in self._fed.values()]
        if hook != "on_experiment_end":
            arguments["iteration"] = self._iteration
        for callback in list(self._callbacks):
            try:
                getattr(callback, hook)(**arguments)
            except Exception as error:  # of a user's own code, whatever it raises: the study is not to end with it
                self._callbacks.remove(callback)
                text = f"{type(callback).__name__}.{hook} raised {_said(error)}"
                self.failures.append(f"{text}; it was called no more and may lack results, the study has them all")
                self._say(f"callback {text}; it is called no more, the study goes on and keeps all results")
                self._note(EventKind.CALLBACK, detail=text)


def results_of(report: Mapping[str, Any], before: int = 0, seconds: float = 0.0) -> Iterator[dict[str, Any]]:
    """Yield a report as results of Tune: one for each row of its longest curve.

    Rows of a shorter curve stand at its end and at equal distances before; the summary is in the last result. Names are
    those in TensorBoard.

    Parameters
    ----------
    before, seconds
        The number of the trial's results, and its time, before the report.

    Examples
    --------
    >>> rows = [{"step": 3, "loss": 0.2}, {"step": 4, "loss": None}]
    >>> report = {"curves": {"epoch": rows}, "summary": {"best": 0.2}, "progress": 1, "seconds": 4.0}
    >>> for result in results_of(report, before=2):
    ...     print({name: value for name, value in result.items() if "time" not in name})
    {'epoch/step': 3, 'epoch/loss': 0.2, 'training_iteration': 3, 'done': False}
    {'epoch/step': 4, 'epoch/loss': nan, 'summary/best': 0.2, 'training_iteration': 4, 'done': True}
    """
    length = _length(report)
    for place in range(1, length + 1):
        rows = {}
        for curve, own in report["curves"].items():
            row = place * len(own) // length
            if row > (place - 1) * len(own) // length:
                rows[curve] = own[row - 1]
        if place == length:
            rows["summary"] = report["summary"]
        values = {
            f"{curve}/{name}": math.nan if value is None else value
            for curve, row in rows.items()
            for name, value in row.items()
        }
        yield {
            **values,
            "training_iteration": before + place,
            "time_this_iter_s": report["seconds"] / length,
            "time_total_s": seconds + report["seconds"] * place / length,
            "done": place == length and report["progress"] >= 1,
        }


def _length(report: Mapping[str, Any]) -> int:
    return max((len(rows) for rows in report["curves"].values()), default=0) or 1


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
