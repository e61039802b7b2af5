"""Combination of several studies into one, where that mixes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ht_ray.report.data.study import Scalar, StudyData

__all__ = ["combine", "differing"]

#: Settings that choose which trials a study has, what is measured on the way, or where it finds its data and its
#: machine: studies that differ in these alone trained each trial in the same way.
CHOOSING = (
    *("access", "baselines", "compare", "corner_seeds", "first_seed", "methods", "seeds"),
    *("games", "variants"),
    *("momenta", "reset_intervals", "subset_ratios", "label_noises", "beta1s", "beta2s", "epsilons"),
    *("search", "samples", "scheduler", "population", "search_seed", "grace_period", "reduction_factor"),
    *("perturbation_interval", "quantile", "resample_probability"),
    *("evaluate_every", "indicators", "indicators_every"),
    *("data_root", "device", "download"),
)
#: How many differing settings are listed.
MOST_LISTED = 8


def combine(studies: Sequence[StudyData]) -> tuple[StudyData | None, tuple[str, ...]]:
    """Return one study of all trials, or None and sentences on what forbids it.

    The studies must agree in all settings but those that choose their trials, and in the metric; no two trials may
    share label, access mode and seed. Other versions of the software forbid nothing; a sentence says so.
    """
    first, *others = studies
    # By their folders: two studies of one script have one name.
    names = {id(study): study.directory.resolve().name for study in studies}
    reasons: list[str] = []
    remarks: list[str] = []
    for other in others:
        found = differing(first, other)
        pair = f"{names[id(first)]} and {names[id(other)]}"
        if found:
            more = f" and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
            reasons.append(f"{pair} differ in {'; '.join(found[:MOST_LISTED])}{more}.")
        versions = [study.config.get("versions") for study in (first, other)]
        if versions[0] != versions[1]:
            remarks.append(f"{pair} were made with different versions of the software.")
    seen: dict[tuple[str, Scalar, Scalar], str] = {}
    for study in studies:
        for trial in study.trials:
            key = (trial.label, trial.settings.get("access"), trial.seed)
            if key in seen:
                reasons.append(f"{trial.label}, seed {trial.seed}, stands in both {seen[key]} and {names[id(study)]}.")
                break
            seen[key] = names[id(study)]
    if reasons:
        return None, tuple(reasons)
    joined = dataclasses.replace(
        first,
        config={**first.config, "study": " + ".join(names.values())},
        trials=tuple(trial for study in studies for trial in study.trials),
        orphans=tuple(text for study in studies for text in study.orphans),
        journal=None,
    )
    return joined, tuple(remarks)


def differing(one: StudyData, other: StudyData) -> list[str]:
    """Return the settings in which two studies differ, but for their choice of trials."""
    first, second = one.settings, other.settings
    pairs: dict[str, tuple[Any, Any]] = {
        name: (first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second]) if name not in CHOOSING
    }
    pairs |= {"metric": (one.metric, other.metric), "mode": (one.mode, other.mode)}
    return [f"{name} = {ours!r} and {theirs!r}" for name, (ours, theirs) in pairs.items() if ours != theirs]
