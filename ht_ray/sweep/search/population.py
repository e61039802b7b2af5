"""Population-based training: who takes over whose state, with which settings. No Ray here.

After every so many reports the worst of a population take over the state of some of the best, each with settings near
those that the state was trained with (Jaderberg et al. 2017, arXiv 1711.09846), once all have reported. What is
decided depends on what was reported and on the seed alone, not on which trial was faster, and is written down before it
is done. So a population that was interrupted, at whatever moment, is the one that was not.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ht_ray.records.checked_json import Damaged, parse, to_sealed_json
from ht_ray.records.study_files import DECISION, POPULATION, append_line
from ht_ray.sweep.search.search import Search, Values, random_stream

__all__ = ["Lineage", "PopulationLog", "Segment", "next_segments"]

_FACTORS = (1.2, 0.8)


@dataclass(frozen=True)
class Segment:
    """How a member goes on from a point of its training.

    Parameters
    ----------
    reports
        The number of its reports at that point.
    source
        The trial whose state it takes over there; None if it keeps its own.
    values
        Its settings from there on.
    """

    reports: int
    source: str | None
    values: Values


@dataclass(frozen=True)
class Lineage:
    """What a worker must know of the settings of its trial, as far as they are decided.

    Parameters
    ----------
    segments
        In order; the first begins at 0.
    until
        The number of reports at which the trial waits for the next decision; None if it need not.
    members
        The population, as planned; empty if the trial belongs to none.
    """

    segments: tuple[Segment, ...]
    until: int | None = None
    members: tuple[str, ...] = ()

    def segment(self, reports: int) -> Segment:
        """Return the segment in which the trial is after so many reports."""
        return next(segment for segment in reversed(self.segments) if segment.reports <= reports)

    def row(self, reports: int) -> dict[str, float] | None:
        """Return the settings of the part after so many reports, and whom the trial copied before it.

        That is the number of a member of the population, counted from 1, or 0.
        """
        if not self.members:
            return None
        segment = self.segment(reports)
        copied = segment.source is not None and segment.reports == reports
        number = 1 + self.members.index(str(segment.source)) if copied else 0
        return {"step": reports + 1, **segment.values, "copied_from": number}


def next_segments(
    scores: Mapping[str, float], values: Mapping[str, Values], search: Search, group: str, reports: int
) -> dict[str, Segment]:
    """Return how the members that take over another's state go on.

    Parameters
    ----------
    scores
        Of all members, the higher the better; NaN is the worst.
    values
        The settings that each member's state was trained with.
    group, reports
        Which population, and at what number of reports.

    Returns
    -------
    dict
        From the ids of copying members. A member never copies one that is no better.
    """
    config = search.config
    # Of equal ones the first planned is the better, whatever the order of `scores`.
    planned = [trial for trial in search.members(group) if trial in scores]
    ranked = sorted(planned, key=lambda trial: -math.inf if math.isnan(scores[trial]) else scores[trial], reverse=True)
    number = min(math.ceil(config.quantile * len(ranked)), len(ranked) // 2)
    best, worst = ranked[:number], ranked[len(ranked) - number :]
    segments = {}
    for trial in worst:
        stream = random_stream(config.search_seed, "copy", group, reports, trial)
        source = stream.choice(best)
        if scores[trial] >= scores[source] or math.isnan(scores[source]):
            continue
        explored = {}
        for parameter in search.parameters:
            chance, factor, drawn = stream.random(), stream.choice(_FACTORS), parameter.draw(stream)
            near = parameter.perturb(values[source][parameter.column], factor)
            explored[parameter.column] = drawn if chance < config.resample_probability else near
        segments[trial] = Segment(reports, source, explored)
    return segments


class PopulationLog:
    """What was decided in a study, kept in its ``population.jsonl``: a line for each population and round.

    Parameters
    ----------
    directory
        The study's.
    search
        The study's.
    first
        The settings that each member starts with.

    Attributes
    ----------
    damage
        A sentence on the first line that is damaged; it and what follows is left out.
    """

    damage: str | None = None

    def __init__(self, directory: Path, search: Search, first: Mapping[str, Values]) -> None:
        self._path = directory / POPULATION
        self._search = search
        self._lineages = {trial: [Segment(0, None, dict(first[trial]))] for trial in search.trials}
        self._decided = dict.fromkeys(search.groups.values(), 0)
        content = self._path.read_bytes() if self._path.exists() else b""
        *lines, _ = content.split(b"\n")
        whole = 0
        for number, line in enumerate(lines, start=1):
            try:
                self._take(self._checked(line))
            except Damaged as damage:
                self.damage = f"{self._path} is damaged: line {number}: {damage}"
                break
            whole += len(line) + 1
        if whole < len(content):
            # Nothing was done yet of what a kill cut off. What was lost otherwise is decided again, and alike.
            os.truncate(self._path, whole)

    @property
    def interval(self) -> int:
        """Reports from one round to the next."""
        return self._search.config.perturbation_interval

    def lineage(self, trial: str) -> Lineage:
        """Return what is decided of a member."""
        group = self._search.groups[trial]
        return Lineage(tuple(self._lineages[trial]), self.due(group), self._search.members(group))

    def values(self, trial: str, reports: int) -> Values:
        """Return the settings with which a member trains the part after so many reports."""
        return self.lineage(trial).segment(reports).values

    def due(self, group: str) -> int | None:
        """Return the number of reports at which a population is decided next; None if its trials end before."""
        reports = self._decided[group] + self.interval
        return reports if reports < self._search.reports else None

    def decide(self, group: str, scores: Mapping[str, float]) -> dict[str, Segment]:
        """Decide, by the scores of all members that go on, what is due; write it down and return who copies.

        Raises
        ------
        StorageError
            If it cannot be written down; nothing is decided then.
        """
        reports = self.due(group)
        if reports is None:
            raise ValueError(f"nothing is due in {group!r}")
        # What a state was trained with: the settings before this point.
        values = {trial: self.values(trial, reports - 1) for trial in scores}
        segments = next_segments(scores, values, self._search, group, reports)
        line: dict[str, Any] = {
            "group": group,
            "reports": reports,
            "scores": dict(scores),
            "legs": {trial: asdict(segment) for trial, segment in segments.items()},
        }
        append_line(self._path, to_sealed_json(line))
        self._take(line)
        return segments

    def catch_up(self, history: Mapping[str, Sequence[float]]) -> None:
        """Decide again what members have acted on already and the file has lost.

        Parameters
        ----------
        history
            The scores of each member after each of its reports, the higher the better.

        Raises
        ------
        StorageError
            If it cannot be written down.
        """
        for group in self._decided:
            members = self._search.members(group)
            while (due := self.due(group)) is not None and any(len(history[trial]) > due for trial in members):
                self.decide(group, {trial: history[trial][due - 1] for trial in members if len(history[trial]) >= due})

    def _checked(self, line: bytes) -> dict[str, Any]:
        decision: dict[str, Any] = parse(line, DECISION)
        group, reports = decision["group"], decision["reports"]
        if group not in self._decided or not decision["legs"].keys() <= self._lineages.keys():
            raise Damaged("it is on trials that belong to no population")
        if reports != self.due(group):
            raise Damaged(f"it is on {group!r} after {reports} reports, where {self.due(group)} were due")
        return decision

    def _take(self, line: Mapping[str, Any]) -> None:
        self._decided[line["group"]] = line["reports"]
        for trial, segment in line["legs"].items():
            self._lineages[trial].append(Segment(**segment))
