"""A study's report: tables and figures, written into its directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ht_ray.report._files import write_bytes
from ht_ray.report.curves import epoch_curves, phase_curves
from ht_ray.report.heat_map import heat_map
from ht_ray.report.indicator_curves import indicator_curves
from ht_ray.report.indicator_tables import correlation_table, indicator_table
from ht_ray.report.lines import BASELINE
from ht_ray.report.study import MissingDataError, StudyData, load_study, split_by_access
from ht_ray.report.tables import Table, drops_table, summary_table

__all__ = ["write_report"]

METRICS = ("average_accuracy", "final_accuracy")
TABLES = ("table", "drops", "indicators", "correlations")


def write_report(
    study: StudyData | str | os.PathLike[str], *, say: Callable[[str], object] | None = None
) -> list[Path]:
    """Write a study's tables and figures into its directory.

    ``table.md`` holds all tables, ``table.csv`` and ``drops.csv`` the unrounded numbers behind them, ``figures/`` each
    figure as PNG and PDF. A study that measured plasticity indicators has ``indicators.csv``, ``correlations.csv`` and
    the figure ``indicator_curves`` as well. Where a study has both access modes, each has its own tables (told apart by
    the CSV column ``access``) and figures (by the end of their name). Files of these names are replaced, each at once;
    no other is touched.

    Parameters
    ----------
    study
        The study, or its directory.
    say
        Called with each table as text, and with a sentence for each table or figure the study has no data for; the
        sentences stand in ``table.md`` as well. ``print`` is what the command line uses.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    SettingError
        If `study` is no study directory, cannot be written to, or holds two trials of one label and seed.
    """
    if not isinstance(study, StudyData):
        study = load_study(study)
    tell = say or (lambda text: None)
    root = study.directory
    tables: dict[str, list[Table]] = {}
    skipped: list[str] = []
    written: list[Path] = []

    def skip(access: str | None, reason: object) -> None:
        skipped.append(f"Skipped{f' ({access} access)' if access else ''}: {reason}")
        tell(skipped[-1])

    for access, part in split_by_access(study).items():
        metrics = _metrics(part)
        plain = {trial.label for trial in part.trials if trial.method == BASELINE}
        if len(plain) != 1:
            skip(
                access, f"differences to the {BASELINE} method: they take one label of it, and there are {len(plain)}."
            )
        make: dict[str, Callable[[], Table]] = {
            "table": partial(summary_table, part, metrics, plain.pop() if len(plain) == 1 else None),
            "drops": partial(drops_table, part),
        }
        if part.indicator_names:
            make |= {"indicators": partial(indicator_table, part), "correlations": partial(correlation_table, part)}
        for name, table in make.items():
            try:
                made = table()
            except MissingDataError as reason:
                skip(access, reason)
            else:
                tables.setdefault(name, []).append(made)
                tell(made.to_text())
        end = "" if access is None else f"_{access}"
        draw: dict[str, Callable[..., None]] = {
            **{f"heat_map_{metric}": partial(heat_map, part, metric) for metric in metrics},
            "epoch_curves": partial(epoch_curves, part),
            "phase_curves": partial(phase_curves, part),
        }
        if part.indicator_names:
            draw["indicator_curves"] = partial(indicator_curves, part)
        for name, figure in draw.items():
            paths = [root / "figures" / f"{name}{end}.{suffix}" for suffix in ("png", "pdf")]
            try:
                figure(*paths)
            except MissingDataError as reason:
                skip(access, reason)
            else:
                written += paths
    order = [table for name in TABLES for table in tables.get(name, ())]
    markdown = [f"# {study.name}", *(table.to_markdown().rstrip() for table in order), *skipped]
    texts = {"table.md": "\n\n".join(markdown) + "\n"}
    texts |= {f"{name}.csv": _joined(tables[name]) for name in TABLES if name in tables}
    for name, text in texts.items():
        write_bytes(root / name, text.encode())
    return [*(root / name for name in texts), *written]


def _metrics(study: StudyData) -> list[str]:
    """Return the usual metrics the study has, and the one it is ranked by."""
    known = study.summary_names
    names = dict.fromkeys([*METRICS, study.metric])
    return [name for name in names if name in known] or [study.metric]


def _joined(tables: list[Table]) -> str:
    return "".join(table.to_csv(header=index == 0) for index, table in enumerate(tables))
