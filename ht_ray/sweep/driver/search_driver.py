"""Driver of a search: what Tune is given, and what of it goes into the records."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ht_ray.records import EventKind
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.search.population import Lineage, PopulationLog, Segment
from ht_ray.sweep.search.search import Parameter, Search, Values, with_values
from ht_ray.sweep.search.suggest import Tried, suggest
from ht_ray.sweep.storage.location import StudyLocation
from ht_ray.sweep.study.trial import Study

__all__ = ["SearchDriver"]

_Write = Callable[[Callable[[], Any]], Any]


class SearchDriver:
    """Runs the search of a study, if it has one, through Tune's scheduler and searcher.

    Parameters
    ----------
    records
        All trials of the study.
    due
        Those to run.
    packs
        Their ids, those together that run as one of Tune's trials.
    slots
        How many can run at a time.
    limit
        How many may; None for all that can.

    Attributes
    ----------
    attempt
        The name with which workers are let know which trials of their packs are stopped; None if none can be.
    """

    def __init__(
        self,
        study: Study,
        location: StudyLocation,
        records: Sequence[TrialRecord],
        due: Sequence[TrialRecord],
        packs: Sequence[tuple[str, ...]],
        slots: int,
        limit: int | None,
    ) -> None:
        self._study = study
        self._location = location
        self._records = records
        self._due = {record.spec.id: record for record in due}
        self._packs = packs
        self._slots = slots
        self._limit = limit
        self._halving: Any = None
        packed = any(record.spec.pack is not None for record in due)
        stops = self.search is not None and self.search.config.scheduler == "asha"
        self.attempt = uuid.uuid4().hex[:8] if packed and stops else None

    @property
    def search(self) -> Search | None:
        """The study's."""
        return self._study.search

    @property
    def suggests(self) -> bool:
        """Whether trials get their settings when they start."""
        return self.search is not None and self.search.config.search == "optuna"

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """What workers put into the configs of their trials."""
        return self.search.parameters if self.search is not None else ()

    @property
    def keep_every(self) -> int | None:
        """After which multiple of reports checkpoints are kept for others."""
        population = self.search is not None and self.search.config.scheduler == "pbt"
        return self.search.config.perturbation_interval if self.search is not None and population else None

    def tune_options(self, write: _Write, note: Callable[..., None], say: Callable[[str], None]) -> dict[str, Any]:
        """Return the arguments of ``tune.run`` that say which trials there are, and who decides on them.

        Parameters
        ----------
        write
            Does what writes files, and waits for a storage that does not answer.
        note
            Adds an event to the journal.
        say
            Prints a text that stays.
        """
        from ray import tune

        from ht_ray.sweep.driver.schedulers import HalvingScheduler, SuggestionSearcher

        search, study = self.search, self._study
        if search is None or (search.config.search == "grid" and search.config.scheduler == "none"):
            return {"config": {"members": tune.grid_search(list(self._packs))}, "max_concurrent_trials": self._limit}
        # What is suggested later knows more.
        most = self._slots if self.suggests else self._limit

        def room(live: int) -> bool:
            return most is None or live < most

        def lineages_of(members: tuple[str, ...]) -> dict[str, Lineage]:
            # One after the other: each knows of those that start with it, and of their settings.
            searched = [self._due[name] for name in members if self.suggests and name in search.groups]
            return {record.spec.id: self._suggested_lineage(record, search, write) for record in searched}

        scheduler: Any = None
        searcher = SuggestionSearcher(self._packs, lineages_of, room, more=lambda: False)
        if search.config.scheduler == "asha":
            scheduler = self._halving = HalvingScheduler(study, search, self._records)
        elif search.config.scheduler == "pbt":
            scheduler = self._populations(search, write, note, say)
            searcher = SuggestionSearcher(
                self._packs,
                lineages_of,
                # One that is paused does not count.
                room=lambda live: scheduler.room(),
                more=lambda: not all(record.status.ended for record in self._due.values()),
            )
        # One more than there are: the searcher says when it has come to its end.
        return {"config": {}, "scheduler": scheduler, "search_alg": searcher, "num_samples": len(self._packs) + 1}

    def _populations(self, search: Search, write: _Write, note: Callable[..., None], say: Callable[[str], None]) -> Any:
        """The scheduler of a study with populations."""
        from ht_ray.sweep.driver.schedulers import PopulationScheduler

        study = self._study
        planned = {spec.id: spec.config for spec in study.trials}
        first = {
            trial: {parameter.column: parameter.get(planned[trial]) for parameter in search.parameters}
            for trial in search.trials
        }
        log = PopulationLog(self._location.directory, search, first)
        if log.damage is not None:
            say(f"{log.damage}; what was decided from there on is decided again")
            note(EventKind.FILE_DAMAGED, detail=log.damage)
        sign = 1 if study.mode == "max" else -1
        history = {
            record.spec.id: [_score(report["summary"].get(study.metric), sign) for report in record.read()]
            for record in self._records
            if record.spec.id in search.groups
        }
        write(lambda: log.catch_up(history))

        def decide(group: str, scores: dict[str, float]) -> bool:
            segments = write(lambda: log.decide(group, scores))
            # Before anyone acts on it, it is where a driver that comes after this one will find it.
            if segments is None or not write(self._synced):
                return False
            for trial, segment in segments.items():
                before, reports = log.values(trial, segment.reports - 1), segment.reports
                changes = [f"{column} {before[column]:.12g} -> {new:.12g}" for column, new in segment.values.items()]
                note(EventKind.COPIED, trial=trial, source=segment.source, reports=reports, detail="; ".join(changes))
            return True

        return PopulationScheduler(study, search, self._records, log, decide, due=len(self._packs), limit=self._limit)

    def _suggested_lineage(self, record: TrialRecord, search: Search, write: _Write) -> Lineage:
        """The settings of a trial, suggested now or by an earlier run."""
        values = self._values(record, search)
        if values is None:
            values = self._suggested(record, search)
            write(lambda: self._settle(record, search, values))
        return Lineage((Segment(0, None, values),))

    def stopped(self, record: TrialRecord) -> bool:
        """Whether a trial was stopped because it fell behind."""
        return self._halving is not None and record.spec.id in self._halving.stopped

    def pauses(self, record: TrialRecord) -> bool:
        """Whether a trial is paused now and then, and taken up again, by plan."""
        search = self.search
        return search is not None and search.config.scheduler == "pbt" and record.spec.id in search.groups

    def needless(self, record: TrialRecord) -> list[TrialRecord]:
        """Return whose older checkpoints nobody needs any more, now that a trial has ended for good."""
        search = self.search
        if search is None or not self.pauses(record):
            return [record]
        group = search.members(search.groups[record.spec.id])
        members = [other for other in self._records if other.spec.id in group]
        return members if all(other.status.measured for other in members) else []

    def _synced(self) -> bool:
        self._location.sync()
        return True

    def _values(self, record: TrialRecord, search: Search) -> Values | None:
        """The values that a trial was given, now or by an earlier run."""
        values = {parameter.column: record.spec.settings.get(parameter.column) for parameter in search.parameters}
        found = {column: value for column, value in values.items() if isinstance(value, (int, float))}
        return found if len(found) == len(values) else None

    def _suggested(self, record: TrialRecord, search: Search) -> Values:
        tried = []
        for other in self._records:
            if other.spec.id not in search.groups or (values := self._values(other, search)) is None:
                continue
            score = other.finite_summary.get(self._study.metric)
            tried.append(Tried(values, other.status, score, other.reports))
        return suggest(search, self._study.mode, search.trials.index(record.spec.id), tried)

    def _settle(self, record: TrialRecord, search: Search, values: Values) -> None:
        label = search.label.format(**values)
        if any(other.spec.label == label for other in self._records):
            label += f" ({record.spec.id})"
        record.settle(
            replace(
                record.spec,
                label=label,
                settings={**record.spec.settings, **values},
                config=with_values(record.spec.config, search.parameters, values),
            )
        )


def _score(value: float | None, sign: int) -> float:
    return math.nan if value is None else sign * value
