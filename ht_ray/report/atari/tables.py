"""Tables of an Atari study: aggregates next to the paper's, scores by game, probabilities of improvement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ht_ray._checks import check_choice
from ht_ray.report.atari.reference import AGENT_STEPS, PaperScores, atari_games, paper_scores, reference_scores
from ht_ray.report.atari.scores import METRICS, RESAMPLES, Interval, probability_of_improvement
from ht_ray.report.atari.study import (
    Variant,
    comparable,
    finished_variants,
    format_games,
    format_thousands,
    variant_notes,
    variants_of,
)
from ht_ray.report.data.paper import PAPER
from ht_ray.report.data.statistics import ENOUGH, estimate
from ht_ray.report.data.study import MissingDataError, StudyData
from ht_ray.report.style.formats import NOTHING, describe, format_significant
from ht_ray.report.style.tables import Cell, Column, Table, study_table

__all__ = ["METRIC_TITLES", "aggregates_table", "games_table", "improvement_table"]

METRIC_TITLES = {"iqm": "IQM", "median": "median", "mean": "mean", "optimality_gap": "optimality gap"}

_INTERVALS = (
    f"95% t intervals by game; with {ENOUGH} runs of each game or more, percentile intervals of a bootstrap that draws "
    f"runs within each game ({format_thousands(RESAMPLES)} resamples). They tell how much other runs on these games "
    "would differ, not other games. Where a game has a single run there is none."
)


def aggregates_table(study: StudyData) -> Table:
    """Tabulate the human-normalised aggregates of each variant, with 95% intervals, and the paper's.

    Under a variant whose name is one of `paper_scores` stands the paper's row; its other rows follow at the end.
    Columns and notes say over how many games, runs and steps a row is. Where all variants are over the same games,
    steps and evaluations, the best of those that finished all their runs is marked.
    """
    variants, finished = variants_of(study), finished_variants(study, "aggregates_table")
    whole = [variant for variant in finished if variant.whole]
    best = {
        metric: _format((min if metric == "optimality_gap" else max)(_values(whole, metric)))
        for metric in (METRICS if len(whole) > 1 and comparable(finished) else ())
    }
    paper = dict(paper_scores())
    rows: list[tuple[Cell, ...]] = []
    for variant in variants:
        rows.append(_own_row(variant, best if variant.whole else {}))
        if variant.name in paper:
            rows.append(_paper_row(paper.pop(variant.name)))
    rows += map(_paper_row, paper.values())
    columns = (
        Column("variant", ("variant", "source")),
        Column("games", ("games",)),
        Column("runs per game", ("runs_min", "runs_max")),
        Column("agent steps", ("steps",)),
        *(Column(METRIC_TITLES[metric], (metric, f"{metric}_low", f"{metric}_high")) for metric in METRICS),
    )
    notes = (
        "Human-normalised: 0 is the random agent, 1 the human tester. IQM: mean of the middle half of all runs of all "
        "games; median and mean: over the games' means; optimality gap: mean shortfall from 1 (less is better).",
        f"In brackets: {_INTERVALS}",
        f"(paper): {PAPER}, table 1, over 26 games; what follows is not as there. S&P: Shrink & Perturb, HR: head "
        "reset and its interval, H&T: Hare & Tortoise. Its table has no number of runs and no intervals.",
        *variant_notes(variants),
    )
    title = f"Atari-100k aggregates of {describe(study)}"
    games = {game for variant in finished for game in variant.finished}
    if len(games) < len(atari_games()):
        title += f": {format_games(games)}"
    return study_table(study, title, columns, rows, notes)


def games_table(study: StudyData) -> Table:
    """Tabulate the final scores by game: of each variant mean, standard deviation (n - 1) and runs, random and human.

    A score is the mean over whole games, unclipped; its human-normalised value stands behind it. The best variant of
    those that finished all their runs of a game is marked.
    """
    finished_variants(study, "games_table")
    variants = variants_of(study)
    columns = [Column("game", ("game",)), Column("random", ("random",)), Column("human", ("human",))]
    for variant in variants:
        parts = ("runs", "mean", "sd", "normalised")
        columns.append(Column(variant.name, tuple(f"{variant.name}: {part}" for part in parts)))
    planned = {game for variant in variants for game in variant.planned}
    rows = []
    for game in filter(planned.__contains__, atari_games()):
        random, human = reference_scores()[game]
        cells = [_score_cell(variant, game) for variant in variants]
        whole = [
            index
            for index, variant in enumerate(variants)
            if 0 < len(variant.finished.get(game, ())) == len(variant.planned.get(game, ()))
        ]
        if len(whole) > 1 and len({variant.differs for variant in variants}) == 1:
            top = max(whole, key=lambda index: cells[index].values[1])
            cells[top] = Cell(cells[top].text, cells[top].values, True)
        rows.append((Cell(game, (game,)), Cell(f"{random:g}", (random,)), Cell(f"{human:g}", (human,)), *cells))
    low = min(len(trials) for variant in variants for trials in variant.planned.values())
    high = max(len(trials) for variant in variants for trials in variant.planned.values())
    notes = (
        "Mean ± standard deviation (n − 1) of the runs' final scores (unclipped, whole games), and human-normalised, "
        "in brackets. Fewer runs than were planned are given as n.",
        f"Runs planned: {low if low == high else f'{low} to {high}'} per game.",
        *variant_notes(variants),
    )
    return study_table(study, f"Scores by game of {describe(study)}", columns, rows, notes)


def improvement_table(study: StudyData, baseline: str | None = None) -> Table:
    """Tabulate how probable it is that a run of each variant scores higher than one of the baseline on the same game.

    Averaged over the games that both have (see `probability_of_improvement`).

    Parameters
    ----------
    baseline : str, optional
        A variant's name; by default the first planned.
    """
    variants = {variant.name: variant for variant in variants_of(study)}
    base = variants[check_choice("improvement_table: baseline", baseline or next(iter(variants)), variants)]
    rows = []
    for name, variant in variants.items():
        games = [game for game in variant.finished if game in base.finished]
        if name == base.name or not games:
            continue
        ours, theirs = variant.raw, base.raw
        found = probability_of_improvement({game: ours[game] for game in games}, {game: theirs[game] for game in games})
        above = "yes" if found.low > 0.5 else "no" if math.isfinite(found.low) else NOTHING
        rows.append(
            (
                Cell(f"{name} over {base.name}", (name, base.name)),
                Cell(f"{len(games)} of {len(atari_games())}", (len(games),)),
                Cell(_format_interval(found), (found.value, found.low, found.high)),
                Cell(above, (above,)),
            )
        )
    if not rows:
        raise MissingDataError("improvement_table: no two variants have finished runs of one game.")
    columns = (
        Column("variants", ("variant", "baseline")),
        Column("games", ("games",)),
        Column("probability of improvement", ("probability", "probability_low", "probability_high")),
        Column("interval above 0.5", ("above_half",)),
    )
    notes = (
        "How often a run of the first scores higher than one of the second on the same game (a tie counts a half), "
        "averaged over the games that both have finished.",
        f"In brackets: {_INTERVALS}",
        *variant_notes(tuple(variants.values())),
    )
    title = f"Probability of improvement in {describe(study)}"
    return study_table(study, title, columns, rows, notes, problems=False)


def _own_row(variant: Variant, best: dict[str, str]) -> tuple[Cell, ...]:
    low, high = variant.runs
    set_to = next(trial.number("steps") for trials in variant.planned.values() for trial in trials)
    steps = math.nan if set_to is None else set_to
    cells = [
        Cell(variant.name, (variant.name, "ours")),
        Cell(f"{len(variant.finished)} of {len(atari_games())}", (len(variant.finished),)),
        Cell(str(low) if low == high else f"{low}–{high}", (low, high)),
        Cell(NOTHING if math.isnan(steps) else format_thousands(steps), (steps,)),
    ]
    for metric in METRICS:
        found = getattr(variant.aggregates, metric) if variant.finished else Interval(math.nan)
        marked = _format(found.value) == best.get(metric)
        cells.append(Cell(_format_interval(found), (found.value, found.low, found.high), marked))
    return tuple(cells)


def _paper_row(scores: PaperScores) -> tuple[Cell, ...]:
    every = len(atari_games())
    return (
        Cell(f"{scores.variant} (paper)", (scores.variant, "paper")),
        Cell(f"{every} of {every}", (every,)),
        Cell(NOTHING, (math.nan, math.nan)),
        Cell(format_thousands(AGENT_STEPS), (AGENT_STEPS,)),
        *(
            Cell(_format(value), (value, math.nan, math.nan))
            for value in (getattr(scores, metric) for metric in METRICS)
        ),
    )


def _score_cell(variant: Variant, game: str) -> Cell:
    own = estimate(variant.raw.get(game, ()))
    if not own.n:
        return Cell(NOTHING, (0, math.nan, math.nan, math.nan))
    normalised = float(variant.scores[game].mean())
    planned = len(variant.planned[game])
    short = f" (n={own.n})" if own.n < planned else ""
    text = f"{format_significant(own.mean, own.sd)} [{normalised:.3f}]{short}"
    return Cell(text, (own.n, own.mean, own.sd, normalised))


def _values(variants: Sequence[Variant], metric: str) -> list[float]:
    return [getattr(variant.aggregates, metric).value for variant in variants]


def _format(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else NOTHING


def _format_interval(found: Interval) -> str:
    ends = f" [{found.low:.3f}, {found.high:.3f}]" if math.isfinite(found.low) else ""
    return _format(found.value) + ends
