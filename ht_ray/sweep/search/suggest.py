"""Suggestions of Optuna. Importing this module needs no Optuna; asking it for a suggestion does.

A suggestion depends on its number, the search's seed and what is known of the trials by then, and on nothing else: the
sampler is made again each time, from the trials as the study directory has them. So a study that is resumed needs no
state of Optuna's, and one that runs a trial at a time repeats bit by bit.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ht_ray.records import TrialStatus
from ht_ray.sweep.search.search import Search, Values, random_stream

__all__ = ["Tried", "suggest"]


@dataclass(frozen=True)
class Tried:
    """What is known of one trial with suggested values.

    Parameters
    ----------
    values
        Its settings.
    status
        As its record has it.
    score
        The metric of its last report; None if there is none.
    reports
        The number of its reports.
    """

    values: Values
    status: TrialStatus
    score: float | None
    reports: int


def suggest(search: Search, mode: str, number: int, tried: Sequence[Tried]) -> Values:
    """Return the values to try next.

    Optuna's tree-structured Parzen estimator looks for them in the coordinates of the parameters. Trials that were
    stopped early or diverged count as worse than all that finished; those that still run keep it away from their
    point; failed ones say nothing.

    Parameters
    ----------
    mode
        Whether the largest metric is the best, or the smallest: ``"max"`` or ``"min"``.
    number
        Which suggestion it is, counted from 0.
    tried
        All trials that have values.
    """
    optuna: Any = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = {
        parameter.column: optuna.distributions.FloatDistribution(*parameter.bounds) for parameter in search.parameters
    }
    seed = random_stream(search.config.search_seed, "optuna", number).getrandbits(32)
    with warnings.catch_warnings():
        # Options that were experimental in some versions of Optuna.
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize", sampler=sampler)
    states = optuna.trial.TrialState
    for trial in tried:
        if trial.status == TrialStatus.FAILED or (trial.status == TrialStatus.FINISHED and trial.score is None):
            continue
        pruned = trial.status in (TrialStatus.STOPPED, TrialStatus.DIVERGED)
        finished = trial.status == TrialStatus.FINISHED
        stopped = trial.status == TrialStatus.STOPPED and trial.score is not None
        study.add_trial(
            optuna.trial.create_trial(
                state=states.COMPLETE if finished else states.PRUNED if pruned else states.RUNNING,
                params={p.column: p.coordinate(trial.values[p.column]) for p in search.parameters},
                distributions=space,
                value=trial.score if finished else None,
                intermediate_values={trial.reports: trial.score} if stopped else None,
            )
        )
    asked = study.ask(fixed_distributions=space).params
    return {parameter.column: parameter.value(asked[parameter.column]) for parameter in search.parameters}
