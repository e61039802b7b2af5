"""Packing of trials: which of a study run together, as one of Tune's trials. No Ray here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ht_ray.sweep.search.search import Search
from ht_ray.sweep.study.trial import TrialSpec

__all__ = ["pack_trials"]

_MOST = 32


def pack_trials(
    trials: Sequence[TrialSpec], slots: int, size: int | None = None, search: Search | None = None
) -> list[tuple[str, ...]]:
    """Return the ids of trials in packs, those that run alone in one each; in order of their first trials.

    Parameters
    ----------
    trials
        Those to run, in the order of the plan.
    slots
        How many packs run at a time.
    size
        The most trials in a pack; None for so many that the packs, or rounds of them, fill the slots, and at most 32.
    search
        The study's. Members of a population wait for one another, so a pack has those of one; and it has no trials
        with suggested settings next to others, whose packs a resumed study would otherwise make differently.

    Examples
    --------
    >>> trials = [TrialSpec(f"t{number}", "", pack=None if number == 2 else "all") for number in range(6)]
    >>> pack_trials(trials, slots=2)
    [('t0', 't1', 't3'), ('t2',), ('t4', 't5')]
    >>> pack_trials(trials, slots=2, size=2)
    [('t0', 't1'), ('t2',), ('t3', 't4'), ('t5',)]
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    packs: list[tuple[str, ...]] = []
    for spec in trials:
        if spec.pack is None:
            packs.append((spec.id,))
        else:
            groups.setdefault((spec.pack, *_kind(spec, search)), []).append(spec.id)
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


def _kind(spec: TrialSpec, search: Search | None) -> tuple[str, ...]:
    """Apart from whom a trial is packed, by what a search does with it."""
    if search is None or not (search.config.scheduler == "pbt" or search.config.search == "optuna"):
        return ()
    if spec.id not in search.groups:
        return ("not searched",)
    settled = all(spec.settings.get(parameter.column) is not None for parameter in search.parameters)
    return ("searched", search.groups[spec.id], "settled" if settled else "open")
