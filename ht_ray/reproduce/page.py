"""The ledger as a page: what has been run next to the paper's numbers, and what has not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ht_ray.report import estimate, grid_value, method_value, paper_scores
from ht_ray.report.atari.reference import AGENT_STEPS, EVALUATION_EPISODES, atari_games, reference_scores
from ht_ray.report.atari.scores import METRICS as ATARI_METRICS
from ht_ray.report.atari.scores import aggregate_scores
from ht_ray.report.data.files import write_text
from ht_ray.report.data.paper import PAPER, PaperValue
from ht_ray.report.style.formats import PUBLISHED_NAMES, format_mean_sd, format_value
from ht_ray.reproduce.cells import (
    ACCESS,
    COMPARED,
    CONTINUAL,
    NETWORKS,
    NOISES,
    RATIOS,
    TABLE_1,
    AtariCell,
    Cell,
    all_cells,
)
from ht_ray.reproduce.records import Record, file_name, is_atari, read_records
from ht_ray.vision import METHODS

__all__ = ["ledger_page", "write_page"]

TO_DO = "to do"
TEST, TRAIN = "final_accuracy", "final_train_accuracy"
#: Data sets whose published images are no JPEG files.
LOSSLESS = ("mnist", "cifar10", "cifar100")
_SPLIT = {TEST: "test", TRAIN: "train"}

INTRODUCTION = f"""\
# The paper's tables, as far as they have been run

Made by `ht-ray reproduce` from the JSON files of this folder: one for each finished run, with what it was made with and
its curve. Do not edit; [how to add to it](../warm_start.md#the-ledger).

The paper is {PAPER}. Accuracies are in %, ours as mean ± standard deviation over seeds, of which there are `n`;
differences are ours minus the paper's, which has five seeds (Tiny ImageNet three) and rounds. Runs have the paper's
protocol and its number of epochs, and [this package's settings](../methods.md) where the paper took the best of a grid.
"""


def ledger_page(records: Sequence[Record]) -> str:
    """Return the page, in Markdown, of these records and of the cells that have none.

    Parameters
    ----------
    records
        As `read_records` returns them. The page depends on nothing else.
    """
    ledger = _Ledger(records)
    sections = [
        INTRODUCTION + "\n" + ledger.summary(),
        *(_grid(ledger, metric) for metric in (TEST, TRAIN)),
        _methods(ledger),
        _continual(ledger),
        _atari(ledger),
        _runs(records),
    ]
    return "\n".join(sections)


def write_page(folder: Path) -> Path:
    """Write the page of the records in `folder` again, and return its path."""
    path = folder / "README.md"
    write_text(path, ledger_page(read_records(folder)))
    return path


class _Ledger:
    """Records by cell, and what a table shows of a cell."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.cells: dict[str, Cell | AtariCell] = {cell.id: cell for cell in all_cells()}
        self.records: dict[str, list[Record]] = {}
        for record in records:
            self.records.setdefault(record["cell"], []).append(record)

    def summary(self) -> str:
        runs = [record for found in self.records.values() for record in found]
        images = [record for record in runs if not is_atari(record)]
        lossy = sorted({_encoding(record) for record in images} - {""})
        parts = [f"{len(self.records)} of {len(self.cells)} cells have a run, {len(runs)} runs in all."]
        for encoding in lossy:
            names = sorted({_name(record["data"]["name"]) for record in images if _encoding(record) == encoding})
            parts.append(
                f"{' and '.join(names)} was at hand as {encoding} only, which costs some accuracy: such values are "
                "marked †."
            )
        return "\n".join(parts) + "\n"

    def cell(self, data: str, method: str, *, ratio: float = 0.1, noise: float = 0.5) -> Cell | AtariCell:
        name = method.replace("+", "-")
        return self.cells[f"{data}-{name}" if "fresh" in method else f"{data}-r{ratio:g}-n{noise:g}-{name}"]

    def ours(self, cell: Cell | AtariCell, metric: str) -> str:
        """Return ``"97.67 ± 0.16, n=5"``; "to do" without a run."""
        found = self.records.get(cell.id, [])
        if not found:
            return TO_DO
        own = estimate(record["results"][metric] for record in found)
        mark = "†" if any(_encoding(record) for record in found) else ""
        return f"{format_mean_sd(metric, own.mean, own.sd)}{mark}, n={own.n}"

    def difference(self, cell: Cell | AtariCell, metric: str, paper: PaperValue | None) -> str:
        found = self.records.get(cell.id, [])
        if not found or paper is None:
            return ""
        own = estimate(record["results"][metric] for record in found)
        return format_value(metric, own.mean - paper.mean, sign=True)


def _grid(ledger: _Ledger, metric: str) -> str:
    table, measure = ("5", "test accuracy") if metric == TEST else ("4", "training accuracy")
    parts = [
        f"## Table {table}: {measure} after warm-starting\n",
        "By share of the data in the first phase and its label noise: ours (the paper's, the difference).\n",
    ]
    for data, model in NETWORKS.items():
        rows = []
        for ratio in RATIOS:
            shown = [f"{ratio:g}"]
            for noise in NOISES:
                cell = ledger.cell(data, "plain", ratio=ratio, noise=noise)
                paper = grid_value(data, model, subset_ratio=ratio, label_noise=noise, split=_SPLIT[metric])
                compared = [_whole(paper), ledger.difference(cell, metric, paper)]
                shown.append(f"{ledger.ours(cell, metric)} ({', '.join(filter(None, compared))})")
            rows.append(shown)
        parts += [
            f"### {_name(data)}, {_name(model)}, {measure}\n",
            _table(["ratio", *(f"noise {noise:g}" for noise in NOISES)], rows),
        ]
    return "\n".join(parts)


def _methods(ledger: _Ledger) -> str:
    parts = [
        "## Appendix B.3: methods at ratio 0.1 and noise 0.5\n",
        "Fresh is the second phase alone. Of methods without a number the paper has figures.\n",
    ]
    for data, model in NETWORKS.items():
        if data == "mnist":
            continue
        rows = []
        for method in COMPARED:
            cell = ledger.cell(data, method)
            shown = [_method_name(method)]
            for metric in (TEST, TRAIN):
                paper = method_value(data, model, method=method, split=_SPLIT[metric])
                shown += [ledger.ours(cell, metric), _tenth(paper), ledger.difference(cell, metric, paper)]
            rows.append(shown)
        heads = ["method", "test", "paper", "difference", "training", "paper", "difference"]
        parts += [f"### {_name(data)}, {_name(model)}, methods\n", _table(heads, rows)]
    return "\n".join(parts)


def _continual(ledger: _Ledger) -> str:
    rows = [
        [_name(data), access, _method_name(method)]
        + [ledger.ours(ledger.cells[f"{data}-{access}-{method}"], m) for m in ("online_accuracy", TEST)]
        for data in NETWORKS
        if data != "mnist"
        for access in ACCESS
        for method in CONTINUAL
    ]
    return "\n".join(
        [
            "## Figure 6: ten phases with falling label noise\n",
            "Test accuracy over all epochs (their mean) and at the end, with access to all older data or to 5000 "
            "samples; the paper\nshows curves, without numbers. Ours are in the files.\n",
            _table(["data", "access", "method", "mean over epochs", "final"], rows),
        ]
    )


def _atari(ledger: _Ledger) -> str:
    cells = [cell for cell in ledger.cells.values() if isinstance(cell, AtariCell)]
    by_variant: dict[str, dict[str, list[Record]]] = {variant: {} for variant in TABLE_1}
    for cell in cells:
        if found := ledger.records.get(cell.id):
            by_variant[cell.variant][cell.game] = found
    heads = ["agent", "IQM", "paper", "median", "paper", "mean", "paper", "optimality gap", "paper", "games"]
    rows = []
    for variant, name in TABLE_1.items():
        played, paper = by_variant[variant], paper_scores()[name]
        shown = [name]
        whole = len(played) == len(atari_games())
        own = aggregate_scores(_scores(played)) if whole else None
        for metric in ATARI_METRICS:
            shown += [TO_DO if own is None else f"{getattr(own, metric).value:.3f}", f"{getattr(paper, metric)}"]
        rows.append([*shown, f"{len(played)} of {len(atari_games())}"])
    parts = [
        "## Table 1: Atari-100k\n",
        f"Human-normalised scores over {len(atari_games())} games; the aggregates of an agent need all of them.\n",
        _table(heads, rows),
        "### Scores by game\n",
        f"Mean score of {EVALUATION_EPISODES} games after {AGENT_STEPS:,} steps of the agent (human-normalised), of "
        "the agents that have a run.\nThe paper has the aggregates alone.\n",
    ]
    agents = [variant for variant, played in by_variant.items() if played]
    lines = [
        [game, f"{random:g}", f"{human:g}", *(_game(by_variant[agent].get(game)) for agent in agents)]
        for game, (random, human) in reference_scores().items()
    ]
    return "\n".join([*parts, _table(["game", "random", "human", *(TABLE_1[agent] for agent in agents)], lines)])


def _scores(played: Mapping[str, Sequence[Record]]) -> dict[str, list[float]]:
    return {game: [record["results"]["human_normalised"] for record in found] for game, found in played.items()}


def _game(records: Sequence[Record] | None) -> str:
    if records is None:
        return TO_DO
    own = estimate(record["results"]["score"] for record in records)
    spread = "" if own.n == 1 else f" ± {own.sd:.1f}"
    normalized = estimate(record["results"]["human_normalised"] for record in records)
    return f"{own.mean:.1f}{spread} ({normalized.mean:.3f}), n={own.n}"


def _runs(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        calls, training = record["calls"], record["settings"]["training"]
        seconds = [call["seconds"] for call in calls]
        atari = is_atari(record)
        own = (
            f"{record['results']['score']:.1f} ({record['results']['human_normalised']:.3f})"
            if atari
            else format_value(TEST, record["results"][TEST]) + ("†" if _encoding(record) else "")
        )
        steps = record["protocol"]["steps"] if atari else sum(phase["steps"] for phase in record["protocol"]["phases"])
        rows.append(
            [
                f"[{record['cell']}]({file_name(record)})",
                str(record["seed"]),
                own,
                _joined(call["device"] for call in calls),
                _joined(call["torch"] for call in calls),
                training["precision"],
                str(steps),
                "–" if None in seconds else f"{sum(seconds):.0f}",
            ]
        )
    heads = ["cell", "seed", "test or score", "device", "torch", "precision", "steps", "seconds"]
    note = "Seconds are of the clock, whatever else the machine did.\n"
    return "\n".join(["## Runs\n", note, _table(heads, rows)] if rows else ["## Runs\n", "None yet.\n"])


def _encoding(record: Record) -> str:
    """Return how a data set's images are stored where they lost detail by that; else ``""``."""
    data = record["data"]
    return data["encoding"] if data["name"] in LOSSLESS and data["encoding"].startswith("JPEG") else ""


def _name(name: str) -> str:
    return PUBLISHED_NAMES[name]


def _method_name(method: str) -> str:
    return " + ".join("Fresh" if part == "fresh" else METHODS[part].title for part in method.split("+"))


def _whole(value: PaperValue | None) -> str:
    return "" if value is None else f"{100 * value.mean:.0f}"


def _tenth(value: PaperValue | None) -> str:
    return "–" if value is None else f"{100 * value.mean:.1f}"


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
