"""Plan of a study, in its directory: what its ``config.json`` and ``trials.json`` say."""

from __future__ import annotations

import platform
import re
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ht_ray._files import write_atomic
from ht_ray._storage import Storage, redact, storage_errors
from ht_ray.errors import SettingError
from ht_ray.records.checked_json import SUM, Damaged, check_form, parse, sum_of, to_json, to_jsonable, to_sealed_json
from ht_ray.records.study_files import (
    CHECKPOINTS,
    CONFIG,
    CONFIG_FILE,
    FORMAT,
    LEASE,
    LEASE_FILE,
    LOCK,
    PLAN,
    PLAN_FILE,
    TRIALS,
)
from ht_ray.sweep.study.trial import Study, TrialSpec

__all__ = [
    "PROBE",
    "check_plan",
    "create_study",
    "is_free",
    "is_study",
    "load_plan",
    "load_study_name",
    "load_study_settings",
    "this_command",
    "write_plan",
]

#: With this begins the name of a file, empty, with which it is tried whether a location can be written.
PROBE = ".try-writing"
# The names under which files are written before they are renamed.
_HALF_WRITTEN = re.compile(r"\.(config|trials|lease)\.json\.\w+\.tmp")
_PACKAGES = ("ht-ray", "torch", "ray", "numpy", "torchvision", "avalanche-lib", "gymnasium", "ale-py")


def is_study(location: str | Path) -> bool:
    """Return whether a study was begun at a path or URI: its ``config.json`` is what is written last."""
    return Storage(location).exists(CONFIG_FILE)


def is_free(location: str | Path) -> bool:
    """Return whether a study may be made at a path or URI: nothing is there, or what the making of one left.

    That is what a full disk or a kill leaves before the study is begun: locks, empty folders, files that were tried or
    half-written, a plan without a ``config.json``.
    """
    storage = Storage(location)
    if storage.local is not None and storage.local.exists() and not storage.local.is_dir():
        return False
    return all(_is_left_over(storage, name) for name in storage.names())


def _is_left_over(storage: Storage, name: str) -> bool:
    if _HALF_WRITTEN.fullmatch(name) or (name == LOCK and storage.local is not None):
        return True
    if name in (TRIALS, CHECKPOINTS):
        folder = storage.local is None or (storage.local / name).is_dir()
        return folder and next(storage.files(name), None) is None
    forms = {PLAN_FILE: PLAN} if storage.local is not None else {PLAN_FILE: PLAN, LEASE_FILE: LEASE}
    if name in forms or name.startswith(PROBE):
        content = storage.read(name)
        try:
            return not content.strip(b"\0") or (name in forms and parse(content, forms[name]) is not None)
        except Damaged:
            return False
    return False


def load_study_name(location: str | Path) -> str:
    """Return the name of the study that is at a path or URI: which study it is.

    Raises
    ------
    SettingError
        If it is none.
    """
    return str(_load_config(location)["study"])


def load_study_settings(location: str | Path) -> dict[str, Any]:
    """Return the settings a study was started with, as `Study.settings` had them.

    Parameters
    ----------
    location
        Its directory, or the URI of one.

    Raises
    ------
    SettingError
        If there is no study; the message says what is missing.
    """
    settings: dict[str, Any] = _load_config(location)["settings"]
    return settings


def load_plan(location: str | Path) -> tuple[TrialSpec, ...]:
    """Return the trials that were planned for the study at a path or URI.

    Raises
    ------
    SettingError
        If there is none, or its files are damaged.
    """
    config = _load_config(location)
    content = _load(location, PLAN_FILE)
    try:
        trials = parse(content, PLAN)
        if config.get("plan", sum_of(content)) != sum_of(content):
            raise Damaged("the check sum in config.json says that it was changed")
        return tuple(
            TrialSpec(plan["id"], plan["label"], plan["settings"], plan.get("config", {}), plan.get("pack"))
            for plan in trials
        )
    except (Damaged, SettingError) as damage:
        raise SettingError(
            f"{_file(location, PLAN_FILE)} is damaged: {damage}. Restore it from a copy, or resume with the command "
            "that the study was started with: it is written again."
        ) from damage


def check_plan(location: str, study: Study) -> str | None:
    """Return what is wrong with the ``trials.json`` of the study at `location`, if it can be written again; or None.

    Raises
    ------
    SettingError
        If `study` is not what was planned there; the message names the first difference.
    """
    config = _load_config(location)
    try:
        difference = _difference(config, load_plan(location), study)
        if difference is None:
            return None
        raise SettingError(
            f"resume = {location!r}: {difference}. Resume with the settings of that study (its config.json), or start "
            "a new one."
        )
    except SettingError as error:
        planned = (config["study"], config["metric"], config["mode"], config.get("plan"))
        if planned != (study.name, study.metric, study.mode, sum_of(_plan(study).encode())):
            raise
        return str(error)


def _difference(config: Mapping[str, Any], trials: Sequence[TrialSpec], study: Study) -> str | None:
    """What distinguishes `study` from the one that was planned; None if nothing does."""
    if config["study"] != study.name:
        return f"it is the study {config['study']!r}, not {study.name!r}"
    metric, mode = config["metric"], config["mode"]
    if (metric, mode) != (study.metric, study.mode):
        return f"it takes the {mode} of {metric!r}, not the {study.mode} of {study.metric!r}"
    planned, given = [spec.id for spec in trials], [spec.id for spec in study.trials]
    if planned != given:
        only_there = [f"{name!r} is only there" for name in planned if name not in given]
        only_here = [f"{name!r} is new" for name in given if name not in planned]
        parts = [f"{len(planned)} trials were planned there, {len(given)} are now", *only_there[:1], *only_here[:1]]
        return "; ".join(parts if len(parts) > 1 else [*parts, "their order differs"])
    for spec, other in zip(trials, study.trials, strict=True):
        there, now = asdict(spec), to_jsonable(asdict(other))
        if there != now:
            return f"trial {spec.id!r} is {there} there and {now} now"
    return None


def write_plan(directory: Path, study: Study) -> None:
    """Write ``trials.json``: all planned trials."""
    with storage_errors(directory):
        write_atomic(directory / PLAN_FILE, _plan(study))


def create_study(directory: Path, study: Study) -> None:
    """Write what `study` plans into `directory`, in which no study was begun.

    Raises
    ------
    SettingError
        If one was.
    """
    config = {
        "format": FORMAT,
        "study": study.name,
        "id": secrets.token_hex(8),
        "command": this_command(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "metric": study.metric,
        "mode": study.mode,
        "settings": study.settings,
        "plan": sum_of(_plan(study).encode()),
    }
    with storage_errors(directory):
        if is_study(directory):
            raise SettingError(f"{str(directory)!r}: another process has begun a study there; nothing is overwritten.")
        for folder in (TRIALS, CHECKPOINTS):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        write_plan(directory, study)
        write_atomic(directory / CONFIG_FILE, to_sealed_json(config, indent=1) + "\n")


def this_command() -> list[str]:
    """Return this program's command line, without the keys and secrets in URIs."""
    return [redact(text) for text in sys.argv]


def _plan(study: Study) -> str:
    planned = [asdict(spec) for spec in study.trials]
    for trial in planned:
        if trial["pack"] is None:
            del trial["pack"]  # as earlier versions write it
    return to_json(planned, indent=1) + "\n"


def _versions() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            continue


def _load(location: str | Path, name: str) -> bytes:
    where, storage = repr(str(location)), Storage(location)
    try:
        if not storage.exists():
            raise SettingError(f"{where} is no study: there is no such directory.")
        if not storage.exists(name):
            raise SettingError(f"{where} is no study: it has no {name}.")
        return storage.read(name)
    except OSError as error:
        raise SettingError(f"{where} cannot be read: {error}.") from error


def _load_config(location: str | Path) -> dict[str, Any]:
    where, content = repr(str(location)), _load(location, CONFIG_FILE)
    try:
        config: dict[str, Any] = parse(content)
        if not {"study", "settings"} & config.keys():
            raise SettingError(f"{where} is no study: its config.json belongs to something else.")
        if config.get("format") != FORMAT:
            raise SettingError(
                f"{_file(location, CONFIG_FILE)}: its format is {config.get('format')!r}, and this version reads "
                f"{FORMAT}."
            )
        check_form(config, CONFIG)
    except Damaged as damage:
        raise SettingError(
            f"{_file(location, CONFIG_FILE)} is damaged: {damage}. Restore it from a copy; if it was edited on "
            f"purpose, delete its {SUM!r}."
        ) from damage
    return config


def _file(location: str | Path, name: str) -> str:
    """What a file of a study is called, by path or URI."""
    return Storage(location).child(name).location
