"""Published scores of Atari-100k: random play and humans by game, and table 1 of the paper (arXiv 2406.02596).

The numbers, and where they are from, are in the folder ``data/paper_values``:
``atari100k_random_human.csv``, ``atari100k_table1.csv``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ht_ray._checks import check_choice
from ht_ray.report.data.paper import published_rows

__all__ = [
    "AGENT_STEPS",
    "EVALUATION_EPISODES",
    "PaperScores",
    "atari_games",
    "human_normalized",
    "paper_scores",
    "reference_scores",
]

#: Agent steps of one run, and the games over which its score is the mean, by the protocol.
AGENT_STEPS = 100_000
EVALUATION_EPISODES = 100


@dataclass(frozen=True)
class PaperScores:
    """A row of the paper's table 1: human-normalised, over all 26 games.

    Attributes
    ----------
    variant
        ``"DrQ + H&T"``: S&P is Shrink & Perturb, HR a head reset and its interval, H&T Hare & Tortoise.
    """

    variant: str
    iqm: float
    median: float
    mean: float
    optimality_gap: float


@cache
def reference_scores() -> Mapping[str, tuple[float, float]]:
    """Return the random and the human score by game, in the usual order.

    Examples
    --------
    >>> len(reference_scores()), reference_scores()["Pong"]
    (26, (-20.7, 14.6))
    """
    return {
        row["game"]: (float(row["random"]), float(row["human"])) for row in published_rows("atari100k_random_human.csv")
    }


def atari_games() -> tuple[str, ...]:
    """Return the 26 games of Atari-100k, by their names in ALE."""
    return tuple(reference_scores())


def human_normalized(game: str, score: ArrayLike) -> NDArray[np.float64]:
    """Return ``(score - random) / (human - random)``: 0 for the random agent, 1 for the human tester.

    Parameters
    ----------
    game : str
        One of `atari_games`.
    score : array_like
        Unclipped scores of whole games, of any shape.

    Raises
    ------
    SettingError
        If the benchmark has no such game.

    Examples
    --------
    >>> human_normalized("Pong", [-20.7, 14.6])
    array([0., 1.])
    """
    check_choice("human_normalized: game", game, atari_games())
    random, human = reference_scores()[game]
    return (np.asarray(score, dtype=np.float64) - random) / (human - random)


@cache
def paper_scores() -> Mapping[str, PaperScores]:
    """Return the rows of the paper's table 1, by variant.

    Examples
    --------
    >>> paper_scores()["DrQ + H&T"]
    PaperScores(variant='DrQ + H&T', iqm=0.287, median=0.26, mean=0.471, optimality_gap=0.617)
    """
    fields = ("iqm", "median", "mean", "optimality_gap")
    return {
        row["variant"]: PaperScores(row["variant"], *(float(row[name]) for name in fields))
        for row in published_rows("atari100k_table1.csv")
    }
