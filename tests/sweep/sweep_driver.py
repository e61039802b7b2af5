"""A driver to be killed: ``python sweep_driver.py DIRECTORY SECONDS`` runs two trials of six parts of SECONDS each."""

from __future__ import annotations

import sys

from sweep_trials import spec, study

from ht_ray.sweep import Study, SweepConfig, run_study


def long_study(sleep: float) -> Study:
    return study(*(spec(f"long-{seed}", seed=seed, parts=6, sleep=sleep) for seed in (1, 2)))


if __name__ == "__main__":
    result = run_study(long_study(float(sys.argv[2])), SweepConfig(results_dir=sys.argv[1]))
    print(result.describe())
    sys.exit(result.exit_code)
