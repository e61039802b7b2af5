"""Reports of studies: their tables and figures, as files and as one page."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from ht_ray.errors import SettingError
from ht_ray.report.atari.curves import efficiency_figure, game_curves_figure
from ht_ray.report.atari.figures import aggregates_figure, atari_heat_map, grid_methods, profile_figure
from ht_ray.report.atari.study import is_atari
from ht_ray.report.atari.tables import aggregates_table, games_table, improvement_table
from ht_ray.report.continual.curves import epoch_curves, phase_curves
from ht_ray.report.continual.maps import adam_map, has_adam_grid, heat_map
from ht_ray.report.continual.method_bars import method_bars
from ht_ray.report.continual.tables import choice_table, drops_table, summary_table
from ht_ray.report.continual.transfer import has_matrix, has_own_tests, matrix_figure, transfer_table
from ht_ray.report.continual.warm_start_grid import grid_cells_table, grid_figure, grid_metrics, grid_table, is_grid
from ht_ray.report.continual_rl.visits import is_continual_rl, losses_figure, visits_figure, visits_table
from ht_ray.report.data.combine import combine
from ht_ray.report.data.files import Log, storage_patience, write_text
from ht_ray.report.data.load import load_study
from ht_ray.report.data.study import MissingDataError, StudyData, group, split_by_access
from ht_ray.report.indicators.figures import indicator_curves, indicator_scatter
from ht_ray.report.indicators.tables import correlation_table, indicator_table
from ht_ray.report.page import GENERATOR, StudyReport, html_page
from ht_ray.report.run_history import summarize_history
from ht_ray.report.search.figures import population_figure, search_figure, search_map
from ht_ray.report.search.outcomes import is_population, is_search, search_source, search_table
from ht_ray.report.style.curve_lines import BASELINE
from ht_ray.report.style.formats import RETURNS
from ht_ray.report.style.tables import Table
from ht_ray.report.tensorboard import repair_trial_events, write_events

__all__ = ["write_report", "write_reports"]

METRICS = ("average_{}", "final_{}")
#: On a warm start the first phase is only a preparation, and its accuracy no result.
WARM_METRICS = ("final_{}", "final_train_{}")
PAGE = "report.html"
#: Seconds to wait for a full disk; a sweep waits as long for its storage.
PATIENCE = 600.0
TABLES = (
    *("atari_aggregates", "atari_improvement", "atari_games"),
    *("visits", "search", "table", "choice", "transfer", "grid", "cells", "drops", "indicators", "correlations"),
)


def write_report(
    study: StudyData | str | os.PathLike[str],
    *,
    log: Log | None = None,
    out: str | os.PathLike[str] | None = None,
    patience: float = PATIENCE,
    brief: bool = False,
) -> list[Path]:
    """Write a study's tables and figures.

    ``report.html`` is all of it as one page that needs no other file; ``table.md`` holds all tables, ``table.csv`` and
    ``drops.csv`` the unrounded numbers behind them, ``figures/`` each figure as PNG and PDF, ``report/`` event files
    for TensorBoard. One with an accuracy matrix has ``transfer.csv`` and a figure of it. A study over subset ratio
    and label noise has ``grid.csv`` and figures of it, one that measured plasticity indicators ``indicators.csv``
    and ``correlations.csv`` and their figures, one of Atari games (see `ht_ray.report.atari.study`)
    ``atari_aggregates.csv``, ``atari_improvement.csv``, ``atari_games.csv`` and figures of them, without
    ``table.csv`` and ``drops.csv``, one of agents over streams of tasks (see `ht_ray.report.continual_rl.visits`)
    ``visits.csv`` and figures of visits and losses. Where a study has both access modes, each has its own tables
    (marked in the CSV column ``access``) and figures (marked at the end of their name). In the study's directory
    files of these names are replaced, each at once. No others are touched but the event files of trials that have
    ended: those that are damaged or gone are written again, unless the study is at work.

    Parameters
    ----------
    study : StudyData or path
        The study, or its directory or URI.
    log : callable, optional
        Called with each table as text, and with a sentence for each table or figure the study has no data for; the
        sentences stand in ``table.md`` as well. The command line passes ``print``.
    out : path, optional
        The directory to write into, by default the study's; needed where the study is at a URI. In another directory
        only an earlier report is replaced.
    patience : float, default 600
        The seconds to wait for a disk that is full or lost.
    brief : bool, default False
        Whether `log` is called with what needs attention only: a disk that is full, event files that were damaged.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    StorageError
        If the disk is full or lost for longer than that.
    SettingError
        If `study` is no study directory, it holds two trials of one label and seed, the files cannot be written, or
        `out` is another study's, or holds files of these names that no report wrote.
    """
    study = study if isinstance(study, StudyData) else load_study(study)
    if study.source is not None and out is None:
        raise SettingError(f"{study.source} is a study at a URI: name a directory for its report (--out).")
    root = study.directory if out is None else Path(out)
    if not _same(root, study.directory):
        _check_free(root, (PAGE, "table.md", *(f"{key}.csv" for key in TABLES), "figures", "report"))
        _begin(root / PAGE)
    log = log or (lambda text: None)
    with storage_patience(patience, log):
        if _same(root, study.directory):
            repair_trial_events(study, log)
        report, written = _write_files(study, root, (lambda text: None) if brief else log)
        command = _command([study], out)
        page = root / PAGE
        write_text(page, html_page([report], command=command))
    return [page, *written]


def write_reports(
    studies: Sequence[StudyData | str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    log: Log | None = None,
    patience: float = PATIENCE,
) -> list[Path]:
    """Write the reports of several studies into one directory, with a page of all of them.

    Each study's files go into a folder of its name, as `write_report` writes them, but for the page, ``report.html``,
    which has a section for each. Where the studies agree in all settings but those that choose their trials, a table
    has the trials of all; otherwise the page says what they differ in. Where one is a search, a table and a figure
    (``figures/search.png``) compare what they cost and found.

    Parameters
    ----------
    studies : sequence of StudyData or path
        The studies, or their directories or URIs.
    out : path
        The directory to write into. Of what is there already, only an earlier report is replaced.
    log, patience
        See `write_report`.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    StorageError
        If the disk is full or lost for longer than `patience`.
    SettingError
        If one is no study directory, two have directories of the same name, the files cannot be written, or `out` is a
        study's directory, or holds files of these names that no report wrote.
    """
    log = log or (lambda text: None)
    loaded = [study if isinstance(study, StudyData) else load_study(study) for study in studies]
    named: dict[str, Path] = {}
    locations: dict[str, str] = {}
    for study in loaded:
        directory = study.directory.resolve()
        location = study.source or str(directory)
        other = locations.get(directory.name)
        if other == location:
            raise SettingError(f"Studies: {location} is named twice: name each study once.")
        if other is not None:
            raise SettingError(
                f"Studies: {other} and {location} have the same name, and their reports would overwrite each other: "
                "rename one, or report them apart."
            )
        named[directory.name], locations[directory.name] = directory, location
    # Where a study lies in `out` itself, its files go to their usual place.
    elsewhere = [name for name, directory in named.items() if not _same(Path(out) / name, directory)]
    _check_free(Path(out), (PAGE, *elsewhere))
    for name in elsewhere:
        _check_free(Path(out) / name)
    with storage_patience(patience, log):
        return _write_reports(loaded, named, out, log)


def _write_reports(
    loaded: Sequence[StudyData], named: Iterable[str], out: str | os.PathLike[str], log: Log
) -> list[Path]:
    _begin(Path(out) / PAGE)
    reports, written = [], []
    for name, study in zip(named, loaded, strict=True):
        report, files = _write_files(study, Path(out) / name, log)
        reports.append(report)
        written += files
    together, remarks = combine(loaded)
    combined: list[Table] = []
    if together is not None:
        overview = aggregates_table if is_atari(together) else _summary
        combined = [overview(part) for part in split_by_access(together).values()]
    figures: list[Path] = []
    searches: list[Table] = []
    if any(map(is_search, loaded)):
        searches.append(search_table(loaded))
        drawn = [Path(out) / "figures" / f"search.{suffix}" for suffix in ("png", "pdf")]
        try:
            search_figure(loaded, *drawn)
        except MissingDataError as reason:
            remarks = (*remarks, str(reason))
        else:
            figures, written = drawn[:1], [*written, *drawn]
    for text in [*(table.to_text() for table in (*combined, *searches)), *remarks]:
        log(text)
    page = Path(out) / PAGE
    content = html_page(
        reports,
        command=_command(loaded, out),
        combined=combined,
        searches=searches,
        figures=figures,
        remarks=remarks,
    )
    write_text(page, content)
    return [page, *written]


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _check_free(directory: Path, names: Iterable[str] = ()) -> None:
    """Raise if `directory` is a study's, or has anything of these names without the page of an earlier report."""
    if all((directory / name).exists() for name in ("config.json", "trials.json")):
        raise SettingError(f"{directory} is a study's directory, the place of its own report: name another.")
    page = directory / PAGE
    if page.is_file() and GENERATOR in page.read_text(encoding="utf-8", errors="replace"):
        return
    taken = [name for name in names if (directory / name).exists()]
    if taken:
        raise SettingError(
            f"{directory} has {', '.join(taken)} already, and no page of an earlier report: name another directory, or "
            "move them away."
        )


def _begin(page: Path) -> None:
    """Write a page that says it is not done, so that a report that was cut off is known as one."""
    if not page.exists():
        write_text(page, f"<!DOCTYPE html>\n{GENERATOR}\n<p>This report was not finished: make it again.</p>\n")


def _command(studies: Sequence[StudyData], out: str | os.PathLike[str] | None) -> list[str]:
    where = [] if out is None else ["--out", os.fspath(out)]
    return ["python", "-m", "ht_ray.report", *(study.location for study in studies), *where]


def _write_files(study: StudyData, root: Path, log: Log) -> tuple[StudyReport, list[Path]]:
    """Write everything but the page; return what was made, and the files."""
    shown: dict[str, list[Table]] = {}
    numbers: dict[str, list[Table]] = {}
    skipped: list[str] = []
    figures: list[Path] = []

    def skip(name: str, reason: object) -> None:
        skipped.append(f"Skipped{f' ({name})' if name else ''}: {reason}")
        log(skipped[-1])

    for name, part in _parts(study).items():
        if not (is_grid(part) or has_adam_grid(part) or is_atari(part)) and len(_plain_labels(part)) != 1:
            count = len(_plain_labels(part))
            skip(name, f"differences to the {BASELINE} method: they take one label of it, and there are {count}.")
        for key, make, targets in _tables(part):
            try:
                table = make()
            except MissingDataError as reason:
                skip(name, reason)
                continue
            if "shown" in targets:
                shown.setdefault(key, []).append(table)
                log(table.to_text())
            if "csv" in targets:
                numbers.setdefault(key, []).append(table)
        end = "_" + re.sub(r"[^\w.=+-]+", "_", name.removesuffix(" access")) if name else ""
        for stem, figure in _figures(part).items():
            paths = [root / "figures" / f"{stem}{end}.{suffix}" for suffix in ("png", "pdf")]
            try:
                figure(*paths)
            except MissingDataError as reason:
                skip(name, reason)
            else:
                figures += paths
    pngs = tuple(path for path in figures if path.suffix == ".png")
    events: list[Path] = []
    try:
        events = write_events(study, pngs, root / "report")
    except MissingDataError as reason:
        skip("", reason)
    history = summarize_history(study)
    markdown = [f"# {study.name}"]
    order = [table for key in TABLES for table in shown.get(key, ())]
    markdown += [table.to_markdown().rstrip() for table in order]
    if history is not None:
        log(history.to_text())
        markdown.append(history.to_markdown())
    markdown += skipped
    texts = {"table.md": "\n\n".join(markdown) + "\n"}
    texts |= {f"{key}.csv": _joined(numbers[key]) for key in TABLES if key in numbers}
    for file, text in texts.items():
        write_text(root / file, text)
    report = StudyReport(study, tuple(order), pngs, tuple(skipped), history)
    return report, [*(root / file for file in texts), *figures, *events]


def _parts(study: StudyData) -> dict[str, StudyData]:
    """Return the parts of a study that have reports of their own, by name: access modes, and the methods of a grid."""
    parts = {}
    for access, part in split_by_access(study).items():
        where = f"{access} access" if access else ""
        methods = group(part, "method") if is_grid(part) else {}
        if len(methods) < 2:
            parts[where] = part
            continue
        for (method,), trials in methods.items():
            parts[", ".join(filter(None, [where, str(method)]))] = dataclasses.replace(part, trials=trials)
    return parts


def _tables(part: StudyData) -> Iterator[tuple[str, Callable[[], Table], tuple[str, ...]]]:
    """Yield the tables of a study: file name, function that makes it, and where it goes: ``"shown"``, ``"csv"``."""
    both = ("shown", "csv")
    if is_atari(part):
        yield "atari_aggregates", partial(aggregates_table, part), both
        yield "atari_improvement", partial(improvement_table, part), both
        yield "atari_games", partial(games_table, part), both
    elif is_continual_rl(part):
        yield "table", partial(_summary, part), both
        yield "visits", partial(visits_table, part), ("csv",)
    elif is_grid(part):
        metrics = grid_metrics(part)
        yield "table", partial(_summary, part), ("csv",)
        yield from (("grid", partial(grid_table, part, metric), ("shown",)) for metric in metrics)
        yield "grid", partial(grid_cells_table, part, metrics), ("csv",)
        if len(part.seeds) > 1:
            yield "cells", partial(grid_cells_table, part, metrics, repeated=True), ("shown",)
    else:
        yield "table", partial(_summary, part), both
        if len(part.labels) > len({trial.method for trial in part.trials}) and not is_population(part):
            yield "choice", partial(choice_table, part, _metrics(part)), both
        if has_matrix(part):
            yield "transfer", partial(transfer_table, part), both
        if not has_own_tests(part):
            yield "drops", partial(drops_table, part), both
    if is_search(part):
        yield "search", partial(search_table, [part]), both
    if part.indicator_names:
        yield "indicators", partial(indicator_table, part), both
        if not is_continual_rl(part):  # which has no accuracy
            yield "correlations", partial(correlation_table, part), both


def _figures(part: StudyData) -> dict[str, Callable[..., None]]:
    """Return the functions that draw the figures of a study, by file name."""
    draw: dict[str, Callable[..., None]] = {}
    metrics = _metrics(part)
    if is_atari(part):
        draw["atari_aggregates"] = partial(aggregates_figure, part)
        for method in grid_methods(part):
            own = "" if method == "hare_tortoise" else f"_{method}"
            draw[f"atari_heat_map{own}"] = partial(atari_heat_map, part, method=method)
        draw["atari_profiles"] = partial(profile_figure, part)
        draw["atari_efficiency"] = partial(efficiency_figure, part)
        draw["atari_games"] = partial(game_curves_figure, part)
    elif is_continual_rl(part):
        draw["visits"] = partial(visits_figure, part)
        draw["losses"] = partial(losses_figure, part)
    elif is_grid(part):
        draw |= {f"grid_{metric}": partial(grid_figure, part, metric=metric) for metric in grid_metrics(part)}
    elif has_adam_grid(part):
        draw |= {f"adam_{metric}": partial(adam_map, part, metric) for metric in metrics}
    else:
        if part.warm_start:
            draw["methods"] = partial(method_bars, part, metrics)
        if not part.warm_start or sum("hare_tortoise" in trial.method for trial in part.trials) > len(part.seeds):
            if is_population(part):
                draw["population"] = partial(population_figure, part)
            elif search_source(part) != "grid":
                draw["search_map"] = partial(search_map, part)
            else:
                draw |= {f"heat_map_{metric}": partial(heat_map, part, metric) for metric in metrics}
        draw["epoch_curves"] = partial(epoch_curves, part)
        if not part.warm_start:
            draw["phase_curves"] = partial(phase_curves, part)
        if has_matrix(part):
            draw["accuracy_matrix"] = partial(matrix_figure, part)
    if part.indicator_names:
        if not is_grid(part):
            draw["indicator_curves"] = partial(indicator_curves, part)
        if not is_continual_rl(part):
            draw["indicator_scatter"] = partial(indicator_scatter, part)
    return draw


def _summary(part: StudyData) -> Table:
    plain = _plain_labels(part)
    return summary_table(part, _metrics(part), plain.pop() if len(plain) == 1 and not is_grid(part) else None)


def _plain_labels(part: StudyData) -> set[str]:
    return {trial.label for trial in part.trials if trial.method == BASELINE}


def _metrics(study: StudyData) -> list[str]:
    """Return the usual metrics the study has, and the one it is ranked by."""
    known = study.summary_names
    shared = WARM_METRICS if study.warm_start else METRICS
    usual = RETURNS if is_continual_rl(study) else [name.format(study.measure) for name in shared]
    names = dict.fromkeys([*usual, study.metric])
    return [name for name in names if name in known] or [study.metric]


def _joined(tables: list[Table]) -> str:
    return "".join(table.to_csv(header=index == 0) for index, table in enumerate(tables))
