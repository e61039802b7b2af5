"""Summary of a study for a terminal: one table that fits on a screen; everything else is in the report's files."""

from __future__ import annotations

import dataclasses

from ht_ray.report.atari.study import is_atari
from ht_ray.report.atari.tables import aggregates_table
from ht_ray.report.continual.tables import marked_labels, usual_metrics
from ht_ray.report.continual.warm_start_grid import grid_metrics, grid_table, is_grid
from ht_ray.report.data.selection import best_label, chosen_on, labels_by_method, selecting_metric, test_metric
from ht_ray.report.data.statistics import estimate, paired_difference
from ht_ray.report.data.study import MissingDataError, StudyData, seed_values, split_by_access
from ht_ray.report.style.curve_lines import BASELINE
from ht_ray.report.style.formats import RETURNS, describe, format_mean_sd, humanize, metric_title
from ht_ray.report.style.tables import Cell, Column, Table, seeds_cell

__all__ = ["MOST_ROWS", "summarize"]

#: How many rows a screen has room for; of more, the best setting of each method is shown.
MOST_ROWS = 10


def summarize(study: StudyData, width: int = 100) -> str:
    """Return the table that a terminal shows when a study has ended: method, seeds, average, final, difference.

    With many labels there is one row for each method, its best setting, chosen on validation data where the study has
    some. Of a grid of warm starts it is the table of test accuracies, of Atari games that of the aggregates; what the
    paper has is in the report.

    Parameters
    ----------
    study : StudyData
        The study.
    width : int, default 100
        The most characters in a line.

    Returns
    -------
    str
        The lines, with a newline at the end; a sentence where the study has nothing to tabulate.
    """
    parts = split_by_access(study)
    first = next(iter(parts.values()))
    try:
        if is_atari(first):
            table = aggregates_table(first)
            own = tuple(row for row in table.rows if not row[0].text.endswith("(paper)"))
            return _bare(dataclasses.replace(table, rows=own)).to_text(width)
        if is_grid(first):
            table = grid_table(first, grid_metrics(first)[0])
            rows = tuple(
                tuple(dataclasses.replace(cell, text=cell.text.partition(" (")[0]) for cell in row)
                for row in table.rows
            )
            return _bare(dataclasses.replace(table, rows=rows)).to_text(width)
    except MissingDataError as reason:
        return f"{reason}\n"
    return _labels(study, parts).to_text(width)


def _bare(table: Table) -> Table:
    return dataclasses.replace(table, notes=())


def _labels(study: StudyData, parts: dict[str | None, StudyData]) -> Table:
    metric = test_metric(study.metric)
    average, final = usual_metrics(study)
    metrics = [name for name in dict.fromkeys([average, final, metric]) if name in study.summary_names]
    if study.warm_start:
        metrics = [name for name in metrics if name != average] or metrics
    several = len(parts) > 1
    columns = [Column("method", ("label",)), *([Column("access", ("access",))] if several else [])]
    columns += [Column("seeds", ("seeds",)), *(Column(metric_title(name), (name,)) for name in metrics)]
    bases = {access: {t.label for t in part.trials if t.method == BASELINE} for access, part in parts.items()}
    compared = len(study.labels) > 1 and all(len(base) == 1 for base in bases.values())
    if compared:
        columns.append(Column("minus Plain", ("difference",)))
    rows, left_out = [], 0
    for access, part in parts.items():
        groups, best = part.by_label, marked_labels(part, metric)
        chosen = _chosen(part, metric, MOST_ROWS // len(parts))
        left_out += len(groups) - len(chosen)
        for label, said in chosen.items():
            trials = groups[label]
            cells = [Cell(label + said, (label,)), *([Cell(str(access), (str(access),))] if several else [])]
            cells.append(seeds_cell(trials))
            for name in metrics:
                own = estimate(seed_values(trials, name).values())
                cells.append(Cell(format_mean_sd(name, own.mean, own.sd), (own.mean,), label in best))
            if compared:
                (base,) = bases[access]
                gain = paired_difference(seed_values(trials, metric), seed_values(groups[base], metric))
                text = "" if label == base else format_mean_sd(metric, gain.mean, gain.half_width, sign=True)
                cells.append(Cell(text, (gain.mean,)))
            rows.append(tuple(cells))
    notes = []
    if compared:
        notes.append(f"minus Plain: {humanize(metric)}, paired by seed, mean ± half the 95% interval.")
    note = f"* best {humanize(selecting_metric(study, metric))}"
    note += f", chosen on {chosen_on(study)} data" * (metric not in RETURNS)
    note += f"; {left_out} more settings are in the report" * (left_out > 0)
    return Table(describe(study), tuple(columns), tuple(rows), (f"{note}.", *notes))


def _chosen(part: StudyData, metric: str, most: int) -> dict[str, str]:
    """Return the labels to show, in the order planned, each with a remark."""
    labels = list(part.labels)
    if len(labels) <= most:
        return dict.fromkeys(labels, "")
    groups = part.by_label
    found = {}
    for own in labels_by_method(part).values():
        best = best_label(part, own, metric) or own[0]
        found[best] = f" (best of {len(own)})" * (len(own) > 1)
    left = list(found)
    while len(left) > most:
        # The best stay, and what they are compared with.
        kept: list[str] = [label for label in left if groups[label][0].method == BASELINE][:1]
        while len(kept) < most:
            rest = [label for label in left if label not in kept]
            kept.append(best_label(part, rest, metric) or rest[0])
        left = kept
    return {label: said for label, said in found.items() if label in left}
