"""Which trials of a vision study are trained in packs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from ht_ray.sweep import TrialSpec
from ht_ray.vision import make_model
from ht_ray.vision.training.pack import obstacle_to_packing
from tune_configs.settings import VisionSettings
from tune_configs.vision_trial import trial_config

__all__ = ["packed"]

# Multiply-adds of one network's forward pass of a batch, up to which a pack takes clearly less time than its trials
# alone on a CPU; beyond, products take nearly all of it either way. Measured by benchmarks/packs.py; a rule and no
# measurement at the start, so that the same command gives the same numbers everywhere.
_SMALL = 30_000_000


def packed(
    settings: VisionSettings,
    planned: Sequence[TrialSpec],
    cpus: float = 1.0,
    *,
    shape: tuple[int, ...],
    num_classes: int,
) -> tuple[tuple[TrialSpec, ...], list[str]]:
    """Return the planned trials with the groups of which packs are made, and sentences for whoever started the study.

    Parameters
    ----------
    cpus
        CPUs of a trial, which is its number of threads.
    shape, num_classes
        Of the data.

    """
    if settings.pack == "off":
        return tuple(planned), []
    asked, search = settings.pack != "auto", settings.search_of(planned)
    if search is not None and search.config.search == "optuna" and not asked:  # its suggestions would know less
        return tuple(planned), []
    if cpus > 1 and not asked:  # where threads share a tensor, rounding depends on the others in the pack
        return tuple(planned), []
    reasons: dict[str, str] = {}
    groups: list[str] = []
    alone: dict[str, str] = {}
    for spec in planned:
        key = json.dumps([spec.config[part] for part in ("method", "model", "training")])
        if key not in reasons:
            reasons[key] = _obstacle(spec, shape, num_classes, asked=asked)
        parts = trial_config(spec.config)
        augment = parts.method.training(parts.training, shape).augment
        like = [spec.config["model"], spec.config["stream"], spec.config["device"], parts.training.batch_size, augment]
        if parts.stream.makes_data:  # of each seed others
            like.append(spec.config["seed"])
        groups.append("" if reasons[key] else json.dumps(like))
        if reasons[key]:
            alone[spec.label] = reasons[key]
    sizes = Counter(groups)
    names = {group: f"pack{number}" for number, group in enumerate((g for g in sizes if g and sizes[g] > 1), start=1)}
    found = tuple(replace(spec, pack=names.get(group)) for spec, group in zip(planned, groups, strict=True))
    said = []
    if asked:
        said = [f"{label} is trained alone, not in a pack: {reason}." for label, reason in alone.items()]
        if cpus > 1:
            said.append(
                f"--cpus-per-trial = {cpus:g}: the last bits of a trial may depend on the others in its pack, as "
                "threads share the work."
            )
    return found, said


def _obstacle(spec: TrialSpec, shape: tuple[int, ...], num_classes: int, *, asked: bool) -> str:
    config = trial_config(spec.config)
    if config.stream.not_packed:
        return config.stream.not_packed
    if spec.config.get("accuracy_matrix"):
        return "it has an accuracy matrix"
    model = make_model(config.model, shape=shape, num_classes=num_classes, seed=0)
    training = config.method.training(config.training, shape)
    if reason := obstacle_to_packing(model, config.method.build(model), training):
        return reason
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    large = training.batch_size * weights > _SMALL and not (
        spec.config["device"] != "cpu" and torch.cuda.is_available()
    )
    return "its network and batch are too large to gain by it" if large and not asked else ""
