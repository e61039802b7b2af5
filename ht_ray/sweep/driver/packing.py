"""Packing of trials: which of a study run together, as one of Tune's trials. No Ray here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ht_ray.sweep.study.trial import TrialSpec

__all__ = ["pack_trials"]

_MOST = 32


def pack_trials(trials: Sequence[TrialSpec], slots: int, size: int | None = None) -> list[tuple[str, ...]]:
    """Return the ids of trials in packs, those that run alone in one each; in order of their first trials.

    Parameters
    ----------
    trials
        Those to run, in the order of the plan.
    slots
        How many packs run at a time.
    size
        The most trials in a pack; None for so many that the packs, or rounds of them, fill the slots, and at most 32.

    Examples
    --------
    >>> trials = [TrialSpec(f"t{number}", "", pack=None if number == 2 else "all") for number in range(6)]
    >>> pack_trials(trials, slots=2)
    [('t0', 't1', 't3'), ('t2',), ('t4', 't5')]
    >>> pack_trials(trials, slots=2, size=2)
    [('t0', 't1'), ('t2',), ('t3', 't4'), ('t5',)]
    """
    groups: dict[str, list[str]] = {}
    packs: list[tuple[str, ...]] = []
    for spec in trials:
        if spec.pack is None:
            packs.append((spec.id,))
        else:
            groups.setdefault(spec.pack, []).append(spec.id)
    number = sum(map(len, groups.values()))
    if size is None:
        rounds = math.ceil(number / (_MOST * slots))
        size = math.ceil(number / (rounds * slots)) if number else _MOST
    for group in groups.values():
        parts = math.ceil(len(group) / size)
        edges = [math.ceil(len(group) * part / parts) for part in range(parts + 1)]
        packs += [tuple(group[begin:end]) for begin, end in itertools.pairwise(edges)]
    order = {spec.id: place for place, spec in enumerate(trials)}
    return sorted(packs, key=lambda pack: order[pack[0]])
