"""Buffers of a module: which are averaged with its weights, which are copied."""

from __future__ import annotations

from collections.abc import Collection
from difflib import SequenceMatcher
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ht_ray.errors import SettingError

__all__ = ["averaged_buffers", "check_buffers_named", "check_patterns", "step_counters"]


def _named_floats(module: nn.Module) -> dict[str, Tensor]:
    # A buffer that several parts share has several names; each may be matched.
    named = module.named_buffers(remove_duplicate=False)
    return {name: buffer for name, buffer in named if buffer.is_floating_point() or buffer.is_complex()}


def averaged_buffers(module: nn.Module, patterns: Collection[str] = ()) -> set[int]:
    """Return the identities of the buffers that are averaged as weights are.

    Decided by kind, never by value: running means and variances of torch's normalisation layers (BatchNorm,
    SyncBatchNorm, InstanceNorm, their lazy forms, and subclasses), and what `patterns` name. An average of anything
    else (a mask, an index, a unit vector, a scale) need not be one of its kind.

    Parameters
    ----------
    patterns
        Names of floating-point buffers, with the wildcards of `fnmatch`.
    """
    statistics = {
        id(part._buffers[name])
        for part in module.modules()
        if isinstance(part, _NormBase)
        for name in ("running_mean", "running_var")
        if part._buffers.get(name) is not None
    }
    named = _named_floats(module).items() if patterns else ()
    return statistics | {id(buffer) for name, buffer in named if any(fnmatchcase(name, p) for p in patterns)}


def step_counters(module: nn.Module) -> set[int]:
    """Return the identities of the counters that belong to running statistics: ``num_batches_tracked``."""
    counters = (part._buffers.get("num_batches_tracked") for part in module.modules() if isinstance(part, _NormBase))
    return {id(counter) for counter in counters if counter is not None}


def check_patterns(where: str, patterns: Collection[str]) -> tuple[str, ...]:
    """Return `patterns` as a tuple.

    Raises
    ------
    SettingError
        If it is a single string, or holds anything but strings.
    """
    several = isinstance(patterns, Collection) and not isinstance(patterns, str)
    if several and all(isinstance(pattern, str) for pattern in patterns):
        return tuple(patterns)
    raise SettingError(f"{where} = {patterns!r}: accepted is a tuple of names or patterns, as in ('head.*',).")


def check_buffers_named(where: str, patterns: Collection[str], module: nn.Module) -> None:
    """Raise unless each of `patterns` matches a floating-point buffer of `module`.

    Raises
    ------
    SettingError
        If one matches none; the message has the nearest names.
    """
    names = list(_named_floats(module))
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        nearest = sorted(names, key=lambda name: _likeness(pattern, name), reverse=True)[:3]
        shown = ", ".join(map(repr, nearest))
        has = f"the nearest of its {len(names)} are {shown}" if names else "it has none"
        raise SettingError(
            f"{where} = {tuple(patterns)!r}: {pattern!r} matches no floating-point buffer of the network; {has}."
        )


def _likeness(pattern: str, name: str) -> float:
    pairs = [(pattern, name), (pattern.rpartition(".")[2], name.rpartition(".")[2])]
    return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)
