"""What must not grow with the square of a study."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace

from sweep_trials import spec

from ht_ray.sweep.driver.run import _trial_name
from ht_ray.sweep.records.progress import StudyProgress
from ht_ray.sweep.records.trial_record import TrialRecord


def test_names_are_not_pickled_with_each_trial() -> None:
    assert _trial_name(SimpleNamespace(config={"members": ("trial-4321",)})) == "trial-4321"
    assert _trial_name(SimpleNamespace(config={"members": ("first", "b", "c")})) == "first+2"
    assert copy.deepcopy({"names": _trial_name})["names"] is _trial_name  # Tune copies what it is configured with
    assert len(pickle.dumps(_trial_name)) < 200


def test_lines_look_at_few_records(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    records = [TrialRecord(tmp_path, spec(f"t{number}", seed=number)) for number in range(300)]
    progress = StudyProgress("s", records, "loss", "max", slots=4)
    for record in records[:5]:
        record.start()
    looked = 0

    class Watched(TrialRecord):
        @property
        def progress(self) -> float:
            nonlocal looked
            looked += 1
            return float(self.__dict__["progress"])

    for record in records:
        record.__class__ = Watched
    progress.lines()
    assert looked <= 10
