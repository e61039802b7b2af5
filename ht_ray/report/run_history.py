"""Run history of a study, from its journal: runs, faults, nodes that came and went, damage."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from ht_ray.report.data.journal import JOURNAL, Event, Journal, Run, summarize_error
from ht_ray.report.data.study import StudyData, TrialData
from ht_ray.report.style.formats import NOTHING
from ht_ray.report.style.tables import Cell, Column, Table

__all__ = ["RunHistory", "summarize_history"]

#: Rows of a table; a study may have thousands of faults.
MOST = 50
#: Rows of it in a terminal.
FEW = 10
#: Letters of an event; it may name a file of a checkpoint.
WIDTH = 300
#: The events that the tables of runs and faults are made from, or that are only counted.
TABULATED = ("run started", "run ended", "fault", "resumed", "copied")


@dataclass(frozen=True)
class RunHistory:
    """The history of a study, for a reader.

    Attributes
    ----------
    sentence
        A summary; there is nothing else of a study that ran once and met no fault.
    notes
        Further sentences.
    tables
        The runs if there was more than one that ended well, the faults, and everything else; without empty ones.
    """

    sentence: str
    notes: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()

    def to_text(self) -> str:
        """Return the history for a terminal: of each table the first rows, without the errors' texts."""
        lines = [f"What happened: {self.sentence}", *self.notes]
        text = "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)
        return "\n\n".join([text, *(_shortened(table).to_text() for table in self.tables)])

    def to_markdown(self) -> str:
        """Return the history as a section of Markdown."""
        tables = [table.to_markdown().rstrip().replace("## ", "### ", 1) for table in self.tables]
        return "\n\n".join(["## What happened", self.sentence, *self.notes, *tables])


def summarize_history(study: StudyData) -> RunHistory | None:
    """Return the history in a study's journal; ``None`` for a study that has none."""
    journal = study.journal
    if journal is None:
        return None
    runs, faults = journal.runs, journal.named("fault")
    rest = tuple(event for event in journal.events if event.name not in TABULATED)
    restarts = sum(trial.restarts for trial in study.trials)
    parts = [
        _count(len(study.trials), "trial"),
        _runs_in_words(runs),
        f"{_count(len(faults), 'fault')} ({_kinds(faults)})" if faults else "no faults",
        *([_count(restarts, "restart")] if restarts else []),
    ]
    zone = journal.zone
    tables = [_runs_table(runs, zone)] if len(runs) != 1 or runs[0].how != "finished" else []
    tables += [_faults_table(faults, study.trials, zone), _events_table(rest, zone)]
    return RunHistory(
        f"{', '.join(parts)}.",
        tuple(_notes(study, journal, faults)),
        tuple(table for table in tables if table.rows),
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _kinds(faults: Iterable[Event]) -> str:
    counts = Counter(fault.text("kind") or "of no kind" for fault in faults)
    return ", ".join(f"{number} {kind}" for kind, number in counts.most_common())


def _runs_in_words(runs: Sequence[Run]) -> str:
    if not runs:
        return "no run noted"
    words = {"cut off": "cut off, as the driver died", "open": "without an end: it goes on, or its driver died"}
    counts = Counter(run.how for run in runs if run.how != "finished")
    ends = "; ".join(f"{number} {words.get(how, how)}" for how, number in counts.items())
    if len(runs) == 1:
        return "one run" + (f" ({ends.removeprefix('1 ')})" if ends else "")
    return f"{len(runs)} runs" + (f" ({ends})" if ends else "")


def _notes(study: StudyData, journal: Journal, faults: Sequence[Event]) -> Iterable[str]:
    met = {fault.text("trial") for fault in faults}
    ends = Counter(trial.status for trial in study.trials if trial.id in met)
    if ends:
        listed = ", ".join(f"{number} {status}" for status, number in ends.most_common())
        yield f"Of the {_count(ends.total(), 'trial')} with faults: {listed}."
    counts = Counter(event.name for event in journal.events)
    changes = [f"{counts[f'node {how}']} {how}" for how in ("lost", "joined") if counts[f"node {how}"]]
    if changes:
        yield f"Nodes: {', '.join(changes)}."
    if number := counts["checkpoint damaged"]:
        yield f"{_count(number, 'checkpoint')} found damaged, and not used."
    if number := counts["storage"]:
        yield f"{_count(number, 'outage')} of the storage."
    resumed = journal.named("resumed")
    if resumed:
        repeated = [(event.number("known") or 0) - (event.number("reports") or 0) for event in resumed]
        behind = [number for number in repeated if number > 0]
        note = f"Trials went on from a checkpoint: {_count(len(resumed), 'time')}"
        if behind:
            note += f", {len(behind)} of them behind what was known ({_count(sum(behind), 'report')} made again)"
        yield f"{note}."
    if copied := journal.named("copied"):
        yield f"Members of a population took over another's state: {_count(len(copied), 'time')}."
    if journal.damaged:
        yield f"{_count(journal.damaged, 'line')} of {JOURNAL} could not be read, in whole or in part."


def _runs_table(runs: Sequence[Run], zone: tzinfo | None) -> Table:
    def ended(run: Run) -> str:
        if run.ended is not None:
            return f"{run.ended.when(zone)} ({run.how})"
        return f"{'driver died after' if run.followed else 'open; last event'} {run.last.when(zone)}"

    rows = [
        (
            number,
            run.began.when(zone),
            ended(run),
            run.began.number("trials"),
            len(nodes) if isinstance(nodes := run.began.values.get("nodes"), list) else None,
            run.began.text("driver") or None,
        )
        for number, run in enumerate(runs, start=1)
    ]
    return _table("Runs", ("run", "begun", "ended", "trials due", "nodes", "driver"), rows, zone)


def _faults_table(faults: Sequence[Event], trials: Sequence[TrialData], zone: tzinfo | None) -> Table:
    restarts = {trial.id: trial.restarts for trial in trials}
    finished = {trial.id for trial in trials if trial.finished}
    # Where there are too many, those of trials that have not finished come first.
    ranked = sorted(range(len(faults)), key=lambda index: faults[index].text("trial") in finished)
    rows = [
        (
            fault.text("trial") or None,
            fault.text("kind") or None,
            fault.when(zone),
            fault.number("reports"),
            fault.text("node") or None,
            restarts.get(fault.text("trial")),
            summarize_error(str(fault.values.get("detail") or "")),
        )
        for fault in (faults[index] for index in sorted(ranked[:MOST]) + sorted(ranked[MOST:]))
    ]
    columns = ("trial", "fault", "when", "reports by then", "node", "restarts in all", "error")
    return _table("Faults", columns, rows, zone)


def _events_table(events: Sequence[Event], zone: tzinfo | None) -> Table:
    rows = []
    for event in events:
        others = {
            name: value for name, value in event.values.items() if name not in ("trial", "trials", "node", "detail")
        }
        texts = [summarize_error(str(event.values.get("detail") or ""), WIDTH)]
        texts += [summarize_error(json.dumps(others, ensure_ascii=False), WIDTH)] if others else []
        rows.append(
            (
                ": ".join([event.name, *filter(None, texts)]),
                event.when(zone),
                event.text("node") or None,
                _trials(event),
            )
        )
    return _table("Nodes, checkpoints, storage", ("what", "when", "node", "trial"), rows, zone)


def _trials(event: Event) -> str | None:
    trials = event.values.get("trials")
    if not isinstance(trials, list) or not trials:
        return event.text("trial") or None
    return str(trials[0]) if len(trials) == 1 else f"{len(trials)} trials"


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | None]], zone: tzinfo | None
) -> Table:
    """Return a table of texts; a dash stands for None."""
    notes = [f"And {len(rows) - MOST} more: {JOURNAL}."] if len(rows) > MOST else []
    notes.append(f"Times: {zone or 'as they were written'}.")
    texts = [[NOTHING if value is None else str(value) for value in row] for row in rows[:MOST]]
    cells = tuple(tuple(Cell(text, (text,)) for text in row) for row in texts)
    return Table(title, tuple(Column(name, (name,)) for name in columns), cells, tuple(notes))


def _shortened(table: Table) -> Table:
    keep = slice(None, -1 if table.columns[-1].title == "error" else None)
    notes = ("More of them: table.md.", *table.notes[-1:]) if len(table.rows) > FEW else table.notes
    rows = tuple(row[keep] for row in table.rows[:FEW])
    return dataclasses.replace(table, columns=table.columns[keep], rows=rows, notes=notes)
