"""Studies run in this process, while another thread disturbs them; and what they left."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ht_ray._storage import Storage
from ht_ray.sweep import Study, StudyResult, SweepConfig, run_study
from ht_ray.sweep.records.progress import Console


def wait_for(condition: Callable[[], object], seconds: float = 400.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.05)


def run(
    study: Study, disturb: Callable[[Callable[[], str]], None] | None = None, **config: Any
) -> tuple[StudyResult, str]:
    """Run a study, and return its result and what it said. `disturb` runs meanwhile, and is given what it said yet."""
    stream = io.StringIO()
    errors: list[BaseException] = []

    def disturbing() -> None:
        assert disturb is not None
        try:
            disturb(stream.getvalue)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=disturbing)
    with ExitStack() as stack:
        if disturb is not None:
            thread.start()
            stack.callback(thread.join)
        result = run_study(study, SweepConfig(tensorboard="none", **config), console=Console(stream))
    if errors:
        raise errors[0]
    return result, stream.getvalue()


def reports(location: str | Path, trial: str) -> list[dict[str, Any]]:
    """A trial's reports, without the time they took and what depends on it."""
    lines = Storage(location).read(f"trials/{trial}/results.jsonl").splitlines()
    return [{**json.loads(line), "seconds": None, "sum": None} for line in lines]


def journal(location: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Storage(location).read("journal.jsonl").splitlines()]


def assert_same(study: Study, location: str | Path, undisturbed: str | Path) -> None:
    """Every trial of `study` has at `location` what it has where nothing disturbed it."""
    for spec in study.trials:
        assert reports(location, spec.id) == reports(undisturbed, spec.id)
        status = json.loads(Storage(location).read(f"trials/{spec.id}/status.json"))
        assert status["status"] == "finished"
