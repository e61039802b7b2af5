"""Read study directories; make their tables and figures.

`write_report` makes the files and the page of one study, `write_reports` those of several. Numbers of the Hare &
Tortoise paper (arXiv 2406.02596) stand beside ours where the protocol is its own.

A study's curves hold test accuracies and whatever else was measured: any column that is no usual one is taken as a
plasticity indicator.

Everything here runs on numpy, on matplotlib once a figure is drawn, and on tensorboard where its event file is written;
neither torch nor ray is needed, so that results can be read on a machine that could not have made them.
``python -m ht_ray.report DIRECTORY`` does it all.
"""

from ht_ray.report.atari.curves import efficiency_figure, game_curves_figure
from ht_ray.report.atari.figures import aggregates_figure, profile_figure
from ht_ray.report.atari.map import atari_heat_map
from ht_ray.report.atari.reference import atari_games, human_normalised, paper_scores
from ht_ray.report.atari.scores import (
    AtariAggregates,
    Bounded,
    PerformanceProfile,
    aggregate_scores,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from ht_ray.report.atari.tables import aggregates_table, games_table, improvement_table
from ht_ray.report.continual.adam_map import adam_map
from ht_ray.report.continual.curves import epoch_curves, phase_curves
from ht_ray.report.continual.grid_figure import grid_figure
from ht_ray.report.continual.grid_tables import grid_cells_table, grid_table
from ht_ray.report.continual.heat_map import heat_map
from ht_ray.report.continual.method_bars import method_bars
from ht_ray.report.data.combine import combine
from ht_ray.report.data.paper import PaperValue, grid_value, method_value
from ht_ray.report.data.statistics import (
    Difference,
    Drops,
    Estimate,
    bootstrap_interval,
    correlation,
    drop_and_recovery,
    estimate,
    mean_interval,
    paired_difference,
    t_quantile,
)
from ht_ray.report.data.study import (
    MissingDataError,
    StudyData,
    TrialData,
    group,
    load_study,
    seed_values,
    split_by_access,
)
from ht_ray.report.indicators.curves import indicator_curves
from ht_ray.report.indicators.scatter import indicator_scatter
from ht_ray.report.indicators.tables import correlation_table, indicator_table
from ht_ray.report.style.tables import Cell, Column, Table, drops_table, summary_table
from ht_ray.report.write import write_report, write_reports

__all__ = [
    "AtariAggregates",
    "Bounded",
    "Cell",
    "Column",
    "Difference",
    "Drops",
    "Estimate",
    "MissingDataError",
    "PaperValue",
    "PerformanceProfile",
    "StudyData",
    "Table",
    "TrialData",
    "adam_map",
    "aggregate_scores",
    "aggregates_figure",
    "aggregates_table",
    "atari_games",
    "atari_heat_map",
    "bootstrap_interval",
    "combine",
    "correlation",
    "correlation_table",
    "drop_and_recovery",
    "drops_table",
    "efficiency_figure",
    "epoch_curves",
    "estimate",
    "game_curves_figure",
    "games_table",
    "grid_cells_table",
    "grid_figure",
    "grid_table",
    "grid_value",
    "group",
    "heat_map",
    "human_normalised",
    "improvement_table",
    "indicator_curves",
    "indicator_scatter",
    "indicator_table",
    "interquartile_mean",
    "load_study",
    "mean_interval",
    "method_bars",
    "method_value",
    "paired_difference",
    "paper_scores",
    "performance_profile",
    "phase_curves",
    "probability_of_improvement",
    "profile_figure",
    "seed_values",
    "split_by_access",
    "summary_table",
    "t_quantile",
    "write_report",
    "write_reports",
]
