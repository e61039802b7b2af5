"""Settings of how a study is run: where results go, what each trial may use. Checked before Ray is imported."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import socket
import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ht_ray._checks import check_choice, check_fields, check_number, refused
from ht_ray._parts import is_path_of_part, load_part
from ht_ray._storage import PASSING, Storage, StorageError, is_uri
from ht_ray.sweep.study.plan import PROBE, is_free, is_study, load_study_settings

__all__ = ["GIB", "SweepConfig", "check_before_ray", "check_callback", "is_in_copy_of_job", "ray_address"]

GIB = 1 << 30

# Ray counts resources in ten-thousandths.
_GRAIN = 1e-4
# What clocks can wait for: two years.
_MOST_MINUTES = 1_000_000


@dataclass(frozen=True)
class SweepConfig:
    """How a study is run.

    Raises
    ------
    SettingError
        If a field cannot work.
    """

    results_dir: str | None = None
    """A new directory for this study, or a URI such as s3://bucket/studies/first; by default
    ~/ht-ray-results/NAME-DATE-TIME (HT_RAY_RESULTS replaces ~/ht-ray-results). With several nodes it must be a URI or
    on a file system that all of them share."""
    resume: str | None = None
    """The directory or URI of an earlier study to continue: finished trials are kept, the others go on from their
    newest checkpoint."""
    resume_or_start: str | None = None
    """As resume if a study was begun at that directory or URI, otherwise as results_dir: for jobs that are started
    again with the same command after a failure, whenever that came."""
    cpus_per_trial: float = 1.0
    """CPUs of one trial, which is also its number of threads; a fraction lets several trials share one."""
    gpus_per_trial: float = 0.0
    """GPUs of one trial; a fraction lets several trials share one."""
    gpu_memory_per_trial: float | None = None
    """GiB of GPU memory that a trial needs: it waits until its GPU has them, and is refused where all that share it
    cannot have as much."""
    memory_per_trial: float | None = None
    """GiB of memory of one trial, which Ray counts like CPUs; by default memory is not counted."""
    resources: tuple[str, ...] = ()
    """Custom resources of one trial, as NAME=AMOUNT: those that nodes were started with (ray start --resources)."""
    node_labels: tuple[str, ...] = ()
    """Labels, as NAME=VALUE, that a node must have to run trials (ray start --labels)."""
    autoscaling: bool = False
    """Whether the cluster adds nodes where trials wait: then it need not have what they need when the study starts."""
    max_concurrent: int | None = None
    """Most trials at one time; by default as many as the resources allow."""
    max_failures: int = 3
    """How often in a row, without having got further, a trial is restarted whose worker died, whose node was lost or
    whose memory ran out."""
    checkpoint_minutes: float | None = 10.0
    """A trial is saved after every part (a phase, an evaluation), and inside longer parts after so many minutes; None
    for the first only."""
    keep_checkpoints: bool = True
    """Whether the last checkpoint of a trial that has finished, with its networks, is kept."""
    storage_minutes: float = 10.0
    """How long a disk that is full, or a storage that does not answer, is waited for before the study is stopped."""
    address: str | None = None
    """The Ray cluster to use: "auto", "local" or HOST:PORT; by default RAY_ADDRESS (which is set in a submitted job),
    otherwise a Ray started here."""
    tensorboard: Literal["trials", "configurations", "none"] = "trials"
    """What runs TensorBoard shows: trials, configurations (the means over the seeds: lighter, for studies of hundreds
    of trials), or none."""
    callback: tuple[str, ...] = ()
    """Callbacks of Ray Tune, which see every trial and every result: my_package.my_module:MyCallback, a class derived
    from ray.tune.Callback or a function that returns one."""
    wandb: str | None = None
    """The project of Weights & Biases, or ENTITY/PROJECT, in which each trial has a run (needs ht-ray[wandb]);
    WANDB_MODE=offline writes the runs into the trials' folders."""
    mlflow: str | None = None
    """Where each trial has a run of MLflow (needs ht-ray[mlflow]): a tracking URI such as sqlite:///mlflow.db, or the
    name of an experiment on MLFLOW_TRACKING_URI."""

    def __post_init__(self) -> None:
        check_fields(self, "cpus_per_trial", "memory_per_trial", "gpu_memory_per_trial", low=_GRAIN)
        check_fields(self, "gpus_per_trial", low=_GRAIN if self.gpus_per_trial else 0)
        for name in ("cpus_per_trial", "gpus_per_trial"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise refused(f"SweepConfig.{name}", value, ": accepted above 1 are whole numbers only.")
        check_fields(self, "max_concurrent", low=1, integer=True)
        check_fields(self, "max_failures", low=0, integer=True)
        check_choice("SweepConfig.tensorboard", self.tensorboard, ["trials", "configurations", "none"])
        check_fields(self, "checkpoint_minutes", low=0, low_open=True, high=_MOST_MINUTES)
        check_fields(self, "storage_minutes", low=0, high=_MOST_MINUTES)
        if self.gpu_memory_per_trial is not None and not self.gpus_per_trial:
            why = ": trials have no GPU; give them a share with {SweepConfig.gpus_per_trial}."
            raise refused("SweepConfig.gpu_memory_per_trial", self.gpu_memory_per_trial, why)
        _ = self.custom_resources, self.label_selector
        for path in self.callback:
            if not is_path_of_part(path):
                raise refused("SweepConfig.callback", path, accepted="'package.module:name'")
        locations = ("results_dir", "resume", "resume_or_start")
        for name in (*locations, "address", "wandb", "mlflow"):
            if getattr(self, name) == "":
                raise refused(f"SweepConfig.{name}", "", ": accepted is a name, or leave it out.")
        for name in ("wandb", "mlflow"):
            if getattr(self, name) is not None and not _installed(name):
                why = f": {name} is not installed here: pip install 'ht-ray[{name}]'."
                raise refused(f"SweepConfig.{name}", getattr(self, name), why)
        given = [name for name in locations if getattr(self, name) is not None]
        if len(given) > 1:
            first, second = given[:2]
            one, other = getattr(self, first), getattr(self, second)
            why = ": a study has one location, and a resumed one goes on in its own; give one of the two."
            raise refused(f"SweepConfig.{first}", one, f" and {{{second}}} = {{other!r}}{why}", other=other)

    @property
    def custom_resources(self) -> dict[str, float]:
        """The custom resources of one trial."""
        return {name: self._amount(name, amount) for name, amount in self._pairs("resources", "NAME=AMOUNT").items()}

    @property
    def label_selector(self) -> dict[str, str]:
        """The labels of the nodes that may run trials."""
        return self._pairs("node_labels", "NAME=VALUE")

    @property
    def resources_per_trial(self) -> dict[str, float]:
        """All that Ray counts for one trial, by Ray's names."""
        counted = {"CPU": self.cpus_per_trial, "GPU": self.gpus_per_trial}
        if self.memory_per_trial is not None:
            counted["memory"] = self.memory_per_trial * GIB
        return {name: amount for name, amount in {**counted, **self.custom_resources}.items() if amount}

    def located(self) -> SweepConfig:
        """Return these settings with `resume_or_start` made one of the two that it stands for."""
        if self.resume_or_start is None:
            return self
        where = self.resume_or_start
        try:
            there = is_study(_absolute(where))
        except OSError as error:
            raise refused(
                "SweepConfig.resume_or_start", where, ": it cannot be read ({error}).", error=error
            ) from error
        if there:
            return replace(self, resume_or_start=None, resume=where)
        return replace(self, resume_or_start=None, results_dir=where)

    def _pairs(self, field: str, form: str) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for text in getattr(self, field):
            name, _, value = text.partition("=")
            if not name or not value or name in pairs:
                raise refused(f"SweepConfig.{field}", text, f": accepted is {form}, each name once.")
            pairs[name] = value
        return pairs

    def _amount(self, name: str, text: str) -> float:
        where = f"SweepConfig.resources, {name!r}"
        if name in ("CPU", "GPU", "memory"):
            own = {"CPU": "cpus_per_trial", "GPU": "gpus_per_trial", "memory": "memory_per_trial"}[name]
            raise refused("SweepConfig.resources", f"{name}={text}", f": that one is given with {{SweepConfig.{own}}}.")
        try:
            amount = float(text)
        except ValueError as error:
            raise refused(where, text, ": accepted is a number above 0.") from error
        check_number(where, amount, low=_GRAIN)
        return amount


def check_before_ray(config: SweepConfig, study_name: str = "study") -> str:
    """Check all that can be checked without importing Ray, and return where the study is.

    It is tried whether the location can be written; nothing is left behind there, and a new directory is not created.

    Parameters
    ----------
    study_name
        Used for the default directory.

    Returns
    -------
    str
        An absolute path, or a URI.

    Raises
    ------
    SettingError
        If ``config.resume`` is no study, the location holds something already (other than what the making of a study
        that was never begun has left), cannot be written, or would vanish with a submitted job; or the cluster's
        address is of the wrong kind or does not answer; or a callback is none.
    StorageError
        If the disk is full or lost.
    """
    config = config.located()
    for path in config.callback:
        # Under `uv run` Ray would re-create the environment for its workers; it reads this when it is imported.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        check_callback("SweepConfig.callback", path, load_part("SweepConfig", "callback", path))
    _check_address(ray_address(config))
    if config.resume is not None:
        location = _absolute(config.resume)
        load_study_settings(location)
        _try_writing("SweepConfig.resume", location)
        return location
    if config.results_dir is not None:
        where, location = "SweepConfig.results_dir", _absolute(config.results_dir)
    else:
        root = os.environ.get("HT_RAY_RESULTS") or "~/ht-ray-results"
        where = "HT_RAY_RESULTS" if "HT_RAY_RESULTS" in os.environ else "the default of SweepConfig.results_dir"
        location = _unused(root, study_name)
    if is_in_copy_of_job(location):
        why = (
            ": that is Ray's temporary copy of the job's working directory, which is deleted after the job. Give an "
            "absolute path outside it."
        )
        raise refused(where, location, why)
    try:
        free = is_free(location)
        advice = "To continue it: {resume}={location!r}." if is_study(location) else "Give a new directory."
    except OSError as error:
        raise refused(where, location, ": it cannot be read ({error}).", error=error) from error
    if not free:
        raise refused(where, location, f": it exists and nothing is ever overwritten. {advice}", location=location)
    _try_writing(where, location)
    return location


def check_callback(setting: str, value: object, part: Any) -> None:
    """Refuse what is neither a callback of Ray Tune, nor its class, nor a function that may return one.

    This imports Ray, which whoever has written one does too.

    Raises
    ------
    SettingError
        If so.
    """
    from ray.tune import Callback

    fitting = issubclass(part, Callback) if inspect.isclass(part) else isinstance(part, Callback) or callable(part)
    if not fitting:
        accepted = "a class derived from ray.tune.Callback, an object of one, or a function that returns one"
        raise refused(setting, value, accepted=accepted)


def _installed(package: str) -> bool:
    # A folder of that name, as wandb leaves in the working directory, is found too, as a package without a file.
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def ray_address(config: SweepConfig) -> str:
    """Return the address to give to Ray."""
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def _check_address(address: str) -> None:
    """Raise unless something listens at `address`: Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    where = "SweepConfig.address, or RAY_ADDRESS"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        why = (
            ": accepted are 'auto', 'local' and HOST:PORT, the port being that of Ray itself (usually 6379). "
            "To use a cluster from outside it, submit the study as a job: ray job submit."
        )
        raise refused(where, address, why)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise refused(where, address, ": no Ray cluster answers there ({error}).", error=error) from error


def is_in_copy_of_job(location: str) -> bool:
    """Whether that is in Ray's temporary copy of a submitted job's working directory; another job has another."""
    return ("runtime_resources", "working_dir_files") in itertools.pairwise(Path(location).parts)


def _absolute(location: str) -> str:
    return location if is_uri(location) else str(Path(location).expanduser().absolute())


def _unused(root: str, study_name: str) -> str:
    """A location below `root` that is free."""
    storage = Storage(_absolute(root))
    stem = f"{study_name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    try:
        while storage.exists(name := stem if number == 1 else f"{stem}-{number}"):
            number += 1
    except OSError as error:
        raise refused("HT_RAY_RESULTS", root, ": it cannot be read ({error}).", error=error) from error
    return storage.child(name).location


def _try_writing(where: str, location: str) -> None:
    if is_uri(location):
        try:
            Storage(location).write(PROBE, b"")
            Storage(location).remove(PROBE)
        except OSError as error:
            raise refused(where, location, ": it cannot be written ({error}).", error=error) from error
        return
    directory = Path(location)
    missing = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=f"{PROBE}-"):
            pass
    except OSError as error:
        if error.errno in PASSING:
            raise StorageError(f"{where} = {str(directory)!r}: it cannot be written ({error}).") from error
        why = ": a directory that can be written is needed, and this one cannot ({error})."
        raise refused(where, str(directory), why, error=error) from error
    finally:
        for created in missing:
            if created.is_dir() and not any(created.iterdir()):
                created.rmdir()
