"""Trainable of Ray Tune that runs trials. Importing this module imports Ray, as only a study that runs does."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.tune.result import DONE

from ht_ray._memory import keep_freed_memory
from ht_ray._storage import Storage, StorageError
from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.records import EventKind, FaultKind, Outcome
from ht_ray.sweep.search.search import Parameter, with_values
from ht_ray.sweep.study.trial import Pack, Report, load_factory
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore
from ht_ray.sweep.worker.faults import node_name
from ht_ray.sweep.worker.gpu_memory import wait_for_gpu_memory
from ht_ray.sweep.worker.member import Lone, Member

__all__ = ["StudyTrainable", "TrialEnded", "WorkerPlan"]

# Seconds between two questions of a worker whose trial waits for others.
_ASK_EVERY = 0.5
# A worker that was told to leave, and is asked for nothing more, leaves by itself.
_LEAVE_AFTER = 10.0
_LEFT = "the worker was told to leave before the trial went on"
# Seconds after which a storage that could not be used is tried again.
_LOOK_AGAIN = 2.0


class TrialEnded(RuntimeError):
    """Ends the worker process of a trial that cannot go on in it; the driver knows why already."""


@dataclass(frozen=True)
class WorkerPlan:
    """What every worker is given, once."""

    factory: str
    configs: Mapping[str, dict[str, Any]]
    """The configs of the trials of this attempt, by their ids."""
    checkpoints: Storage
    """The folder for the checkpoints of all trials."""
    import_path: tuple[str, ...]
    """The driver's import path, for factories in modules that are not installed."""
    checkpoint_every: float | None = None
    """Seconds after which a trial is saved inside a part, too."""
    patience: float = 600.0
    """Seconds for which a storage that cannot be used is tried again."""
    gpu_memory: float | None = None
    """Bytes of GPU memory that a trial needs."""
    parameters: tuple[Parameter, ...] = ()
    """What a search decides of the trials, in addition to their config."""
    keep_every: int | None = None
    """Checkpoints after a multiple of so many reports are kept longer: other trials may take them over."""
    packed: frozenset[str] = frozenset()
    """Those of the trials that run in packs."""
    attempt: str | None = None
    """With what name the driver lets workers know which members of a pack are stopped; None if it stops none."""


class StudyTrainable(tune.Trainable):
    """Runs the trials of a `WorkerPlan`: one, or a pack, after the other.

    A result has ``"members"``: what came of which trial, in the order in which it came. Each has its id as ``"trial"``
    and an ``"outcome"``, an `Outcome`. With ``RESUMED`` come the reports so far, as ``"lines"``; with ``FAULT``, which
    all trials have at once, a ``"kind"``, a `FaultKind`. ``"left"`` is the number of trials that go on; ``"held"``, the
    number of reports after which all of these wait for a decision on how they go on; None if they do not wait.

    An error of a trial's code, ``FAILED``, is not raised at once: the driver notes it. After a fault, and once nothing
    is left of a pack in which a trial failed, the next `step` raises, which makes Tune end the process. It is not used
    for another trial: an error on a GPU can leave the process unusable.

    SIGTERM is the notice that this node or process is about to go: the trials are saved at their next safe point, and
    the process leaves.
    """

    def _assign(self, config: Mapping[str, Any]) -> None:
        # The last trial's memory is free before the next one takes its own.
        self._pack: Pack | None = None
        gc.collect()
        names, plan = config["members"], self._plan
        stores = [CheckpointStore(plan.checkpoints, name, every=plan.keep_every) for name in names]
        lineages = config.get("lineages", {})
        #: The trials that go on.
        self._live = [Member(name, store, lineages.get(name)) for name, store in zip(names, stores, strict=True)]
        self._fetched = ExitStack()  # of the files that they go on from
        self._news: list[dict[str, Any]] = []
        self._notes: list[Mapping[str, str]] = []
        self._no_memory: Exception | None = None
        self._faulty = False
        self._outage: float | None = None  # when the storage was found to be away

    def setup(self, config: dict[str, Any], *, plan: WorkerPlan, shared: Any) -> None:
        self._plan = plan
        self._shared = shared
        self._leaving = False
        self._failed = False  # whether an error of a trial's code came up
        self._node = node_name(socket.gethostname(), ray.get_runtime_context().get_node_id())
        if not ray.get_gpu_ids():
            # Ray leaves all of the node's GPUs visible to a worker that was given none.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        sys.path.extend(entry for entry in plan.import_path if entry not in sys.path)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_notice)
        keep_freed_memory()
        # Collecting garbage between trials need not go through all of Ray's modules each time.
        gc.freeze()
        self._assign(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._assign(new_config)
        return True

    def step(self) -> dict[str, Any]:
        if self._faulty or (self._failed and not self._live):
            raise TrialEnded("what ended it was reported before")
        members = self._step()
        done = not self._live and not self._failed
        held = None if self._leaving or self._faulty else self._held
        result: dict[str, Any] = {"members": members, "left": len(self._live), "held": held, "node": self._node}
        result[DONE] = done
        if self._notes:
            result["notes"], self._notes = self._notes, []
        if self._leaving:
            timer = threading.Timer(_LEAVE_AFTER, os._exit, (0,))
            timer.daemon = True
            timer.start()
        return result

    def cleanup(self) -> None:
        self._pack = None

    def _step(self) -> list[dict[str, Any]]:
        """Do what is due, and return what came of it."""
        start = time.perf_counter()
        try:
            if self._outage is not None:
                time.sleep(_LOOK_AGAIN)
            if not self._leaving:
                self._go_on(start)
            # What was saved inside a part says so itself.
            if self._leaving and not self._news:
                self._fault(FaultKind.PREEMPTED, _LEFT)
        except StorageError as error:
            self._storage_trouble(error)
        # This is the border to code of any kind: whatever it raises is these trials' own end, with its traceback.
        except Exception as error:
            if _out_of_memory(error):
                self._fault(FaultKind.OUT_OF_MEMORY, _text_of(error))
            else:
                while self._live:
                    self._fail(self._live.pop(0), error)
        news, self._news = self._news, []
        return news

    def _go_on(self, start: float) -> None:
        """Train each trial that is due until it is saved again."""
        self._let_go_of_stopped()
        self._begin()
        if self._news or self._leaving or not self._live:
            return
        if not self._no_memory and not any(member.unsaved for member in self._live):
            if self._held is not None:
                # Each time the driver is asked.
                time.sleep(_ASK_EVERY)
                return
            self._advance(start)
        self._save()
        if self._no_memory:
            raise self._no_memory

    def _let_go_of_stopped(self) -> None:
        if (attempt := self._plan.attempt) is None:
            return
        for member in [member for member in self._live if not member.asked]:
            if member.store.stopped(attempt):
                self._drop(member)
            member.asked = True

    @property
    def _held(self) -> int | None:
        """After how many reports all trials wait for a decision; None if one can go on."""
        if self._pack is None or any(member.held is None or member.unsaved for member in self._live):
            return None
        return min((len(member.lines) for member in self._live), default=None)

    def _begin(self) -> None:
        """Make the trials ready: at first, and where one goes on with other settings."""
        if self._pack is not None:
            if not any(member.turns for member in self._live) or any(member.unsaved for member in self._live):
                return
            self._pack = None
            for member in self._live:
                member.read = False
        for member in [member for member in self._live if not member.read]:
            try:
                self._read(member)
            except StorageError:
                raise
            except Exception as error:  # as in _step()
                self._end(member, error)
        if not self._live or self._no_memory:
            return
        if self._plan.gpu_memory is not None:
            wait_for_gpu_memory(self._plan.gpu_memory, share=_gpu_share(), say=self._notes.append)
        self._pack = self._built()
        for member in list(self._live):
            try:
                if member.files is not None:
                    self._pack.load(member.id, member.files)
            except Exception as error:  # as in _step()
                self._end(member, error)
        self._fetched.close()

    def _read(self, member: Member) -> None:
        """Find out from where a trial goes on: from its newest checkpoint, with another's state if it copies that."""
        say = partial(self._note_damage, member)
        found = member.store.newest(self._fetched, say)
        member.files, checkpoint = found or (None, Checkpoint((0, 0), ()))
        result = member.resume(checkpoint)
        if (source := member.source) is not None:
            reports = len(member.lines)
            copied = CheckpointStore(self._plan.checkpoints, source).newest(self._fetched, say, after=reports)
            if copied is None:
                raise RuntimeError(
                    f"it goes on from the state that {source!r} had after {reports} reports, and that checkpoint is "
                    "gone or damaged"
                )
            member.files = copied[0]
        self._storage_answers()
        member.read = True
        if found is not None:
            self._tell(member, result)

    def _built(self) -> Pack:
        """Return the trials, as yet without a past, each with the settings with which it goes on."""
        configs = {}
        for member in self._live:
            config = self._plan.configs[member.id]
            if member.segment is not None:
                config = with_values(config, self._plan.parameters, member.segment.values)
            configs[member.id] = config
        factory = load_factory(self._plan.factory)
        name = self._live[0].id
        if name not in self._plan.packed:
            return Lone(name, factory(configs[name], self._shared))
        if not hasattr(factory, "pack"):
            raise SettingError(f"Study.factory = {self._plan.factory!r}: it has no 'pack', and its trials are packed.")
        pack: Pack = factory.pack(configs, self._shared)
        return pack

    def _advance(self, start: float) -> None:
        """Do the next part, or what of it there is time for."""
        assert self._pack is not None
        try:
            with self._alarm(self._pack):
                outcomes = self._pack.advance()
        except Interrupted:
            result: dict[str, Any] = {"outcome": Outcome.SAVED}
            if self._leaving:
                detail = "told to leave; saved inside a part"
                result = {"outcome": Outcome.FAULT, "kind": FaultKind.PREEMPTED, "detail": detail}
            for member in self._live:
                member.cut_off((time.perf_counter() - start) / len(self._live), result)
            return
        seconds = time.perf_counter() - start
        live = {member.id: member for member in self._live}
        if not outcomes or not outcomes.keys() <= live.keys():
            raise ValueError(f"the pack of {', '.join(live)} has advanced {', '.join(outcomes) or 'none of them'}")
        for name, outcome in outcomes.items():
            if isinstance(outcome, Report):
                try:
                    live[name].report(outcome, seconds / len(outcomes))
                except Exception as error:  # as in _step()
                    self._end(live[name], error)
            else:
                self._end(live[name], outcome)

    def _save(self) -> None:
        """Save what is to be saved, and tell of it."""
        for member in [member for member in self._live if member.unsaved]:
            assert self._pack is not None
            try:
                member.store.save(partial(self._pack.save, member.id), member.checkpoint)
            except StorageError:
                raise
            except Exception as error:  # as in _step()
                self._end(member, error)
                continue
            self._storage_answers()
            assert member.unsaved is not None
            result, member.unsaved = member.unsaved, None
            self._tell(member, result)

    def _tell(self, member: Member, result: Mapping[str, Any]) -> None:
        """Let the driver know what came of a trial."""
        self._news.append({"trial": member.id, **result})
        self._faulty |= result["outcome"] == Outcome.FAULT
        if result["outcome"] == Outcome.FINISHED:
            self._drop(member)
        member.asked = False

    def _drop(self, member: Member) -> None:
        self._live.remove(member)
        if self._pack is not None:
            self._pack.drop(member.id)

    def _end(self, member: Member, error: Exception) -> None:
        """Let go of a trial that cannot go on. Where memory ran out, all are to go on elsewhere or later."""
        if _out_of_memory(error):
            self._no_memory = error
            return
        if isinstance(error, Diverged):
            self._tell(member, {"outcome": Outcome.DIVERGED, "error": str(error) or "diverged"})
        else:
            self._fail(member, error)
        self._drop(member)

    def _fail(self, member: Member, error: Exception) -> None:
        self._failed = True
        self._tell(member, {"outcome": Outcome.FAILED, "error": _text_of(error)})

    def _fault(self, kind: FaultKind, detail: str) -> None:
        for member in self._live:
            self._tell(member, {"outcome": Outcome.FAULT, "kind": kind, "detail": detail, **member.position})

    def _storage_trouble(self, error: StorageError) -> None:
        now = time.monotonic()
        if self._outage is None:
            self._outage = now
            self._note(EventKind.STORAGE, f"{error}; trying again for up to {self._plan.patience / 60:g} minutes")
        elif now - self._outage > self._plan.patience:
            self._fault(FaultKind.STORAGE, str(error))
            return
        for member in self._live:
            self._news.append({"trial": member.id, "outcome": Outcome.WAITING})

    def _storage_answers(self) -> None:
        if self._outage is not None:
            outage = time.monotonic() - self._outage
            self._note(EventKind.STORAGE, f"the storage can be used again, after {outage:.0f} s")
            self._outage = None

    def _note_damage(self, member: Member, text: str) -> None:
        self._note(EventKind.CHECKPOINT_DAMAGED, text, trial=member.id)

    def _note(self, event: EventKind, detail: str, **of: str) -> None:
        self._notes.append({"event": event, "detail": detail, **of})

    @contextmanager
    def _alarm(self, pack: Pack) -> Iterator[None]:
        """Interrupts the pack when it is due to be saved inside its part, and at once if the worker is to leave."""
        interrupt: Callable[[], None] | None = getattr(pack, "interrupt", None)
        if interrupt is not None and self._leaving:
            interrupt()
        timer = None
        if interrupt is not None and self._plan.checkpoint_every is not None:
            timer = threading.Timer(self._plan.checkpoint_every, interrupt)
            timer.daemon = True
            timer.start()
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()

    def _on_notice(self, number: int, frame: FrameType | None) -> None:
        self._leaving = True
        interrupt = getattr(self._pack, "interrupt", None)
        if interrupt is not None:
            interrupt()


def _gpu_share() -> float:
    share: float = ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0)
    return share


def _out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the machine or on a GPU; neighbours may have taken it."""
    # PyTorch's class is known by its name: this process need not have PyTorch.
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)


def _text_of(error: Exception) -> str:
    return "".join(traceback.format_exception(error))
