"""HTML page of a report, which needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import html
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ht_ray.report.data.study import StudyData
from ht_ray.report.run_history import RunHistory
from ht_ray.report.style.formats import describe, humanize
from ht_ray.report.style.tables import Table

__all__ = ["GENERATOR", "StudyReport", "html_page", "page_of_tables"]

#: The line by which a page is recognised as a report's.
GENERATOR = '<meta name="generator" content="ht_ray.report">'

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem; margin: 0 auto;
  padding: 0 1rem 3rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; border-top: 2px solid #444; padding-top: .8rem; margin-top: 2.5rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; } h4 { font-size: .95rem; margin: 1.2rem 0 .3rem; }
a { color: #005a92; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .6rem; text-align: right; border-bottom: 1px solid #ddd; vertical-align: bottom; }
thead th { border-bottom: 2px solid #444; } th:first-child { text-align: left; }
tbody th { font-weight: normal; min-width: 9rem; }
tbody th, tbody td { vertical-align: top; } tbody td { white-space: nowrap; }
td.best { font-weight: 700; background: #fdf0e7; }
.note { font-size: .82rem; color: #444; margin: .35rem 0; max-width: 60rem; }
.wanting { border-left: 4px solid #D55E00; background: #fdf5f0; padding: .4rem .9rem; }
.wanting ul { margin: .3rem 0; padding-left: 1.2rem; }
.happened td, .happened thead th { text-align: left; }
.happened td:nth-child(7) { white-space: normal; min-width: 16rem; }
figure { margin: 1rem 0 1.6rem; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: .82rem; color: #444; }
pre { background: #f4f4f4; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .82rem; }
dl { columns: 3 17rem; font-size: .82rem; margin: .4rem 0; }
dl div { break-inside: avoid; display: flex; gap: .6rem; justify-content: space-between;
  border-bottom: 1px solid #eee; }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
@media print { body { font-size: 10pt; max-width: none; padding: 0; } nav { display: none; }
  .scroll { overflow: visible; } table { font-size: 7.5pt; } figure, tr { break-inside: avoid; }
  h2 { break-before: page; } h2:first-of-type { break-before: auto; } h3, h4 { break-after: avoid; } }
"""


@dataclass(frozen=True, eq=False)
class StudyReport:
    """The contents of one study's report.

    Attributes
    ----------
    tables
        The tables, in the order shown.
    figures
        The PNG files.
    skipped
        Sentences on tables and figures that the study has no data for.
    history
        The history of its runs, where there is a journal.
    """

    study: StudyData
    tables: tuple[Table, ...]
    figures: tuple[Path, ...]
    skipped: tuple[str, ...]
    history: RunHistory | None = None


def html_page(
    reports: Sequence[StudyReport],
    *,
    command: Sequence[str],
    combined: Sequence[Table] = (),
    searches: Sequence[Table] = (),
    figures: Sequence[Path] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Return a page with a section for each study, and one before them for what they have in common.

    Figures are part of the page; the same results give the same page.

    Parameters
    ----------
    command : sequence of str
        The command line that makes this report again.
    combined : sequence of Table
        Tables over the trials of all studies.
    searches, figures : sequence
        Tables, and PNG files of figures, that compare the studies as wholes.
    remarks : sequence of str
        Sentences on the combination of the studies: what to know of it, or why there is none.
    """
    several = len(reports) > 1
    names = [report.study.directory.resolve().name if several else report.study.name for report in reports]
    title = f"Report: {', '.join(names)}"
    body = [f"<h1>{_text(title)}</h1>"]
    if several:
        links = [
            f'<li><a href="#study-{number}">{_text(name)}</a> ({_text(describe(report.study))})</li>'
            for number, (name, report) in enumerate(zip(names, reports, strict=True), start=1)
        ]
        body.append(f"<nav><ul>{''.join(links)}</ul></nav>")
        body.append('<h2 id="together">All studies together</h2>')
        if not combined:
            body.append("<p>Their trials are not put into one table:</p>")
        body += [_problems(remarks)] if remarks else []
        body += [_table(table) for table in (*combined, *searches)]
        body += [_figure(path, "all studies") for path in figures]
    for number, (name, report) in enumerate(zip(names, reports, strict=True), start=1):
        heading = describe(report.study)
        body += _study(report, f"study-{number}", f"{name} ({heading})" if several else heading)
    body.append("<h2>This report</h2>")
    body.append(f"<p>Made by</p><pre>{_text(shlex.join(command))}</pre>")
    return _page(title, body)


def page_of_tables(
    title: str, tables: Sequence[Table], figures: Sequence[Path], made_with: Sequence[str], commands: Sequence[str]
) -> str:
    """Return a page of tables and figures that are no study's own.

    Parameters
    ----------
    made_with, commands : sequence of str
        Versions and machines, and the command lines that made what the tables show.
    """
    body = [f"<h1>{_text(title)}</h1>", *(_figure(path, title) for path in figures), *map(_table, tables)]
    body += ["<h2>How it was made</h2>", *(f"<p>{_text(line)}</p>" for line in made_with)]
    return _page(title, [*body, f"<pre>{_text(chr(10).join(commands))}</pre>"])


def _page(title: str, body: Sequence[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{GENERATOR}\n<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n"
        "</body>\n</html>\n"
    )


def _study(report: StudyReport, anchor: str, heading: str) -> list[str]:
    study = report.study
    counts = Counter(trial.status for trial in study.trials)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.items())
    hours = sum(trial.seconds for trial in study.trials) / 3600
    parts = [
        f'<h2 id="{anchor}">{_text(heading)}</h2>',
        f"<p>{len(study.trials)} trials planned: {_text(statuses)}. Ranked by {_text(humanize(study.metric))}, the "
        f"{'higher' if study.mode == 'max' else 'lower'} the better. {hours:.2f} hours of training. Begun "
        f"{_text(study.config.get('created', '–'))}.</p>",
    ]
    if report.history is not None:
        parts.append(f"<p>{_text(report.history.sentence)}{_link(report.history, anchor)}</p>")
    if study.problems:
        parts.append(_problems(study.problems, "Left out, or wanting"))
    parts += [_table(table) for table in report.tables]
    parts += [_figure(path, describe(study)) for path in report.figures]
    if report.skipped:
        parts.append("<h3>Not drawn or tabulated</h3>")
        parts += [f'<p class="note">{_text(sentence)}</p>' for sentence in report.skipped]
    if report.history is not None:
        parts += _history(report.history, anchor)
    parts += ["<h3>Configuration</h3>", _pairs(study.settings)]
    parts += ["<h3>Versions</h3>", _pairs(study.config.get("versions", {}))]
    line = study.config.get("command")
    repeat = f"<pre>{_text(shlex.join(['python', *line]))}</pre>" if line else "<p>The command was not recorded.</p>"
    return [*parts, "<h3>To repeat it</h3>", repeat]


def _link(history: RunHistory, anchor: str) -> str:
    return f' <a href="#{anchor}-happened">What happened</a>' if history.notes or history.tables else ""


def _history(history: RunHistory, anchor: str) -> list[str]:
    """Return the section on the history, if there is more than its sentence."""
    if not _link(history, anchor):
        return []
    parts = [f'<h3 id="{anchor}-happened">What happened</h3>']
    parts += [f"<p>{_text(note)}</p>" for note in history.notes]
    return [*parts, '<div class="happened">', *(_table(table, "h4") for table in history.tables), "</div>"]


def _table(table: Table, heading: str = "h3") -> str:
    head = "".join(f'<th scope="col">{_text(column.title)}</th>' for column in table.columns)
    rows = []
    for first, *others in table.rows:
        cells = "".join(f"<td{' class=best' * cell.best}>{_cell(cell.text)}</td>" for cell in others)
        rows.append(f'<tr><th scope="row">{_text(first.text)}</th>{cells}</tr>')
    # The problems are listed once, above the study's tables.
    notes = [note for note in table.notes if not note.startswith("- ") and note != "Left out, or wanting:"]
    return (
        f"<{heading}>{_text(table.title)}</{heading}>\n"
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>\n"
        + "\n".join(f'<p class="note">{_text(note)}</p>' for note in notes)
    )


def _cell(text: str) -> str:
    # Parentheses go under their number: side by side, a grid would be wider than the page.
    return _text(text).replace(" (", "<br>(")


def _figure(path: Path, study: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = _text(path.stem.replace("_", " "))
    alternative = f"{name} of {_text(study)}; its numbers are in the tables"
    return (
        f'<figure><img alt="{alternative}" src="data:image/png;base64,{data}"><figcaption>{name}</figcaption></figure>'
    )


def _pairs(values: Mapping[str, Any]) -> str:
    if not values:
        return "<p>Not recorded.</p>"
    rows = (f"<div><dt>{_text(name)}</dt><dd>{_text(_format(value))}</dd></div>" for name, value in values.items())
    return f"<dl>{''.join(rows)}</dl>"


def _format(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(_format, value)) if isinstance(value, (list, tuple)) else str(value)


def _problems(sentences: Sequence[str], heading: str = "") -> str:
    items = "".join(f"<li>{_text(sentence)}</li>" for sentence in sentences)
    return f'<div class="wanting">{f"<strong>{_text(heading)}</strong>" if heading else ""}<ul>{items}</ul></div>'


def _text(value: object) -> str:
    return html.escape(str(value))
