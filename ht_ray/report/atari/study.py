"""Runs of an Atari study, by variant and game.

A study directory (see `load_study`) is one of Atari if its trials have a setting ``game``. Its trials then have:

- settings ``game`` (one of `atari_games`), ``variant`` (what a legend calls the agent; where it is a name of
  `paper_scores`, the paper's row stands under it), ``seed``, ``steps`` (agent steps of the run, 100000 by the
  protocol), ``episodes`` (games played in the last evaluation, 100 by the protocol) and, for colours, ``method``;
- a label for each variant and game, ``"DrQ + H&T, Pong"``, so that a sentence on a trial names its game;
- a curve ``evaluation`` with the columns ``step`` (agent steps so far) and ``score`` (mean unclipped score of whole
  games in an evaluation at that step);
- the summary number ``final_score``, that of the last evaluation;
- optionally ``config["differs"]``: sentences on what else is not as in the protocol and the paper's variant.

Runs that differ in steps, episodes or sentences are not one variant's, and are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from ht_ray._checks import check_choice
from ht_ray.errors import SettingError
from ht_ray.report.atari.reference import AGENT_STEPS, EVALUATION_EPISODES, atari_games, human_normalized
from ht_ray.report.atari.scores import AtariAggregates, aggregate_scores
from ht_ray.report.data.study import MissingDataError, Scalar, StudyData, TrialData

__all__ = [
    "Variant",
    "comparable",
    "finished_variants",
    "format_games",
    "format_thousands",
    "is_atari",
    "variant_notes",
    "variants_of",
]

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Variant:
    """The runs of one agent.

    Attributes
    ----------
    planned
        All its trials, by game.
    finished
        Those that finished with a final score; only games that have any.
    differs
        What is not as in the protocol, but for its games: ``("1 000 of 100 000 steps",)``.
    """

    name: str
    method: str
    planned: Mapping[str, tuple[TrialData, ...]]
    finished: Mapping[str, tuple[TrialData, ...]]
    differs: tuple[str, ...]

    @property
    def raw(self) -> dict[str, Array]:
        """The final scores, shape ``(runs,)``, by game."""
        return {
            game: np.array([trial.summary["final_score"] for trial in trials]) for game, trials in self.finished.items()
        }

    @property
    def scores(self) -> dict[str, Array]:
        """The human-normalised final scores, shape ``(runs,)``, by game."""
        return {game: human_normalized(game, scores) for game, scores in self.raw.items()}

    @cached_property
    def aggregates(self) -> AtariAggregates:
        """The aggregates of `scores`, with 95% intervals."""
        return aggregate_scores(self.scores)

    @property
    def runs(self) -> tuple[int, int]:
        """The smallest and the largest number of runs of a game."""
        counts = [len(trials) for trials in self.finished.values()]
        return min(counts, default=0), max(counts, default=0)

    @property
    def whole(self) -> bool:
        """Whether all planned runs have a final score."""
        return all(len(self.finished.get(game, ())) == len(trials) for game, trials in self.planned.items())

    @property
    def missing(self) -> tuple[str, ...]:
        """The games that were planned and have no run."""
        return tuple(game for game in self.planned if game not in self.finished)

    @property
    def extent(self) -> str:
        """What its aggregates are over: ``"2 of 26 games, 3 runs"``."""
        low, high = self.runs
        runs = f"{high} run{'s' if high > 1 else ''}" if low == high else f"{low} to {high} runs"
        return f"{len(self.finished)} of {len(atari_games())} games, {runs}"

    def curves(self) -> tuple[Array, dict[str, Array]]:
        """Return the steps at which all runs were evaluated, and the normalised scores, ``(runs, steps)``, by game.

        Raises
        ------
        MissingDataError
            If a run has no curve, or the runs have no steps in common.
        """
        own = {game: [_evaluations(trial) for trial in trials] for game, trials in self.finished.items()}
        steps = reduce(np.intersect1d, [known[0] for runs in own.values() for known in runs])
        if not steps.size:
            raise MissingDataError(f"Evaluations during training: the runs of {self.name!r} have no steps in common.")
        return steps, {
            game: human_normalized(game, np.stack([score[np.searchsorted(step, steps)] for step, score in runs]))
            for game, runs in own.items()
        }


def is_atari(study: StudyData) -> bool:
    """Return whether the trials name games."""
    return any("game" in trial.settings for trial in study.trials)


# A report's tables and figures share the aggregates, which take seconds.
@lru_cache(maxsize=1)
def variants_of(study: StudyData) -> tuple[Variant, ...]:
    """Return the variants, in the order planned.

    Raises
    ------
    SettingError
        If a trial names no variant or no game of the benchmark, two have the same variant, game and seed, or trials of
        one variant differ in steps, episodes or what else is not as in the protocol.
    """
    groups: dict[str, dict[str, list[TrialData]]] = {}
    known: dict[tuple[str, str, Scalar], str] = {}
    budgets: dict[str, tuple[TrialData, tuple[str, ...]]] = {}
    for trial in study.trials:
        game, name = trial.settings.get("game"), trial.settings.get("variant")
        check_choice(f"Trial {trial.id}: game", game, atari_games())
        if not isinstance(name, str) or not name:
            raise SettingError(f"Trial {trial.id}: variant = {name!r}: accepted is the name of an agent.")
        other = known.setdefault((name, str(game), trial.seed), trial.id)
        if other != trial.id:
            raise SettingError(f"Trials {other} and {trial.id} are both {name!r} on {game} with seed {trial.seed}.")
        first, budget = budgets.setdefault(name, (trial, _differs(trial)))
        if budget != _differs(trial):
            ours, theirs = ("; ".join(found) or "the protocol" for found in (budget, _differs(trial)))
            raise SettingError(
                f"Trials {first.id} and {trial.id} are both {name!r}, and one has {ours}, the other {theirs}: they "
                "need variants of their own."
            )
        groups.setdefault(name, {}).setdefault(str(game), []).append(trial)
    return tuple(
        Variant(
            name,
            budgets[name][0].method,
            _in_order(games),
            _in_order({game: done for game, trials in games.items() if (done := list(filter(_scored, trials)))}),
            budgets[name][1],
        )
        for name, games in groups.items()
    )


def finished_variants(study: StudyData, where: str) -> list[Variant]:
    """Return the variants that have a finished run; raise a `MissingDataError` that names `where` if there are none."""
    variants = [variant for variant in variants_of(study) if variant.finished]
    if not variants:
        raise MissingDataError(f"{where}: no run has finished.")
    return variants


def comparable(variants: Sequence[Variant]) -> bool:
    """Return whether aggregates of these variants are over the same games, each as long trained and as often played."""
    return len({(frozenset(variant.finished), variant.differs) for variant in variants}) <= 1


def variant_notes(variants: Sequence[Variant]) -> tuple[str, ...]:
    """Return sentences on what is not as in the protocol, which games are missing, and which runs have no score."""
    notes = []
    by_text: dict[str, list[str]] = {}
    for variant in variants:
        parts = [format_games(variant.finished)] if len(variant.finished) < len(atari_games()) else []
        if variant.finished and (parts or variant.differs):
            by_text.setdefault("; ".join([*parts, *variant.differs]), []).append(variant.name)
    notes += [f"Not the protocol's: {', '.join(names)}: {text}." for text, names in by_text.items()]
    uneven: dict[tuple[int, int], list[str]] = {}
    for variant in variants:
        if variant.finished and variant.runs[0] != variant.runs[1]:
            uneven.setdefault(variant.runs, []).append(variant.name)
    notes += [
        f"{', '.join(names)}: {low} to {high} runs per game; in the IQM a game with more runs weighs more, in median, "
        "mean and optimality gap it does not."
        for (low, high), names in uneven.items()
    ]
    for variant in variants:
        if variant.missing:
            notes.append(f"{variant.name}: planned, and without a finished run: {', '.join(variant.missing)}.")
        lost = [
            trial.id for trials in variant.planned.values() for trial in trials if trial.finished and not _scored(trial)
        ]
        if lost:
            notes.append(f"{variant.name}: finished without a final score, and left out: {', '.join(lost)}.")
    if not comparable([variant for variant in variants if variant.finished]):
        notes.append(
            "The variants' aggregates are not over the same games, steps and evaluations: they are no comparison."
        )
    return tuple(notes)


def format_games(games: Iterable[str]) -> str:
    """Return how many of the benchmark's games these are, and which, or which are missing, whichever are fewer.

    Examples
    --------
    >>> format_games(["Pong", "Boxing"])
    '2 of 26 games (Boxing, Pong)'
    >>> format_games(game for game in atari_games() if game != "Qbert")
    '25 of 26 games (without Qbert)'
    """
    own = set(games)
    present, absent = ([game for game in atari_games() if (game in own) is has] for has in (True, False))
    named = present if len(present) <= len(absent) else absent
    text = f"{len(present)} of {len(atari_games())} games"
    return f"{text} ({'' if named is present else 'without '}{', '.join(named)})" if named else text


def format_thousands(value: float) -> str:
    """Return a whole number with spaces between its thousands.

    Examples
    --------
    >>> format_thousands(100000)
    '100 000'
    """
    return f"{value:,.0f}".replace(",", " ")


def _differs(trial: TrialData) -> tuple[str, ...]:
    found = []
    for name, usual, what in (
        ("steps", AGENT_STEPS, "steps"),
        ("episodes", EVALUATION_EPISODES, "evaluation episodes"),
    ):
        value = trial.number(name)
        if value is None:
            found.append(f"number of {what} not recorded")
        elif value != usual:
            found.append(f"{format_thousands(value)} of {format_thousands(usual)} {what}")
    sentences = trial.config.get("differs", ())
    return (*found, *(str(sentence) for sentence in sentences))


def _scored(trial: TrialData) -> bool:
    return trial.finished and math.isfinite(trial.summary.get("final_score", math.nan))


def _in_order(games: Mapping[str, Sequence[TrialData]]) -> dict[str, tuple[TrialData, ...]]:
    return {game: tuple(games[game]) for game in atari_games() if game in games}


def _evaluations(trial: TrialData) -> tuple[Array, Array]:
    rows = trial.curves.get("evaluation", {})
    if not {"step", "score"} <= rows.keys():
        raise MissingDataError(f"Evaluations during training: trial {trial.id} has none.")
    known = np.isfinite(rows["score"])
    steps = rows["step"][known]
    if (np.diff(steps) <= 0).any():
        raise SettingError(f"Trial {trial.id}: the steps of its evaluations do not increase: its results are damaged.")
    return steps, rows["score"][known]
