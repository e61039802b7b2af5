"""What the sweep costs per trial: many trials that do nothing, timed with Ray already running.

    python benchmarks/sweep_overhead.py [TRIALS] [REPORTS]

prints seconds per trial, with event files and without.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ht_ray.sweep import Report, Study, SweepConfig, TrialSpec, run_study


class Trivial:
    """Reports `config["reports"]` times without doing anything."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self._reports = config["reports"]
        self._done = 0

    def advance(self) -> Report:
        self._done += 1
        row = {"step": self._done, "test_accuracy": 0.5, "test_loss": 1.0}
        return Report({"epoch": [row], "phase": [row]}, {"final_accuracy": 0.5}, self._done / self._reports)

    def save(self, directory: Path) -> None:
        (directory / "done").write_text(str(self._done))

    def load(self, directory: Path) -> None:
        self._done = int((directory / "done").read_text())


def main() -> None:
    trials, reports = (int(text) for text in (*sys.argv[1:], "200", "1")[:2])
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    specs = tuple(TrialSpec(f"trial-{i:04d}", "Trivial", {"seed": i}, {"reports": reports}) for i in range(trials))
    study = Study("overhead", "sweep_overhead:Trivial", specs, "final_accuracy")
    with tempfile.TemporaryDirectory() as root:
        for tensorboard in ("trials", "none"):
            start = time.perf_counter()
            result = run_study(study, SweepConfig(results_dir=f"{root}/{tensorboard}", tensorboard=tensorboard))
            seconds = time.perf_counter() - start
            print(
                f"{result.finished} trials of {reports} report(s), event files: {tensorboard}: "
                f"{seconds / trials:.3f} s per trial"
            )
    ray.shutdown()


if __name__ == "__main__":
    main()
