"""Tables of continual learning: a summary by label, and the drops at phase changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.data.paper import PaperComparison, compare_with_paper, paper_notes
from ht_ray.report.data.selection import (
    best_label,
    chosen_on,
    labels_by_method,
    selecting_metric,
    selection_sentence,
    test_metric,
)
from ht_ray.report.data.statistics import drop_and_recovery, estimate, mean_interval, paired_difference
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, seed_values
from ht_ray.report.style.formats import (
    NOTHING,
    best_as_shown,
    describe,
    display_unit,
    format_interval,
    format_mean_sd,
    format_value,
    humanize,
    metric_title,
)
from ht_ray.report.style.tables import (
    INTERVAL_NOTE,
    TRAIN_NOTE,
    Cell,
    Column,
    Table,
    format_n,
    label_columns,
    study_table,
)

__all__ = ["choice_table", "drops_table", "marked_labels", "summary_table", "usual_metrics"]


def summary_table(
    study: StudyData,
    metrics: Sequence[str] | None = None,
    baseline: str | None = "plain",
) -> Table:
    """Compare the study's labels by numbers of their trials' summaries.

    One row per label: how many seeds finished, and per metric the mean and standard deviation (divisor n - 1) over
    them, the 95% interval of the mean (see `mean_interval`; the column is left out where no label has two seeds), and
    the mean difference to the baseline, paired by seed, with the 95% t interval. Where a label was trained by the
    paper's protocol and the paper has its number, that stands next to it; a smaller budget is noted. Only finished
    trials count; the notes name the others. The best is marked among the labels that finished on all seeds of the
    study, and every label that shows the same digits as the best is marked with it; where the study has validation
    data, it is the best on those, in the columns of test data, too.

    Parameters
    ----------
    metrics : sequence of str, optional
        The names of summary numbers; by default average and final accuracy, or what the study is measured by.
    baseline : str, optional
        The label, or the method, to which the others are compared; None for no comparison.
    """
    metrics = usual_metrics(study) if metrics is None else metrics
    for metric in metrics:
        study.check_metric("summary_table: metrics", metric)
    base = None if baseline is None else _baseline_label(study, baseline)
    groups = study.by_label
    finished = {label: sum(trial.finished for trial in trials) for label, trials in groups.items()}
    columns, cells = label_columns(study)
    comparisons: list[PaperComparison] = []
    intervals = False
    for metric in metrics:
        columns.append(Column(metric_title(metric), tuple(f"{metric}_{part}" for part in ("n", "mean", "sd"))))
        values = {label: seed_values(trials, metric) for label, trials in groups.items()}
        means = {label: estimate(own.values()) for label, own in values.items()}
        best = marked_labels(study, metric)
        for label, own in means.items():
            text = format_mean_sd(metric, own.mean, own.sd) + format_n(own.n, finished[label])
            cells[label].append(Cell(text, (own.n, own.mean, own.sd), label in best))
        if any(own.n > 1 for own in means.values()):
            intervals = True
            columns.append(Column("95% interval", (f"{metric}_low", f"{metric}_high")))
            for label, own_values in values.items():
                ends = mean_interval(own_values.values())
                cells[label].append(Cell(format_interval(metric, *ends), ends))
        published = {label: compare_with_paper(study, trials[0], metric) for label, trials in groups.items()}
        comparisons += published.values()
        if any(own.value is not None for own in published.values()):
            columns.append(Column(f"paper{display_unit(metric)[1]}", (f"{metric}_paper",)))
            columns.append(Column("minus paper", (f"{metric}_minus_paper",)))
            for label, own in means.items():
                paper = published[label].mean
                gap = own.mean - paper
                cells[label].append(Cell(format_value(metric, paper), (paper,)))
                cells[label].append(Cell(format_value(metric, gap, sign=True), (gap,)))
        if base is None:
            continue
        fields = tuple(f"{metric}_minus_baseline_{part}" for part in ("n", "mean", "low", "high"))
        columns.append(Column(f"minus {base} (95% interval)", fields))
        for label, own_values in values.items():
            if label == base:
                cells[label].append(Cell("", (math.nan,) * 4))
                continue
            gain = paired_difference(own_values, values[base])
            text = format_mean_sd(metric, gain.mean, gain.half_width, sign=True)
            text += format_n(gain.n, min(finished[label], finished[base]))
            cells[label].append(Cell(text, (gain.n, gain.mean, gain.low, gain.high)))
    notes = [
        "Mean ± standard deviation (n − 1) over seeds. Of the methods finished on every seed, the best is "
        "marked, with every one that shows the same digits.",
        selection_sentence(study),
    ]
    notes += [INTERVAL_NOTE.replace("In brackets: ", "Interval: ")] * intervals
    train_note = TRAIN_NOTE.format(measure=humanize(study.measure))
    notes += [train_note] * (f"final_train_{study.measure}" in metrics)
    notes += paper_notes(comparisons)
    if base is not None:
        notes.append(
            f"Differences to {base} are paired by seed: mean ± half the 95% t interval of one comparison "
            "(not corrected for their number), over the seeds that both finished."
        )
    return study_table(study, f"Summary of {describe(study)}", columns, cells.values(), notes)


def usual_metrics(study: StudyData) -> tuple[str, str]:
    """Return average and final accuracy, or what the study is measured by."""
    return f"average_{study.measure}", f"final_{study.measure}"


def marked_labels(study: StudyData, metric: str) -> list[str]:
    """Return the labels that are marked in a column: finished on every seed, and best on the data that choices take."""
    by = selecting_metric(study, metric)
    means = {label: estimate(seed_values(trials, by).values()) for label, trials in study.by_label.items()}
    complete = {label: own.mean for label, own in means.items() if own.n == len(study.seeds)}
    return best_as_shown(complete, study.better(by), partial(format_value, by))


def choice_table(study: StudyData, metrics: Sequence[str] | None = None) -> Table:
    """Tabulate the best setting of each method that has several: chosen on validation data, reported on test data.

    Where the study held no validation data out, the choice is made on test data, and title and notes say so. With
    validation data, the last column has what test data would have chosen, which is not what the study claims.

    Parameters
    ----------
    metrics : sequence of str, optional
        The test metrics to report; by default as in `summary_table`.

    Raises
    ------
    MissingDataError
        If no method has several settings.
    """
    groups = study.by_label
    metric = test_metric(study.metric)
    by, data = selecting_metric(study, metric), chosen_on(study)
    usual = usual_metrics(study) if metrics is None else metrics
    shown = list(dict.fromkeys([by, metric, *(name for name in usual if name in study.summary_names)]))
    rows = []
    for method, labels in labels_by_method(study).items():
        best = best_label(study, labels, metric) if len(labels) > 1 else None
        if best is None:
            continue
        row = [Cell(method, (method,)), Cell(str(len(labels)), (len(labels),)), Cell(best, (best,))]
        for name in shown:
            own = estimate(seed_values(groups[best], name).values())
            row.append(Cell(format_mean_sd(name, own.mean, own.sd), (own.n, own.mean, own.sd)))
        if data == "validation":
            other = best_label(study, labels, metric, by=metric) or best
            value = estimate(seed_values(groups[other], metric).values()).mean
            text = "the same" if other == best else f"{other} ({format_value(metric, value)})"
            row.append(Cell(text, (other, value)))
        rows.append(row)
    if not rows:
        raise MissingDataError("choice_table: no method has several settings to choose from.")
    columns = [Column("method", ("method",)), Column("settings", ("settings",)), Column("chosen", ("label",))]
    columns += [Column(metric_title(name), tuple(f"{name}_{part}" for part in ("n", "mean", "sd"))) for name in shown]
    if data == "validation":
        columns.append(Column("test data would choose", ("label_by_test", f"{metric}_by_test")))
    notes = [selection_sentence(study), "Mean ± standard deviation (n − 1) over the seeds that finished."]
    title = f"Best setting of each method by {metric_title(by)}, {describe(study)}"
    return study_table(study, title, columns, rows, notes, problems=False)


def drops_table(study: StudyData) -> Table:
    """Tabulate what the phase changes did to the test accuracy per epoch, by label; see `drop_and_recovery`.

    Per label, over its finished trials and their phase changes: the mean drop (mean and standard deviation over seeds
    of each seed's mean), the worst drop, the median number of epochs to recover, and how many changes were not
    recovered from before the next one. A change that was not recovered from ranks last in the median.
    """
    measure = humanize(study.measure)
    points = " (points)" if display_unit(study.measure)[1] else ""
    columns, cells = label_columns(study)
    means: dict[str, float] = {}
    for label, trials in study.by_label.items():
        drops = [drop for trial in trials if (drop := _drops_of(trial, f"test_{study.measure}")) is not None]
        per_seed = estimate(float(np.mean(depth)) for depth, _ in drops)
        depths = np.concatenate([depth for depth, _ in drops]) if drops else np.empty(0)
        epochs = np.concatenate([epochs for _, epochs in drops]) if drops else np.empty(0)
        worst = float(depths.max()) if depths.size else math.nan
        median = float(np.median(epochs)) if epochs.size else math.nan
        lost = int(np.isinf(epochs).sum())
        if per_seed.n == len(study.seeds):
            means[label] = per_seed.mean
        cells[label] += [
            Cell(format_mean_sd(study.measure, per_seed.mean, per_seed.sd), (per_seed.n, per_seed.mean, per_seed.sd)),
            Cell(format_value(study.measure, worst), (worst,)),
            Cell("not in time" if math.isinf(median) else NOTHING if math.isnan(median) else f"{median:g}", (median,)),
            Cell(f"{lost} of {epochs.size}" if epochs.size else NOTHING, (lost, epochs.size)),
        ]
    if all(row[2].values[0] == 0 for row in cells.values()):
        raise MissingDataError(f"drops_table: no finished trial has a test {measure} by epoch over two phases or more.")
    best = best_as_shown(means, "min", partial(format_value, study.measure))
    # Where most have no drop, that is no distinction.
    for label in best if 2 * len(best) <= len(means) else ():
        cells[label][2] = Cell(cells[label][2].text, cells[label][2].values, True)
    columns += [
        Column(f"mean drop after a phase change{points}", ("drop_n", "drop_mean", "drop_sd")),
        Column(f"worst drop{points}", ("drop_worst",)),
        Column("epochs to recover (median)", ("epochs_to_recover_median",)),
        Column("not recovered in the phase", ("changes_not_recovered", "changes")),
    ]
    notes = [
        f"Drop: test {measure} after the last epoch of a phase minus the lowest in the next phase before it is back at "
        f"that level{'; points are percentage points' if points else ''}. Epochs to recover: epochs of the new phase "
        "spent below that level.",
        "Mean ± standard deviation (n − 1) over seeds; worst and median over all seeds and phase changes.",
    ]
    if _sparse(study):
        notes.append(
            "Not every epoch was tested: drops between tests are not seen, and recovery is when a test shows it."
        )
    title = f"Drops at phase changes of {describe(study)}"
    return study_table(study, title, columns, cells.values(), notes, problems=False)


def _drops_of(trial: TrialData, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return depth and epochs of the phase changes that are known; None if there are none."""
    curve = trial.curves.get("epoch", {})
    if not trial.finished or not {"phase", column} <= curve.keys():
        return None
    starts = np.flatnonzero(np.diff(curve["phase"])) + 1
    drops = drop_and_recovery(curve[column], starts.tolist())
    # Not every epoch need have been tested: it is back when a test first shows it; a phase's last epoch is tested.
    below, steps = drops.epochs.copy(), curve["step"]
    for change, start in enumerate(starts):
        if 0 < below[change] < math.inf:
            below[change] = steps[start + int(below[change])] - 1 - steps[start - 1]
    known = ~np.isnan(drops.depth)
    return (drops.depth[known], below[known]) if known.any() else None


def _sparse(study: StudyData) -> bool:
    """Return whether epochs were left untested in a finished trial."""
    curves = [trial.curves.get("epoch", {}) for trial in study.trials if trial.finished]
    return any("step" in curve and curve["step"].size < curve["step"][-1:].sum() for curve in curves)


def _baseline_label(study: StudyData, baseline: str) -> str:
    if baseline in study.labels:
        return baseline
    labels = list(dict.fromkeys(trial.label for trial in study.trials if trial.method == baseline))
    if len(labels) == 1:
        return labels[0]
    if labels:
        raise SettingError(f"summary_table: baseline = {baseline!r} is {', '.join(map(repr, labels))}: name one label.")
    options = dict.fromkeys([*study.labels, *(trial.method for trial in study.trials)])
    return check_choice("summary_table: baseline", baseline, options)
