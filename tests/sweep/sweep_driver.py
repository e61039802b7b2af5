"""A driver to be killed: ``python sweep_driver.py DIRECTORY SECONDS`` runs two trials of six parts of SECONDS each.

With ``population`` behind that, it runs a population of five.
"""

from __future__ import annotations

import sys

from sweep_trials import climbing, spec, study

from ht_ray.sweep import Study, SweepConfig, run_study


def long_study(sleep: float) -> Study:
    return study(*(spec(f"long-{seed}", seed=seed, parts=6, sleep=sleep) for seed in (1, 2)))


def population_study(sleep: float) -> Study:
    return climbing(5, parts=6, sleep=sleep, search={"scheduler": "pbt", "perturbation_interval": 2})


if __name__ == "__main__":
    of = population_study if sys.argv[3:] == ["population"] else long_study
    result = run_study(of(float(sys.argv[2])), SweepConfig(results_dir=sys.argv[1]))
    print(result.describe())
    sys.exit(result.exit_code)
