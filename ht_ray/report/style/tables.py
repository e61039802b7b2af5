"""The tables of a study: one row per label, as aligned text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ht_ray._checks import did_you_mean
from ht_ray.errors import SettingError
from ht_ray.report.data.paper import Beside, beside_paper, paper_notes
from ht_ray.report.data.statistics import drop_and_recovery, estimate, mean_interval, paired_difference
from ht_ray.report.data.study import MissingDataError, StudyData, TrialData, group, seed_values
from ht_ray.report.style.names import NOTHING, describe, shown_interval, shown_number, shown_pair, shown_unit, worded

__all__ = [
    "INTERVAL_NOTE",
    "TRAIN_NOTE",
    "Cell",
    "Column",
    "Number",
    "Table",
    "context_of",
    "drops_table",
    "own_n",
    "problem_notes",
    "rows_of",
    "seeds_cell",
    "summary_table",
]

Number = float | int | str

INTERVAL_NOTE = (
    "In brackets: 95% interval of the mean over seeds: t interval; from 20 seeds on percentile bootstrap (10 000 "
    "resamples)."
)
TRAIN_NOTE = (
    "Training accuracy: over the batches of the last epoch as they were trained on, each before its step, with "
    "augmentation and dropout where there are any."
)


@dataclass(frozen=True)
class Cell:
    """What a reader sees, and the numbers behind it, one per CSV column of the `Column`; NaN is written as nothing."""

    text: str
    values: tuple[Number, ...]
    best: bool = False


@dataclass(frozen=True)
class Column:
    """A heading, and the names of the CSV columns of the numbers behind it."""

    title: str
    fields: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table whose first column is the label.

    Attributes
    ----------
    context
        Columns that are the same for all rows, put first in the CSV: ``(("study", name), ...)``.
    notes
        Sentences under the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    context: tuple[tuple[str, str], ...] = ()

    def to_text(self, width: int = 100) -> str:
        """Return the table in aligned columns of at most `width` characters, the best marked with ``*``.

        Long labels are wrapped; columns that do not fit beside the others follow below, with the labels again.
        """
        gap = "  "
        shown = [[cell.text + "*" * cell.best for cell in row] for row in self.rows]
        widths = [
            max(len(text) for text in (*column.title.split(), *(row[index] for row in shown)))
            for index, column in enumerate(self.columns)
        ]
        room = width - sum(len(gap) + size for size in widths[1:])
        widths[0] = min(widths[0], room if room >= 24 else 40)
        blocks: list[list[int]] = []
        left = 0
        for index in range(1, len(widths)):
            if left < len(gap) + widths[index]:
                blocks.append([0])
                left = width - widths[0]
            blocks[-1].append(index)
            left -= len(gap) + widths[index]

        lines = textwrap.wrap(self.title, width)
        for block in blocks:
            sizes = [widths[index] for index in block]
            headings = [textwrap.wrap(self.columns[index].title, widths[index]) for index in block]
            height = max(map(len, headings))
            # Headings stand on the rule, as in print.
            padded = [[""] * (height - len(heading)) + heading for heading in headings]
            lines += ["", *(_aligned(level, sizes, gap) for level in zip(*padded, strict=True))]
            lines.append(gap.join("-" * size for size in sizes))
            for row in shown:
                label, *rest = textwrap.wrap(row[0], widths[0], subsequent_indent="  ") or [""]
                lines += [_aligned([label, *(row[index] for index in block[1:])], sizes, gap), *rest]
        lines += [""] * bool(self.notes)
        for note in self.notes:
            lines += textwrap.wrap(note, width, subsequent_indent="  ")
        return "\n".join(lines) + "\n"

    def to_markdown(self) -> str:
        """Return the table as Markdown, the best in bold."""
        rows = [[column.title for column in self.columns]]
        rows += [[f"**{cell.text}**" if cell.best else cell.text for cell in row] for row in self.rows]
        lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
        lines.insert(1, "| --- |" + " ---: |" * (len(self.columns) - 1))
        return "\n".join([f"## {self.title}", "", *lines, *(line for note in self.notes for line in ("", note))]) + "\n"

    def to_csv(self, *, header: bool = True) -> str:
        """Return the numbers behind the table, unrounded, as CSV; nothing for NaN, ``inf`` for what never came."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        if header:
            writer.writerow(
                [name for name, _ in self.context] + [field for column in self.columns for field in column.fields]
            )
        for row in self.rows:
            values = [value for cell in row for value in cell.values]
            writer.writerow([text for _, text in self.context] + [_plain(value) for value in values])
        return stream.getvalue()


def summary_table(
    study: StudyData,
    metrics: Sequence[str] = ("average_accuracy", "final_accuracy"),
    baseline: str | None = "plain",
) -> Table:
    """Compare the study's labels by numbers of their trials' summaries.

    One row per label: how many seeds finished, and per metric the mean and standard deviation (divisor n - 1) over
    them, the 95% interval of the mean (see `mean_interval`; the column is left out where no label has
    two seeds), and the mean difference to the baseline, paired by seed, with the 95% t interval. Where a label was
    trained by the paper's protocol and the paper has its number, that stands beside it; a smaller budget is noted. Only
    finished trials count; the notes name the others. The best is marked among the labels that finished on all seeds of
    the study, and every label that shows the same digits as the best is marked with it.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).
    metrics
        Names of summary numbers. Those that end in ``accuracy`` are fractions and shown in per cent.
    baseline
        The label, or the method, to which the others are compared; ``None`` for no comparison.

    Raises
    ------
    SettingError
        If no trial reported a metric, no label or more than one is the baseline, or two trials share label and seed.
    """
    known = study.summary_names
    for metric in metrics:
        if known and metric not in known:
            raise SettingError(
                f"summary_table: metrics: {metric!r}: the trials reported {', '.join(map(repr, known))}."
                f"{did_you_mean(metric, known)}"
            )
    base = None if baseline is None else _baseline_label(study, baseline)
    groups = {str(key[0]): trials for key, trials in group(study).items()}
    finished = {label: sum(trial.finished for trial in trials) for label, trials in groups.items()}
    columns = [Column("method", ("label",)), Column("seeds", ("seeds_finished", "seeds_planned"))]
    cells = {label: [Cell(label, (label,)), seeds_cell(trials)] for label, trials in groups.items()}
    beside: list[Beside] = []
    intervals = False
    for metric in metrics:
        _, unit = shown_unit(metric)
        columns.append(Column(f"{worded(metric)}{unit}", tuple(f"{metric}_{part}" for part in ("n", "mean", "sd"))))
        values = {label: seed_values(trials, metric) for label, trials in groups.items()}
        means = {label: estimate(own.values()) for label, own in values.items()}
        complete = {label: own.mean for label, own in means.items() if own.n == len(study.seeds)}
        best = _best(complete, study.better(metric), partial(shown_number, metric))
        for label, own in means.items():
            text = shown_pair(metric, own.mean, own.sd) + own_n(own.n, finished[label])
            cells[label].append(Cell(text, (own.n, own.mean, own.sd), label in best))
        if any(own.n > 1 for own in means.values()):
            intervals = True
            columns.append(Column("95% interval", (f"{metric}_low", f"{metric}_high")))
            for label, own_values in values.items():
                ends = mean_interval(own_values.values())
                cells[label].append(Cell(shown_interval(metric, *ends), ends))
        published = {label: beside_paper(study, trials[0], metric) for label, trials in groups.items()}
        beside += published.values()
        if any(own.value is not None for own in published.values()):
            columns.append(Column(f"paper{unit}", (f"{metric}_paper",)))
            columns.append(Column("minus paper", (f"{metric}_minus_paper",)))
            for label, own in means.items():
                paper = math.nan if (value := published[label].value) is None else value.mean
                gap = own.mean - paper
                cells[label].append(Cell(shown_number(metric, paper), (paper,)))
                cells[label].append(Cell(shown_number(metric, gap, sign=True), (gap,)))
        if base is None:
            continue
        fields = tuple(f"{metric}_minus_baseline_{part}" for part in ("n", "mean", "low", "high"))
        columns.append(Column(f"minus {base} (95% interval)", fields))
        for label, own_values in values.items():
            if label == base:
                cells[label].append(Cell("", (math.nan,) * 4))
                continue
            gain = paired_difference(own_values, values[base])
            text = shown_pair(metric, gain.mean, gain.half_width, sign=True) + own_n(
                gain.n, min(finished[label], finished[base])
            )
            cells[label].append(Cell(text, (gain.n, gain.mean, gain.low, gain.high)))
    notes = [
        "Mean ± standard deviation (n − 1) over seeds. Of the methods finished on every seed, the best is "
        "marked, with every one that shows the same digits."
    ]
    notes += [INTERVAL_NOTE.replace("In brackets: ", "Interval: ")] * intervals
    notes += [TRAIN_NOTE] * ("final_train_accuracy" in metrics)
    notes += paper_notes(beside)
    if base is not None:
        notes.append(
            f"Differences to {base} are paired by seed: mean ± half the 95% t interval of one comparison "
            "(not corrected for their number), over the seeds that both finished."
        )
    return Table(
        f"Summary of {describe(study)}",
        tuple(columns),
        rows_of(cells),
        (*notes, *problem_notes(study)),
        context_of(study),
    )


def drops_table(study: StudyData) -> Table:
    """Tabulate what the phase changes did to the test accuracy per epoch, by label; see `drop_and_recovery`.

    Per label, over its finished trials and their phase changes: the mean drop (mean and standard deviation over seeds
    of each seed's mean), the worst drop, the median number of epochs to recover, and how many changes were not
    recovered from before the next one. A change that was not recovered from ranks last in the median.

    Parameters
    ----------
    study
        A study of one access mode (see `split_by_access`).

    Raises
    ------
    MissingDataError
        If no finished trial has a curve by epoch with at least two phases.
    """
    groups = {str(key[0]): trials for key, trials in group(study).items()}
    cells = {label: [Cell(label, (label,)), seeds_cell(trials)] for label, trials in groups.items()}
    means: dict[str, float] = {}
    for label, trials in groups.items():
        drops = [drop for drop in map(_drops_of, trials) if drop is not None]
        per_seed = estimate(float(np.mean(depth)) for depth, _ in drops)
        depths = np.concatenate([depth for depth, _ in drops]) if drops else np.empty(0)
        epochs = np.concatenate([epochs for _, epochs in drops]) if drops else np.empty(0)
        worst = float(depths.max()) if depths.size else math.nan
        median = float(np.median(epochs)) if epochs.size else math.nan
        lost = int(np.isinf(epochs).sum())
        if per_seed.n == len(study.seeds):
            means[label] = per_seed.mean
        cells[label] += [
            Cell(shown_pair("accuracy", per_seed.mean, per_seed.sd), (per_seed.n, per_seed.mean, per_seed.sd)),
            Cell(shown_number("accuracy", worst), (worst,)),
            Cell("not in time" if math.isinf(median) else NOTHING if math.isnan(median) else f"{median:g}", (median,)),
            Cell(f"{lost} of {epochs.size}" if epochs.size else NOTHING, (lost, epochs.size)),
        ]
    if all(row[2].values[0] == 0 for row in cells.values()):
        raise MissingDataError("drops_table: no finished trial has a test accuracy by epoch over two phases or more.")
    best = _best(means, "min", partial(shown_number, "accuracy"))
    # Where most have no drop, that is no distinction.
    for label in best if 2 * len(best) <= len(means) else ():
        cells[label][2] = Cell(cells[label][2].text, cells[label][2].values, True)
    columns = (
        Column("method", ("label",)),
        Column("seeds", ("seeds_finished", "seeds_planned")),
        Column("mean drop after a phase change (points)", ("drop_n", "drop_mean", "drop_sd")),
        Column("worst drop (points)", ("drop_worst",)),
        Column("epochs to recover (median)", ("epochs_to_recover_median",)),
        Column("not recovered in the phase", ("changes_not_recovered", "changes")),
    )
    notes = [
        "Drop: test accuracy after the last epoch of a phase minus the lowest in the next phase before it is back at "
        "that level; points are percentage points. Epochs to recover: epochs of the new phase spent below that level.",
        "Mean ± standard deviation (n − 1) over seeds; worst and median over all seeds and phase changes.",
    ]
    if _sparse(study):
        notes.append(
            "Not every epoch was tested: drops between tests are not seen, and recovery is when a test shows it."
        )
    return Table(
        f"Drops at phase changes of {describe(study)}", columns, rows_of(cells), tuple(notes), context_of(study)
    )


def _drops_of(trial: TrialData) -> tuple[np.ndarray, np.ndarray] | None:
    """Return depth and epochs of the phase changes that are known; None if there are none."""
    curve = trial.curves.get("epoch", {})
    if not trial.finished or not {"phase", "test_accuracy"} <= curve.keys():
        return None
    starts = np.flatnonzero(np.diff(curve["phase"])) + 1
    drops = drop_and_recovery(curve["test_accuracy"], starts.tolist())
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
    raise SettingError(
        f"summary_table: baseline = {baseline!r}: the study has {', '.join(map(repr, options))}."
        f"{did_you_mean(baseline, options)}"
    )


def _best(means: dict[str, float], better: str | None, shown: Callable[[float], str]) -> set[str]:
    """Return the labels whose mean shows the same digits as the best one's."""
    if not means or better is None:
        return set()
    top = shown((max if better == "max" else min)(means.values()))
    return {label for label, mean in means.items() if shown(mean) == top}


def seeds_cell(trials: Sequence[TrialData]) -> Cell:
    finished = sum(trial.finished for trial in trials)
    text = str(finished) if finished == len(trials) else f"{finished} of {len(trials)}"
    return Cell(text, (finished, len(trials)))


def own_n(n: int, expected: int) -> str:
    """Say how many seeds a number stands on where the numbers finished do not tell."""
    return f" (n={n})" if 0 < n != expected else ""


def rows_of(cells: dict[str, list[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(row) for row in cells.values())


def problem_notes(study: StudyData) -> tuple[str, ...]:
    return ("Left out, or wanting:", *(f"- {problem}" for problem in study.problems)) if study.problems else ()


def context_of(study: StudyData) -> tuple[tuple[str, str], ...]:
    access = {trial.settings.get("access") for trial in study.trials} - {None}
    return (("study", study.name), ("access", ", ".join(sorted(map(str, access)))))


def _aligned(texts: Sequence[str], widths: Sequence[int], gap: str) -> str:
    first, *others = texts
    parts = [first.ljust(widths[0]), *(text.rjust(size) for text, size in zip(others, widths[1:], strict=True))]
    return gap.join(parts).rstrip()


def _plain(value: Number) -> Number:
    return "" if isinstance(value, float) and math.isnan(value) else value
