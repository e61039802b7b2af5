"""Warm-starting: train on a noisy part of the data first, then on all of it, and see what that costs.

Three comparisons (``--compare``): how the cost depends on the size of the part and its noise (grid; tables 4 and 5 of
the paper), which methods avoid it (methods; appendix B.3, figures 4 and 5), and what Adam's settings change (adam;
figure 3). Run it alone (``python tune_configs/warm_start.py``), on a cluster (``--address auto``), or as a submitted
job (``ray job submit --working-dir . -- python tune_configs/warm_start.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ht_ray._checks import check_choice, check_number
from ht_ray.errors import SettingError
from ht_ray.methods import METHODS, Method, MethodConfig, find_method, method_parts, parse_method
from ht_ray.methods.registry import split_methods
from ht_ray.sweep import TrialSpec
from tune_configs.command_line import main as run_main
from tune_configs.settings import (
    MOST_SEEDS,
    PRESETS,
    VisionSettings,
    check_distinct,
    check_values,
    presets_of,
    unordered,
)
from tune_configs.trials import label_of, trial

__all__ = ["WarmStartSettings", "main", "trials"]

_OWNER = "WarmStartSettings"
# What has no meaning for the other comparisons.
_OF_COMPARISON = {
    "grid": ("subset_ratios", "label_noises", "corner_seeds"),
    "methods": ("methods", "base", "momentum", "reset_interval"),
    "adam": ("beta1s", "beta2s", "epsilons"),
}
# Settings of other studies, and of a single setting, that a comparison has under other names.
_INSTEAD = {
    "grid": {"subset_ratio": "subset_ratios", "label_noise": "label_noises", "noise": "label_noises"},
    "methods": {"noise": "label_noise"},
    "adam": {"noise": "label_noise", "adam_betas": "beta1s", "adam_eps": "epsilons"},
}


class _Compared(NamedTuple):
    """One method of the comparison: `fresh` skips the warm start; `own` are settings it has for itself."""

    fresh: bool
    method: MethodConfig
    own: dict[str, Any]


@dataclass(frozen=True)
class WarmStartSettings(VisionSettings):
    """Settings of the warm-start study."""

    most_used: ClassVar[tuple[str, ...]] = (
        *("compare", "data", "data_root", "model", "epochs", "subset_ratios", "label_noises", "methods", "base"),
        *("seeds", "evaluate_every", "results_dir", "resume", "gpus_per_trial", "address"),
    )

    stream: str = field(default="warm_start", metadata={"choices": ("warm_start",)})
    """warm_start: this study has no other stream."""
    epochs: int = 100
    """Epochs of the second phase; 100 is the paper's number."""

    compare: str = field(default="grid", metadata={"choices": ("grid", "methods", "adam")})
    """grid: subset ratios by label noises (tables 4 and 5 of the paper); methods (appendix B.3, figures 4 and 5); or
    adam: settings of Adam (figure 3)."""
    subset_ratios: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Grid: shares of the training set in the first phase."""
    label_noises: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    """Grid: label noises of the first phase."""
    corner_seeds: int | None = None
    """Grid: number of seeds of the four cells with smallest and largest ratio and noise; by default that of all."""
    methods: tuple[str, ...] = (
        "plain",
        "fresh",
        "fresh+augment",
        "l2",
        "augment",
        "spectral_decoupling",
        "regenerative",
        "redo",
        "crelu",
        "head_reset",
        "shrink_perturb",
        "shrink_perturb+l2+augment",
        "ema",
        "self_distillation",
        "hare_tortoise",
    )
    """Methods: which to compare; + combines them, and settings of its own follow a colon: l2:l2_strength=0.01. fresh is
    the second phase alone, from initial weights, and combines like a method: fresh+augment."""
    base: str | None = None
    """Methods: what is added to each of them (figure 5: l2+augment); those that become the same are run once."""
    momentum: float = 0.999
    """Methods: of the tortoise, in Hare & Tortoise, EMA and self-distillation."""
    reset_interval: int = 10
    """Methods: of Hare & Tortoise."""
    beta1s: tuple[float, ...] = (0.5, 0.9)
    """Adam: decays of the first moment."""
    beta2s: tuple[float, ...] = (0.9, 0.99, 0.999)
    """Adam: decays of the second moment."""
    epsilons: tuple[float, ...] = (1e-8, 1e-6, 1e-4, 1e-2)
    """Adam: epsilons."""

    def __post_init__(self) -> None:
        check_choice(f"{_OWNER}.stream", self.stream, ["warm_start"])
        check_choice(f"{_OWNER}.compare", self.compare, _OF_COMPARISON)
        self._check_meaning()
        super().__post_init__()
        if self.corner_seeds is not None:
            least = len(self.seed_list)
            check_number(f"{_OWNER}.corner_seeds", self.corner_seeds, low=least, high=MOST_SEEDS, integer=True)
        below_1: dict[str, Any] = {"low": 0, "high": 1, "high_open": True}
        for name, bounds in {
            "subset_ratios": {"low": 0, "low_open": True, "high": 1},
            "label_noises": {"low": 0, "high": 1},
            "beta1s": below_1,
            "beta2s": below_1,
            "epsilons": {"low": 0},
        }.items():
            check_values(_OWNER, name, getattr(self, name), same=_written, **bounds)
        if self.base is not None:
            self._check_base(self.base)
        check_distinct(_OWNER, "methods", self.methods, same=lambda text: _identity(self._parsed(text, "")))
        for text in self.methods:
            self._parsed(text, self.base or "")

    def _check_meaning(self) -> None:
        advice = {name: f"give {{{_OWNER}.{other}}}" for name, other in _INSTEAD[self.compare].items()}
        for comparison, names in _OF_COMPARISON.items():
            if comparison != self.compare:
                advice.update(dict.fromkeys(names, f"only for {comparison!r}"))
        defaults = {one.name: one.default for one in fields(self)}
        for name, instead in advice.items():
            if getattr(self, name) != defaults[name]:
                why = f": it has no meaning for {{{_OWNER}.compare}} = {self.compare!r}, {instead}."
                raise self.refused(name, why)

    def _check_base(self, base: str) -> None:
        if split_methods(base)[1] is not None:
            raise self.refused("base", ": accepted are names; their settings are those of the whole study.")
        try:
            waiting = _waiting(MethodConfig(base))
        except SettingError as error:
            # It says which method; here it is the base.
            raise error.of(_OWNER, "base") from error
        for text in self.methods if waiting else ():
            if self._parsed(text, "").fresh:
                why = f": {{one!r}} acts before a second phase, and {{text!r}} of {{{_OWNER}.methods}} has one phase."
                raise self.refused("base", why, one=waiting[0], text=text)

    def _parsed(self, text: str, base: str) -> _Compared:
        texts, own = split_methods(text)
        parts = [part if part.strip().lower() == "fresh" else _method_name(part) for part in texts]
        kept = [part for part in parts if part.strip().lower() != "fresh"]
        fresh = len(kept) < len(parts)
        if len(parts) - len(kept) > 1:
            raise self.refused("methods", ": 'fresh' is given twice.", text)
        kept += [part for part in method_parts(base) if part not in kept] if base else []
        if len(kept) > 1 and "plain" in kept and base:
            kept.remove("plain")
        whole = "+".join(kept or ["plain"]) + (f":{own}" if own is not None else "")
        method = self.method_config(whole)
        if fresh and (waiting := _waiting(method)):
            why = ": {one!r} acts before a second phase; 'fresh' has one."
            raise self.refused("methods", why, text, one=waiting[0])
        return _Compared(fresh, method, parse_method(whole)[1])

    @property
    def compared(self) -> tuple[_Compared, ...]:
        """The methods to compare, each with the base, and each once."""
        found: dict[Hashable, _Compared] = {}
        for text in self.methods:
            fresh, method, own = self._parsed(text, self.base or "")
            for one in [(method, own)] if own else self.variants(method.name):
                compared = _Compared(fresh, *one)
                found.setdefault(_identity(compared), compared)
        return tuple(found.values())

    @property
    def _tunes(self) -> bool:
        return self.compare == "methods"

    def _preset(self, name: str) -> Any:
        # Learning rate and weight decay go with the network, which figure 7 trains on another data set than its own.
        given = getattr(self, name) is not None or self.model in (None, presets_of(self.data)["model"])
        if name in ("learning_rate", "weight_decay") and not given:
            return next((preset[name] for preset in _PAPER if preset["model"] == self.model), None)
        return super()._preset(name)


def _written(value: float) -> str:
    # As trials are named.
    return f"{value:.12g}"


_PAPER = [preset for data, preset in PRESETS.items() if data != "digits"]


def _method_name(text: str) -> str:
    try:
        return find_method(text).name
    except SettingError as error:
        known = [*METHODS, *(alias for method in METHODS.values() for alias in method.aliases), "fresh"]
        check_choice(f"{_OWNER}.methods", text.strip(), known)
        raise error


def _waiting(method: MethodConfig) -> list[str]:
    """Return which methods act before a second phase only: at no step and no epoch."""
    return [
        part
        for part, own in method.settings.items()
        if METHODS[part].before_phase is not Method.before_phase
        and METHODS[part].end_epoch is Method.end_epoch
        and getattr(own, "interval", None) is None
    ]


def _identity(compared: _Compared) -> Hashable:
    return compared.fresh, unordered(compared.method)


def _grid(settings: WarmStartSettings) -> Iterator[TrialSpec]:
    plain = settings.method_config("plain")
    ratios, noises = settings.subset_ratios, settings.label_noises
    corners = set(product((min(ratios), max(ratios)), (min(noises), max(noises))))
    more = range(settings.first_seed + len(settings.seed_list), settings.first_seed + (settings.corner_seeds or 0))
    # The corners' further seeds come last: a study that is stopped has every cell.
    for seeds, cells in ((settings.seed_list, set(product(ratios, noises))), (more, corners)):
        for ratio, noise in product(ratios, noises):
            start: dict[str, Any] = {"subset_ratio": ratio, "label_noise": noise}
            written = {"ratio": _written(ratio), "noise": _written(noise)}
            name = "plain-" + "-".join(f"{key}{value}" for key, value in written.items())
            label = " ".join(f"{key} {value}" for key, value in written.items())
            for seed in seeds if (ratio, noise) in cells else ():
                yield trial(settings, plain, "full", seed, name=name, label=label, columns=start, **start)


def _methods(settings: WarmStartSettings) -> Iterator[TrialSpec]:
    start: dict[str, Any] = {"subset_ratio": settings.subset_ratio, "label_noise": settings.label_noise}
    for fresh, method, own in settings.compared:
        plain = method.name == "plain"
        label = "Fresh" if plain else f"Fresh + {label_of(method, own)}"
        alone = {"method": "fresh" if plain else f"fresh+{method.name}", **dict.fromkeys(start)}
        for seed in settings.seed_list:
            if fresh:
                yield trial(settings, method, "full", seed, own, label=label, columns=alone, fresh=True)
            else:
                yield trial(settings, method, "full", seed, own, columns=start, **start)


def _adam(settings: WarmStartSettings) -> Iterator[TrialSpec]:
    start: dict[str, Any] = {"subset_ratio": settings.subset_ratio, "label_noise": settings.label_noise}
    for beta1, beta2, epsilon in product(settings.beta1s, settings.beta2s, settings.epsilons):
        method = settings.method_config("adam", adam_betas=(beta1, beta2), adam_eps=epsilon)
        written = [_written(value) for value in (beta1, beta2, epsilon)]
        name, label = "adam-b{}-b{}-eps{}".format(*written), "β1={} β2={} ε={}".format(*written)
        columns = {**start, "beta1": beta1, "beta2": beta2, "epsilon": epsilon}
        for seed in settings.seed_list:
            yield trial(settings, method, "full", seed, name=name, label=label, columns=columns, **start)


_TRIALS = {"grid": _grid, "methods": _methods, "adam": _adam}


def trials(settings: WarmStartSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: cells, methods or settings of Adam in the order given; seeds innermost."""
    return tuple(_TRIALS[settings.compare](settings))


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("warm_start", WarmStartSettings, trials, str(__doc__), arguments, program=program)


if __name__ == "__main__":
    sys.exit(main())
