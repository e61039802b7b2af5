"""Tables of a study: aligned text, Markdown and CSV from the same cells.

A function that makes a table takes a study of one access mode (see `split_by_access`). It raises `MissingDataError`
where the study has nothing to tabulate, and `SettingError` where a name is unknown, or two trials share label and seed.
Accuracies are fractions in the CSV, and shown in per cent.
"""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ht_ray.report.data.study import StudyData, TrialData

__all__ = [
    "INTERVAL_NOTE",
    "TRAIN_NOTE",
    "Cell",
    "Column",
    "Number",
    "Table",
    "format_n",
    "label_columns",
    "seeds_cell",
    "study_table",
]

Number = float | int | str

INTERVAL_NOTE = (
    "In brackets: 95% interval of the mean over seeds: t interval; from 20 seeds on percentile bootstrap (10 000 "
    "resamples)."
)
TRAIN_NOTE = (
    "Training {measure}: over the batches of the last epoch as they were trained on, each before its step, with "
    "augmentation and dropout where there are any."
)


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and the numbers behind it, one per CSV column of the `Column`; NaN is written as nothing."""

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

        Long labels are wrapped; columns that do not fit next to the others follow below, with the labels again.
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
            writer.writerow([name for name, _ in self.context] + [name for own in self.columns for name in own.fields])
        for row in self.rows:
            values = [value for cell in row for value in cell.values]
            writer.writerow([text for _, text in self.context] + [_blank_nan(value) for value in values])
        return stream.getvalue()


def label_columns(study: StudyData) -> tuple[list[Column], dict[str, list[Cell]]]:
    """Return the first two columns of a table by label, and their cells: the label, and how many seeds finished."""
    columns = [Column("method", ("label",)), Column("seeds", ("seeds_finished", "seeds_planned"))]
    return columns, {label: [Cell(label, (label,)), seeds_cell(trials)] for label, trials in study.by_label.items()}


def study_table(
    study: StudyData,
    title: str,
    columns: Iterable[Column],
    rows: Iterable[Iterable[Cell]],
    notes: Iterable[str],
    *,
    problems: bool = True,
) -> Table:
    """Return a table of a study, with its name and access mode in the CSV, and its problems under the notes."""
    if problems and (sentence := _packed(study.trials)):
        notes = [*notes, sentence]
    if problems and study.problems:
        notes = [*notes, "Left out, or wanting:", *(f"- {problem}" for problem in study.problems)]
    access = {trial.settings.get("access") for trial in study.trials} - {None}
    context = (("study", study.name), ("access", ", ".join(sorted(map(str, access)))))
    return Table(title, tuple(columns), tuple(map(tuple, rows)), tuple(notes), context)


def _packed(trials: Sequence[TrialData]) -> str:
    """Return which of the trials were trained in packs; nothing if none was."""
    labels = {trial.label: trial.packed for trial in trials}
    packed = [label for label, in_pack in labels.items() if in_pack]
    if not packed:
        return ""
    which = "" if len(packed) == len(labels) else f" ({', '.join(packed)})"
    return f"Trained in packs{which}: equal to trials alone up to rounding (docs/packs.md)."


def format_n(n: int, expected: int) -> str:
    """Return the number of seeds behind a mean, ``" (n=2)"``, where it is not the number that finished."""
    return f" (n={n})" if 0 < n != expected else ""


def seeds_cell(trials: Sequence[TrialData]) -> Cell:
    """Return how many of a label's trials finished, and of how many where that is not all."""
    finished = sum(trial.finished for trial in trials)
    text = str(finished) if finished == len(trials) else f"{finished} of {len(trials)}"
    return Cell(text, (finished, len(trials)))


def _aligned(texts: Sequence[str], widths: Sequence[int], gap: str) -> str:
    first, *others = texts
    parts = [first.ljust(widths[0]), *(text.rjust(size) for text, size in zip(others, widths[1:], strict=True))]
    return gap.join(parts).rstrip()


def _blank_nan(value: Number) -> Number:
    return "" if isinstance(value, float) and math.isnan(value) else value
