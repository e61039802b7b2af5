"""Checkpoints: a run in one file, from which it continues as if it had not stopped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ht_ray.agents.replay.packing import ReplayFileError, read_file, write_file

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or of another run."""


def save_checkpoint(path: Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a run's `settings` and its `state`, tensors and plain data, to `path` at once.

    The file is written to a temporary name and renamed: a run that is killed meanwhile leaves the one before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file({"settings": dict(settings), "state": dict(state)}, path)


def load_checkpoint(
    path: Path, settings: Mapping[str, Any], *, defaults: Mapping[str, Any] | None = None, open: Collection[str] = ()
) -> dict[str, Any]:
    """Read the state that `save_checkpoint` wrote, with the settings in ``"settings"``.

    Nothing but tensors and plain data is accepted.

    A setting that the file lacks, as it is newer than the file, had its value in `defaults`. Those named in `open` may
    be any.

    Raises
    ------
    CheckpointError
        If the file is damaged or none of these, or of a run with other settings; the message names them.
    """
    try:
        saved = read_file(path)
    except ReplayFileError as error:
        raise CheckpointError(f"{path} is no checkpoint to continue from: {error}") from error
    if saved.keys() != {"settings", "state"}:
        raise CheckpointError(f"{path} is no checkpoint to continue from, but another file of ht_ray")
    there, here = {**_flat(defaults or {}), **_flat(saved["settings"])}, _flat(settings)
    differing = [
        f"{name} = {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(there.keys() | here.keys())
        if name not in open and there.get(name) != here.get(name)
    ]
    if differing:
        raise CheckpointError(f"{path} is the checkpoint of a run with other settings: {'; '.join(differing)}")
    return {**saved["state"], "settings": saved["settings"]}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    # So that a message names the one setting that differs, not the group that it is in.
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:  # a file has lists only
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat
