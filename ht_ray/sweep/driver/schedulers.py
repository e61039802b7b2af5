"""Schedulers and a searcher of Ray Tune for the searches of a study. Importing this module imports Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.search.population import Lineage, PopulationLog
from ht_ray.sweep.search.search import Search
from ht_ray.sweep.study.trial import Study

__all__ = ["HalvingScheduler", "PopulationScheduler", "SuggestionSearcher"]


class HalvingScheduler(FIFOScheduler):
    """Stops trials that fall behind, by Tune's asynchronous successive halving (Li et al. 2020, arXiv 1810.05934).

    What earlier runs of the study reported counts as well. A trial that takes no part in the search is let alone.

    Parameters
    ----------
    records
        All trials of the study.

    Attributes
    ----------
    stopped
        The ids of those that are not to go on.
    """

    def __init__(self, study: Study, search: Search, records: Sequence[TrialRecord]) -> None:
        super().__init__()
        self._search = search
        self._summary_metric = study.metric
        self._records = {record.spec.id: record for record in records}
        self._of_group = {
            group: AsyncHyperBandScheduler(
                time_attr="reports",
                metric="score",
                mode=study.mode,
                max_t=search.reports,
                grace_period=search.config.grace_period,
                reduction_factor=search.config.reduction_factor,
            )
            for group in dict.fromkeys(search.groups.values())
        }
        #: By the id of each trial; Tune's own objects differ from run to run.
        self._known: dict[str, Any] = {}
        #: At which of its reports each trial was behind: one that went on from there has been compared before.
        self._behind: dict[str, int] = {}
        self.stopped: set[str] = set()
        for record in records:
            if record.spec.id in search.groups:
                self._known[record.spec.id] = SimpleNamespace(trial_id=record.spec.id)
                self._group(record).on_trial_add(None, self._known[record.spec.id])
        # By their reports, as if all had run side by side: at a rung the first to come is compared with nothing.
        searched = [record for record in records if record.spec.id in search.groups]
        reports = [(record, report) for record in searched for report in record.read()]
        for record, report in sorted(reports, key=lambda pair: pair[1]["index"]):
            self._compare(record, report)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        for member in result["members"]:
            name = member["trial"]
            if name not in self._search.groups:
                continue
            for line in [*member.get("lines", ()), *([member["report"]] if "report" in member else [])]:
                self._compare(self._records[name], json.loads(line))
            if self._behind.get(name) == member.get("reports", -1):
                self.stopped.add(name)
        # Of others the worker of their pack lets go.
        return str(TrialScheduler.STOP if self.stopped.issuperset(trial.config["members"]) else TrialScheduler.CONTINUE)

    def _group(self, record: TrialRecord) -> AsyncHyperBandScheduler:
        return self._of_group[self._search.groups[record.spec.id]]

    def _compare(self, record: TrialRecord, report: Mapping[str, Any]) -> None:
        """Note where a trial stands at a rung, and whether it falls behind there."""
        name, score = record.spec.id, report["summary"].get(self._summary_metric)
        # Without a number there is nothing to compare; and the last report is the end anyhow.
        if score is None or not math.isfinite(score) or report["progress"] >= 1:
            return
        result = {"reports": report["index"] + 1, "score": score}
        # A report that is repeated, after a restart, finds its rung taken and decides nothing.
        if self._group(record).on_trial_result(None, self._known[name], result) == TrialScheduler.STOP:
            self._behind[name] = report["index"] + 1


class PopulationScheduler(FIFOScheduler):
    """Lets the members of each population wait for one another, and gives those that fall behind a better's state.

    One of Tune's trials is a member, or a pack of members of one population, which wait and go on together. What waits
    is paused if another needs its resources, so that a population may be larger than what runs at a time; otherwise its
    process is kept for what comes. Its worker takes up each member's newest checkpoint afterwards, or that of the
    member it copies: nothing is kept in Tune.

    Parameters
    ----------
    records
        All trials of the study.
    log
        What was decided so far.
    decide
        Called with a population and its members' scores, the higher the better, once all wait: decides what is due, and
        returns whether that could be written down.
    due
        How many of Tune's trials there are to run.
    limit
        Most of them at one time; None for as many as the resources allow.
    """

    def __init__(
        self,
        study: Study,
        search: Search,
        records: Sequence[TrialRecord],
        log: PopulationLog,
        decide: Callable[[str, dict[str, float]], bool],
        due: int,
        limit: int | None,
    ) -> None:
        super().__init__()
        self._search = search
        self._summary_metric = study.metric
        self._sign = 1 if study.mode == "max" else -1
        self._records = {record.spec.id: record for record in records}
        self._log = log
        self._decide = decide
        self._due = due
        self._limit = limit
        self._added: list[Any] = []
        self._waiting: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        self._added.append(trial)
        self._set_lineages(trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        members, held = trial.config["members"], result["held"]
        if held is None:
            # Back to work, it may be from an earlier checkpoint than that at which it waited.
            self._waiting.difference_update(members)
            return str(TrialScheduler.CONTINUE)
        # Otherwise its worker has not heard of what was decided since it took the trial up.
        if held == self._log.due(self._search.groups[members[0]]):
            self._waiting.update(members)
            if len(self._added) == self._due and not self._ready():
                return str(TrialScheduler.CONTINUE)
        # Tune would save it first; its worker has.
        tune_controller.pause_trial(trial, should_checkpoint=False)
        return str(TrialScheduler.NOOP)

    def choose_trial_to_run(self, tune_controller: Any, *arguments: Any, **options: Any) -> Any:
        for group in dict.fromkeys(self._search.groups.values()):
            self._go_on(group)
        ready = self._ready() if self.room() else [trial for trial in self._ready() if trial.status == "PENDING"]
        # Whoever is furthest behind keeps the others waiting.
        chosen = min(ready, key=self._furthest_behind, default=None)
        if chosen is not None and chosen.status == "PAUSED":
            self._set_lineages(chosen)
        return chosen

    def room(self) -> bool:
        """Whether one more trial may run."""
        active = sum(trial.status in ("PENDING", "RUNNING") for trial in self._added)
        return self._limit is None or active < self._limit

    def _ready(self) -> list[Any]:
        """The trials that could run, and do not."""
        return [
            trial
            for trial in self._added
            if trial.status in ("PENDING", "PAUSED") and self._waiting.isdisjoint(trial.config["members"])
        ]

    def _go_on(self, group: str) -> None:
        members = self._search.members(group)
        live = [name for name in members if not self._records[name].status.ended]
        if not live or not self._waiting.issuperset(live):
            return
        scores = {
            name: self._sign * self._records[name].finite_summary.get(self._summary_metric, math.nan) for name in live
        }
        if self._decide(group, scores):
            self._waiting.difference_update(members)

    def _live(self, trial: Any) -> list[TrialRecord]:
        records = [self._records[name] for name in trial.config["members"]]
        return [record for record in records if not record.status.ended]

    def _furthest_behind(self, trial: Any) -> int:
        return min((record.reports for record in self._live(trial)), default=0)

    def _set_lineages(self, trial: Any) -> None:
        """Let a worker that takes the trial up know what is decided, and who of its members goes on."""
        members = tuple(record.spec.id for record in self._live(trial))
        lineages = {name: self._log.lineage(name) for name in members if name in self._search.groups}
        trial.set_config({**trial.config, "members": members, "lineages": lineages})


class SuggestionSearcher(Searcher):
    """Hands the trials of a study to Tune one by one, or pack by pack, each with its settings once it can start.

    Parameters
    ----------
    packs
        The ids of the trials to run, those together that run as one of Tune's trials.
    lineages_of
        Returns the settings that trials are to have, of those whose settings are suggested.
    room
        Whether one more trial may start, in addition to so many that have not ended.
    more
        Whether a trial may still have to be started again: Tune keeps processes for that.
    """

    def __init__(
        self,
        packs: Sequence[tuple[str, ...]],
        lineages_of: Callable[[tuple[str, ...]], dict[str, Lineage]],
        room: Callable[[int], bool],
        more: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._packs = packs
        self._lineages_of = lineages_of
        self._room = room
        self._more = more
        self._handed = 0
        self._live: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self._handed == len(self._packs):
            return None if self._more() else str(Searcher.FINISHED)
        if not self._room(len(self._live)):
            return None
        members = self._packs[self._handed]
        lineages = self._lineages_of(members)
        self._handed += 1
        self._live.add(trial_id)
        return {"members": members, "lineages": lineages}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._live.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study directory has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""
