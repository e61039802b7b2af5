"""Sweep momentum and reset interval of Hare & Tortoise, beside plain training, EMA, Shrink & Perturb and Head Reset.

On the continual stream by default; ``--stream warm_start`` is the setting of the paper's appendix D. Run it alone
(``python tune_configs/ablation.py``), on a cluster (``--address auto``), or as a submitted job
(``ray job submit --working-dir . -- python tune_configs/ablation.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ht_ray._checks import check_choice, check_number
from ht_ray.sweep import TrialSpec
from tune_configs.command_line import main as run_main
from tune_configs.settings import VisionSettings, check_distinct
from tune_configs.trials import trial

__all__ = ["AblationSettings", "main", "trials"]


@dataclass(frozen=True)
class AblationSettings(VisionSettings):
    """Settings of the momentum x reset interval study."""

    momenta: tuple[float, ...] = (0.9, 0.97, 0.99)
    """Momenta of the tortoise to try."""
    reset_intervals: tuple[int, ...] = (1, 5, 10)
    """Reset intervals to try."""
    baselines: tuple[str, ...] = ("plain", "ema", "shrink_perturb", "head_reset")
    """Methods to compare with; ema is run with every momentum."""
    access: str = "full"
    """Continual: full access to what has arrived, or buffer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("AblationSettings.access", self.access, ["full", "buffer"])
        for momentum in self.momenta:
            check_number("AblationSettings.momenta", momentum, low=0, high=1, high_open=True)
        for interval in self.reset_intervals:
            check_number("AblationSettings.reset_intervals", interval, low=1, integer=True)
        for name in self.baselines:
            check_choice("AblationSettings.baselines", name, ["plain", "ema", "shrink_perturb", "head_reset"])
        check_distinct("AblationSettings.momenta", self.momenta)
        check_distinct("AblationSettings.reset_intervals", self.reset_intervals)
        if self.baselines:
            check_distinct("AblationSettings.baselines", self.baselines)


def trials(settings: AblationSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: the baselines first, then the grid; seeds innermost."""
    methods = [
        settings.method_config(name, momentum=momentum)
        for name in settings.baselines
        for momentum in (settings.momenta if name == "ema" else settings.momenta[:1])
    ]
    methods += [
        settings.method_config("hare_tortoise", momentum=momentum, reset_interval=interval)
        for momentum in settings.momenta
        for interval in settings.reset_intervals
    ]
    return tuple(trial(settings, method, settings.access, seed) for method in methods for seed in settings.seed_list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("ablation", AblationSettings, trials, str(__doc__), arguments)


if __name__ == "__main__":
    sys.exit(main())
