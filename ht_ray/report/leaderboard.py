"""Leaderboard of methods over streams: its records, one JSON file for each method and stream, and the page of all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ht_ray.errors import SettingError
from ht_ray.records.checked_json import Damaged, check_form
from ht_ray.report.data.files import write_text
from ht_ray.report.data.statistics import Difference, estimate, mean_interval, paired_difference
from ht_ray.report.page import page_of_tables
from ht_ray.report.style.figures import ColourScale, Figure, add_colour_bar, fill_cell, label_cells, write_figure
from ht_ray.report.style.tables import Cell, Column, Table

__all__ = ["Record", "read_records", "write_page", "write_record"]

Record = dict[str, Any]
"""What a file holds: plain data, see `FORM`."""

_ACCURACIES = [(float, None)]
#: The form of a record (`ht_ray.records.checked_json`).
FORM: Mapping[str, Any] = {
    "format": int,
    "board": str,
    "method": str,
    "settings": str,
    "tried": [{"settings": str, "value": (float, None)}],
    "tuned_by": str,
    "metric": str,
    "values": _ACCURACIES,
    "first": _ACCURACIES,
    "final": _ACCURACIES,
    "packed": bool,
    "cost": (float, None),
    "protocol": dict,
    "made": {str: str},
}
FORMAT = 1
BASELINE = "plain"
#: The files of the page.
PAGE, TEXT, NUMBERS, FIGURE = "leaderboard.html", "README.md", "leaderboard.csv", "leaderboard.png"


def read_records(folder: Path) -> tuple[Record, ...]:
    """Return the records in `folder`, by board and method; none if there is no such folder.

    Raises
    ------
    SettingError
        If a file is no record, with its name and what is wrong with it.
    """
    records = []
    for path in sorted(folder.glob("*/*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            check_form(record, FORM)
            if record["format"] != FORMAT:
                raise Damaged(f"format should be {FORMAT}")
            if path != _path(folder, record):
                raise Damaged(f"it is that of {_path(folder, record)}")
        except (OSError, ValueError) as error:
            raise SettingError(f"{path} is no record of the leaderboard: {error}.") from error
        records.append(record)
    return tuple(records)


def write_record(folder: Path, record: Record) -> Path:
    """Write a record into `folder`, at once, a field a line, and return its path."""
    check_form(record, FORM)
    path = _path(folder, record)
    lines = [f" {json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in record.items()]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return path


def _path(folder: Path, record: Record) -> Path:
    return folder / record["board"] / f"{record['method'].replace('+', '-')}.json"


class _Standing(NamedTuple):
    """A method's place among those that have a record on every board."""

    method: str
    rank: float
    interval: tuple[float, float]


class _Boards:
    """The records by board and method, and what they say together."""

    def __init__(self, records: Sequence[Record], titles: Mapping[str, str]) -> None:
        self.by_board: dict[str, dict[str, Record]] = {
            name: own
            for name in titles
            if (own := {record["method"]: record for record in records if record["board"] == name})
        }
        self.titles = {name: titles[name] for name in self.by_board}
        methods = dict.fromkeys(record["method"] for record in records)
        everywhere = [method for method in methods if all(method in own for own in self.by_board.values())]
        self.standings = sorted(self._standings(everywhere), key=lambda standing: standing.rank)
        self.methods = [standing.method for standing in self.standings]
        self.methods += [method for method in methods if method not in everywhere]

    def _standings(self, methods: Sequence[str]) -> list[_Standing]:
        """Rank the methods on each seed of each board, and average."""
        if not methods:
            return []
        ranks = []
        for own in self.by_board.values():
            values = np.array([_scores(own[method]) for method in methods])  # (methods, seeds)
            ranks.append(stats.rankdata(-values, axis=0))
        fewest = min(own.shape[1] for own in ranks)
        by_seed = np.mean([own[:, :fewest] for own in ranks], axis=0)
        return [
            _Standing(method, float(own.mean()), mean_interval(own))
            for method, own in zip(methods, by_seed, strict=True)
        ]

    def gain(self, board: str, method: str) -> Difference | None:
        """Return the difference to plain training, paired by seed; None where one of them has no record."""
        own = self.by_board[board]
        if method not in own or BASELINE not in own or method == BASELINE:
            return None
        return paired_difference(dict(enumerate(_scores(own[method]))), dict(enumerate(_scores(own[BASELINE]))))


def _scores(record: Record) -> list[float]:
    # A network that diverged predicts nothing.
    return [0.0 if value is None else value for value in record["values"]]


def _by_board(boards: _Boards, *parts: str) -> list[Column]:
    return [Column(title, tuple(f"{name}_{part}" for part in parts)) for name, title in boards.titles.items()]


def _accuracies(boards: _Boards) -> Table:
    columns = [Column("method", ("method",)), Column("mean rank", ("rank", "rank_low", "rank_high"))]
    columns += _by_board(boards, "mean", "low", "high", "diverged")
    columns.append(Column("cost", tuple(f"{name}_cost" for name in boards.titles)))
    standings = {standing.method: standing for standing in boards.standings}
    best = {name: max(np.mean(_scores(record)) for record in own.values()) for name, own in boards.by_board.items()}
    rows = []
    for method in boards.methods:
        standing = standings.get(method)
        row = [Cell(method, (method,))]
        if standing is None:
            row.append(Cell("", (math.nan,) * 3))
        else:
            low, high = standing.interval
            row.append(Cell(f"{standing.rank:.1f} ± {(high - low) / 2:.1f}", (standing.rank, low, high)))
        costs = []
        for name, own in boards.by_board.items():
            if method not in own:
                row.append(Cell("", (math.nan,) * 4))
                costs.append(math.nan)
                continue
            scores = _scores(own[method])
            mean, (low, high) = estimate(scores).mean, mean_interval(scores)
            diverged = own[method]["values"].count(None)
            text = f"{100 * mean:.1f} ± {50 * (high - low):.1f}" + (f" ({diverged} diverged)" if diverged else "")
            row.append(Cell(text, (mean, low, high, diverged), bool(mean == best[name])))
            costs.append(own[method]["cost"] or math.nan)
        known = [cost for cost in costs if math.isfinite(cost)]
        row.append(Cell(f"{np.median(known):.2f}" if known else "", tuple(costs)))
        rows.append(tuple(row))
    seeds = sorted({len(record["values"]) for own in boards.by_board.values() for record in own.values()})
    notes = (
        f"Test accuracy in %, mean over {' or '.join(map(str, seeds))} seeds ± half its 95% interval: at the ends of "
        "the tasks, averaged; of the warm start, at the end. The best of each column is marked. A run that diverged "
        "counts 0.",
        "Mean rank: among the methods that were run on every stream, on each seed of each stream (1 is the best), "
        "averaged; 95% interval over seeds, which says nothing of other streams.",
        "Cost: processor time of the first two tasks, trained alone, over plain training's; the median of the streams.",
    )
    return Table("Accuracy", tuple(columns), tuple(rows), notes)


def _gains(boards: _Boards) -> Table:
    minus_plain = _by_board(boards, "minus_plain_mean", "minus_plain_low", "minus_plain_high")
    columns = [Column("method", ("method",)), *minus_plain]
    rows, compared = [], 0
    for method in boards.methods:
        row = [Cell(method, (method,))]
        for name in boards.titles:
            gain = boards.gain(name, method)
            if gain is None:
                row.append(Cell("", (math.nan,) * 3))
                continue
            compared += 1
            sign = "▲" if gain.low > 0 else "▼" if gain.high < 0 else ""
            text = f"{100 * gain.mean:+.1f} ± {100 * gain.half_width:.1f} {sign}".strip()
            row.append(Cell(text, (gain.mean, gain.low, gain.high)))
        if method != BASELINE:
            rows.append(tuple(row))
    notes = (
        "Points of accuracy, paired by seed, ± half the 95% t interval of one comparison; ▲ and ▼: the interval is "
        f"above or below 0. Of {compared} comparisons, about {compared / 20:.0f} would be marked by chance.",
    )
    return Table("Difference to plain training", tuple(columns), tuple(rows), notes)


def _settings(boards: _Boards) -> Table:
    columns = [Column("method", ("method",)), *_by_board(boards, "settings")]
    rows = []
    for method in boards.methods:
        row = [Cell(method, (method,))]
        for own in boards.by_board.values():
            text = own[method]["settings"].replace(",", ", ") if method in own else ""
            several = method in own and len(own[method]["tried"]) > 1
            row.append(Cell(text if several else text and f"{text} (alone)", (text,)))
        if any(cell.text for cell in row[1:]):
            rows.append(tuple(row))
    tuned = sorted({record["tuned_by"] for own in boards.by_board.values() for record in own.values()})
    notes = (
        f"Chosen from at most four by the mean of: {'; '.join(tuned)}. A method that is not here has nothing that was "
        "tuned. The learning rate is that of the data set for all.",
    )
    return Table("Chosen settings", tuple(columns), tuple(rows), notes)


def write_page(folder: Path, titles: Mapping[str, str]) -> Path:
    """Write the leaderboard of the records in `folder`, and return the path of its page.

    Parameters
    ----------
    folder
        Of the records. Beside them come ``leaderboard.html``, ``README.md``, ``leaderboard.csv``, ``leaderboard.png``.
    titles
        What the boards are called, in the order of the columns.

    Raises
    ------
    SettingError
        If there is no record, or one is damaged.
    """
    boards = _Boards(read_records(folder), titles)
    if not boards.methods:
        raise SettingError(f"{folder}: there are no records of the leaderboard.")
    tables = [_accuracies(boards), _gains(boards), _settings(boards)]
    _draw(boards, folder / FIGURE)
    write_text(folder / NUMBERS, tables[0].to_csv())
    made = {json.dumps(r["made"], sort_keys=True): r["made"] for own in boards.by_board.values() for r in own.values()}
    commands = dict.fromkeys(one["command"] for one in made.values())
    versions = dict.fromkeys(
        f"ht_ray {one['ht_ray']}, torch {one['torch']}, Python {one['python']}, {one['machine']} {one['device']}"
        for one in made.values()
    )
    intro = "Methods against loss of plasticity on several streams, made by `ht-ray leaderboard` from the records here."
    text = [f"# Leaderboard\n\n{intro}\n\n![Difference to plain training on each stream]({FIGURE})\n"]
    text += [table.to_markdown() for table in tables]
    text.append("## How it was made\n\n```bash\n" + "\n".join(commands) + "\n```\n\n" + "; ".join(versions) + ".\n")
    write_text(folder / TEXT, "\n".join(text))
    write_text(folder / PAGE, page_of_tables("Leaderboard", tables, [folder / FIGURE], [*versions], list(commands)))
    return folder / PAGE


def _draw(boards: _Boards, path: Path) -> None:
    gains = {
        (name, method): gain
        for name in boards.titles
        for method in boards.methods
        if (gain := boards.gain(name, method)) is not None
    }
    shown = [method for method in boards.methods if any((name, method) in gains for name in boards.titles)]
    if not shown:
        return
    reach = float(np.quantile([abs(100 * gain.mean) for gain in gains.values()], 0.9)) or 1.0

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        scale = ColourScale(-reach, reach, "RdBu")
        for row, method in enumerate(reversed(shown)):
            for column, name in enumerate(boards.titles):
                gain = gains.get((name, method))
                if gain is None:
                    fill_cell(axis, column, row, "", None)
                    continue
                sure = gain.low > 0 or gain.high < 0
                text = f"{100 * gain.mean:+.1f}" + ("" if sure else " ?")
                fill_cell(axis, column, row, text, scale(max(-reach, min(reach, 100 * gain.mean))))
        names = [title.replace(": ", ":\n").replace(", ", ",\n") for title in boards.titles.values()]
        label_cells(axis, names, list(reversed(shown)))
        axis.xaxis.tick_top()
        add_colour_bar(figure, scale, axis, "points of test accuracy more than plain training", 0.03)
        figure.suptitle("Accuracy minus plain training's, by mean rank (best above)", x=0.01, ha="left", fontsize=10)
        caption = "?: the 95% t interval over seeds, paired, holds 0. Colours end at the bar's ends."
        figure.supxlabel(caption, x=0.01, ha="left", fontsize=7.5, color="0.3")

    write_figure(draw, (3.4 + 1.25 * len(boards.titles), 1.6 + 0.27 * len(shown)), [path])
