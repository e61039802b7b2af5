"""How a study is run: where results go and what each trial may use. Checked before Ray is imported."""

from __future__ import annotations

import itertools
import os
import socket
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ht_ray._checks import SettingError, check_choice, check_number
from ht_ray.sweep.study_dir import is_study, load_study_settings

__all__ = ["SweepConfig", "check_before_ray", "ray_address"]


@dataclass(frozen=True)
class SweepConfig:
    """How a study is run.

    Raises
    ------
    SettingError
        If a field cannot work.
    """

    results_dir: str | None = None
    """A new directory for this study; by default ~/ht-ray-results/NAME-DATE-TIME (HT_RAY_RESULTS replaces
    ~/ht-ray-results). With several nodes it must be on a file system that all of them share."""
    resume: str | None = None
    """The directory of an earlier study to continue: finished trials are kept, the others go on from their newest
    checkpoint."""
    cpus_per_trial: float = 1.0
    """CPUs of one trial, which is also its number of threads; a fraction lets several trials share one."""
    gpus_per_trial: float = 0.0
    """GPUs of one trial; a fraction lets several trials share one."""
    max_concurrent: int | None = None
    """Most trials at one time; by default as many as the resources allow."""
    max_failures: int = 3
    """How often a trial whose worker process died is restarted from its newest checkpoint."""
    address: str | None = None
    """The Ray cluster to use: "auto", "local" or HOST:PORT; by default RAY_ADDRESS (which is set in a submitted job),
    otherwise a Ray started here."""
    tensorboard: str = "trials"
    """What runs TensorBoard shows: trials, configurations (the means over the seeds: lighter, for studies of hundreds
    of trials), or none."""

    def __post_init__(self) -> None:
        check_number("SweepConfig.cpus_per_trial", self.cpus_per_trial, low=0, low_open=True)
        check_number("SweepConfig.gpus_per_trial", self.gpus_per_trial, low=0)
        for name in ("cpus_per_trial", "gpus_per_trial"):
            value = getattr(self, name)
            if value > 1 and value != int(value):
                raise SettingError(f"SweepConfig.{name} = {value!r}: accepted above 1 are whole numbers only.")
        if self.max_concurrent is not None:
            check_number("SweepConfig.max_concurrent", self.max_concurrent, low=1, integer=True)
        check_number("SweepConfig.max_failures", self.max_failures, low=0, integer=True)
        check_choice("SweepConfig.tensorboard", self.tensorboard, ["trials", "configurations", "none"])
        for name in ("results_dir", "resume", "address"):
            if getattr(self, name) == "":
                raise SettingError(f"SweepConfig.{name} = '': accepted is a name, or leave it out.")
        if self.resume is not None and self.results_dir is not None:
            raise SettingError(
                f"SweepConfig.results_dir = {self.results_dir!r} and resume = {self.resume!r}: a resumed study "
                "goes on in its own directory; give one of the two."
            )


def check_before_ray(config: SweepConfig, study_name: str = "study") -> Path:
    """Check all that can be checked without importing Ray, and return the study's directory.

    The directory is tried for writing; nothing is left behind in it, and a new one is not created yet.

    Parameters
    ----------
    study_name
        Used for the default directory.

    Returns
    -------
    Path
        Absolute.

    Raises
    ------
    SettingError
        If ``config.resume`` is no study, the directory holds something already, cannot be written, or would vanish
        with a submitted job; or the cluster's address is of the wrong kind or does not answer.
    """
    _check_address(ray_address(config))
    if config.resume is not None:
        directory = _absolute(config.resume)
        load_study_settings(directory)
        _try_writing("SweepConfig.resume", directory)
        return directory
    if config.results_dir is not None:
        where, directory = "SweepConfig.results_dir", _absolute(config.results_dir)
    else:
        root = os.environ.get("HT_RAY_RESULTS")
        where = "HT_RAY_RESULTS" if root else "the default of SweepConfig.results_dir"
        directory = _unused(_absolute(root or "~/ht-ray-results"), study_name)
    parts = directory.parts
    if ("runtime_resources", "working_dir_files") in itertools.pairwise(parts):
        raise SettingError(
            f"{where} = {str(directory)!r}: that is Ray's temporary copy of the job's working directory, "
            "which is deleted after the job. Give an absolute path outside it."
        )
    try:
        taken = directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    except OSError as error:
        raise SettingError(f"{where} = {str(directory)!r}: it cannot be read ({error}).") from error
    if taken:
        advice = f"To continue it: resume={str(directory)!r}." if is_study(directory) else "Give a new directory."
        raise SettingError(f"{where} = {str(directory)!r}: it exists and nothing is ever overwritten. {advice}")
    _try_writing(where, directory)
    return directory


def ray_address(config: SweepConfig) -> str:
    """Return the address to give to Ray."""
    return config.address or os.environ.get("RAY_ADDRESS") or "local"


def _check_address(address: str) -> None:
    """Raise unless something listens at `address`: Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    where = "address (SweepConfig.address, or RAY_ADDRESS)"
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise SettingError(
            f"{where} = {address!r}: accepted are 'auto', 'local' and HOST:PORT, the port being that of Ray itself "
            "(usually 6379). To use a cluster from outside it, submit the study as a job: ray job submit."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise SettingError(f"{where} = {address!r}: no Ray cluster answers there ({error}).") from error


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _unused(root: Path, study_name: str) -> Path:
    stem = f"{study_name}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while (directory := root / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return directory


def _try_writing(where: str, directory: Path) -> None:
    missing = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".try-writing-"):
            pass
    except OSError as error:
        raise SettingError(
            f"{where} = {str(directory)!r}: a directory that can be written is needed, and this one cannot ({error})."
        ) from error
    finally:
        for created in missing:
            if created.is_dir() and not any(created.iterdir()):
                created.rmdir()
