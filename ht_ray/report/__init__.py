"""Read study directories; make their tables and figures.

A study's curves hold test accuracies and whatever else was measured: any column that is no usual one is taken as a
plasticity indicator.

Everything here runs on numpy, and on matplotlib once a figure is drawn; neither torch nor ray is needed, so that
results can be read on a machine that could not have made them. ``python -m ht_ray.report DIRECTORY`` does it all.
"""

from ht_ray.report.curves import epoch_curves, phase_curves
from ht_ray.report.heat_map import heat_map
from ht_ray.report.indicator_curves import indicator_curves
from ht_ray.report.indicator_tables import correlation_table, indicator_table
from ht_ray.report.statistics import (
    Difference,
    Drops,
    Estimate,
    correlation,
    drop_and_recovery,
    estimate,
    paired_difference,
    t_quantile,
)
from ht_ray.report.study import MissingDataError, StudyData, TrialData, group, load_study, seed_values, split_by_access
from ht_ray.report.tables import Cell, Column, Table, drops_table, summary_table
from ht_ray.report.write import write_report

__all__ = [
    "Cell",
    "Column",
    "Difference",
    "Drops",
    "Estimate",
    "MissingDataError",
    "StudyData",
    "Table",
    "TrialData",
    "correlation",
    "correlation_table",
    "drop_and_recovery",
    "drops_table",
    "epoch_curves",
    "estimate",
    "group",
    "heat_map",
    "indicator_curves",
    "indicator_table",
    "load_study",
    "paired_difference",
    "phase_curves",
    "seed_values",
    "split_by_access",
    "summary_table",
    "t_quantile",
    "write_report",
]
