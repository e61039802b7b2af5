"""Compare methods over the phases of a stream, with full access to the past and with a limited buffer.

Run it alone (``python tune_configs/continual.py``), on a cluster (``--address auto``), or as a submitted job
(``ray job submit --working-dir . -- python tune_configs/continual.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ht_ray._checks import check_choice, check_number
from ht_ray.sweep import TrialSpec
from ht_ray.vision import MethodConfig, parse_method
from tune_configs.command_line import main as run_main
from tune_configs.settings import VisionSettings, check_distinct
from tune_configs.trials import trial

__all__ = ["ContinualSettings", "main", "trials"]


@dataclass(frozen=True)
class ContinualSettings(VisionSettings):
    """Settings of the comparison of methods."""

    methods: tuple[str, ...] = ("plain", "ema", "shrink_perturb", "head_reset", "hare_tortoise")
    """Methods to compare; several joined by + are combined: hare_tortoise+head_reset. Settings of its own follow a
    colon: l2:l2_strength=0.01 beside l2:l2_strength=0.1."""
    access: tuple[str, ...] = ("full", "buffer")
    """Continual: full access to what has arrived, a limited buffer, or both."""
    momentum: float = 0.99
    """Of the tortoise, in Hare & Tortoise, EMA and self-distillation."""
    reset_interval: int = 5
    """Of Hare & Tortoise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("ContinualSettings.momentum", self.momentum, low=0, high=1, high_open=True)
        check_number("ContinualSettings.reset_interval", self.reset_interval, low=1, integer=True)
        for access in self.access:
            check_choice("ContinualSettings.access", access, ["full", "buffer"])
        check_distinct("ContinualSettings.access", self.access)
        check_distinct("ContinualSettings.methods", self.methods, same=self._identity)
        for method in self.methods:
            self._method(method)

    def _method(self, text: str) -> MethodConfig:
        return self.method_config(text, momentum=self.momentum, reset_interval=self.reset_interval)

    def _identity(self, text: str) -> Hashable:
        # However a method is spelt, in whatever order it is combined, and whether a setting is given or implied.
        return replace(self._method(text), name="+".join(sorted(self._method(text).parts)))


def trials(settings: ContinualSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: by access, method and seed."""
    methods = [(settings._method(text), parse_method(text)[1]) for text in settings.methods]
    modes = settings.access if settings.stream == "continual" else settings.access[:1]
    return tuple(
        trial(settings, method, access, seed, own)
        for access in modes
        for method, own in methods
        for seed in settings.seed_list
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("continual", ContinualSettings, trials, str(__doc__), arguments)


if __name__ == "__main__":
    sys.exit(main())
