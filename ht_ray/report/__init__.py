"""Reports of studies: tables, figures, one HTML page, and TensorBoard files, from the directories that a sweep writes.

`write_report` makes the files and the page of one study, `write_reports` those of several. Numbers of the Hare &
Tortoise paper (arXiv 2406.02596) stand next to ours where the protocol is its own. A study's curves hold test
accuracies and other measurements: any column whose name is not a usual one is taken as a plasticity indicator.

The report runs on numpy and scipy, on matplotlib once a figure is drawn, and on tensorboard where its event file is
written; neither torch nor ray is needed, so that results can be read on a machine that could not have made them.
``python -m ht_ray.report DIRECTORY`` writes everything.
"""

from ht_ray.report.atari.reference import human_normalized, paper_scores
from ht_ray.report.data.load import load_study
from ht_ray.report.data.paper import PaperValue, grid_value, method_value
from ht_ray.report.data.statistics import (
    Difference,
    Estimate,
    bootstrap_interval,
    drop_and_recovery,
    estimate,
    mean_interval,
    paired_difference,
)
from ht_ray.report.data.study import (
    MissingDataError,
    StudyData,
    TrialData,
    group,
    seed_values,
    split_by_access,
)
from ht_ray.report.write import write_report, write_reports

__all__ = [
    "Difference",
    "Estimate",
    "MissingDataError",
    "PaperValue",
    "StudyData",
    "TrialData",
    "bootstrap_interval",
    "drop_and_recovery",
    "estimate",
    "grid_value",
    "group",
    "human_normalized",
    "load_study",
    "mean_interval",
    "method_value",
    "paired_difference",
    "paper_scores",
    "seed_values",
    "split_by_access",
    "write_report",
    "write_reports",
]
