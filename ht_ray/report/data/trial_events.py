"""The event files of a study's trials, made again where they are damaged."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ht_ray._files import locked
from ht_ray.records.study_files import LOCK, Reports
from ht_ray.report.data.files import waited
from ht_ray.report.data.study import StudyData

__all__ = ["mend_trial_events"]


def mend_trial_events(study: StudyData, say: Callable[[str], object]) -> None:
    """Write the event files of trials that have ended again, where they are damaged or gone.

    Nothing is done for a study that is at work, whose driver does it; for one that has no such files (``--tensorboard``
    with another value); and for a copy of one that is at a URI.

    Raises
    ------
    StorageError
        If the disk is full or lost.
    """
    lock, trials = study.directory / LOCK, study.directory / "trials"
    runs = study.journal.runs if study.journal is not None else ()
    kind = runs[-1].began.text("tensorboard") if runs else ""
    if kind not in ("", "trials") or not (kind or any(trials.glob("*/events.out.tfevents.*"))) or not lock.is_file():
        return
    try:
        from ht_ray.records.event_files import HParams, ended_events, mend
    except ModuleNotFoundError:
        return  # the report says so
    hparams = HParams([trial.settings for trial in study.trials])
    mended = 0
    with locked(lock) as free:
        for trial in study.trials if free else ():
            if trial.status not in ("finished", "diverged", "stopped") or not trial.curves or trial.damage:
                continue
            reports = Reports((trials / trial.id / "results.jsonl").read_bytes())
            events = ended_events(hparams, trial.settings, reports, trial.status)
            mended += waited(partial(mend, trials / trial.id, events))
    if mended:
        say(f"Event files of {mended} trials that have ended were damaged or missing: written again.")
