"""Compare methods over the phases of a stream, with full access to the past and with a limited buffer.

Run it alone (``python tune_configs/continual.py``), on a cluster (``--address auto``), or as a submitted job
(``ray job submit --working-dir . -- python tune_configs/continual.py``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ht_ray._checks import check_choice
from ht_ray.sweep import TrialSpec
from ht_ray.vision import TaskStreamConfig
from ht_ray.vision.data.benchmark_stream import BenchmarkStreamConfig
from tune_configs.command_line import main as run_main
from tune_configs.settings import VisionSettings, check_distinct, unordered
from tune_configs.trials import trial

__all__ = ["ContinualSettings", "main", "trials"]

#: Epochs between two resets of Hare & Tortoise (arXiv 2406.02596).
_INTERVAL = 5


@dataclass(frozen=True)
class ContinualSettings(VisionSettings):
    """Settings of the comparison of methods."""

    most_used: ClassVar[tuple[str, ...]] = (
        *("methods", "data", "data_root", "model", "access", "phases", "epochs", "momentum", "reset_interval"),
        *("seeds", "indicators_every", "results_dir", "resume", "gpus_per_trial", "address"),
    )

    methods: tuple[str, ...] = ("plain", "ema", "shrink_perturb", "head_reset", "hare_tortoise")
    """Methods to compare; several joined by + are combined: hare_tortoise+head_reset. Settings of its own follow a
    colon: l2:l2_strength=0.01. A method of yours is my_package.my_module:MyMethod."""
    access: tuple[Literal["full", "buffer", "new"], ...] = ("full", "buffer")
    """Continual: all that has arrived, a limited buffer of it, or the new chunk alone; each is compared by itself."""
    momentum: float = 0.99
    """Of the tortoise, in Hare & Tortoise, EMA and self-distillation."""
    reset_interval: int | None = None
    """Of Hare & Tortoise; by default 5 epochs, or a task's, where it has fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = "ContinualSettings"
        for access in self.access:
            check_choice(f"{owner}.access", access, ["full", "buffer", "new"])
        check_distinct(owner, "access", self.access)
        check_distinct(owner, "methods", self.methods, same=lambda text: unordered(self.method_config(text)))

    @property
    def method_defaults(self) -> dict[str, Any]:
        """See `VisionSettings.method_defaults`."""
        return {**super().method_defaults, "reset_interval": self._interval}

    @property
    def _interval(self) -> int:
        if self.reset_interval is not None:
            return self.reset_interval
        stream = self._stream_config()
        # An interval that is longer than a task never ends, as epochs are counted from 1 in each.
        tasks = isinstance(stream, (TaskStreamConfig, BenchmarkStreamConfig)) and self.reset_unit == "epochs"
        return min(_INTERVAL, stream.value("task_epochs")) if tasks else _INTERVAL

    def _has_meaning(self, name: str) -> bool:
        return name == "access" or super()._has_meaning(name)  # of a warm start there is one, whatever is given


def trials(settings: ContinualSettings) -> tuple[TrialSpec, ...]:
    """Return the planned trials: by access, method and seed."""
    methods = {unordered(method): (method, own) for text in settings.methods for method, own in settings.variants(text)}
    modes = settings.access if settings.stream == "continual" else settings.access[:1]
    return tuple(
        trial(settings, method, access, seed, own)
        for access in modes
        for method, own in methods.values()
        for seed in settings.seed_list
    )


def main(arguments: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run the study; see ``--help``."""
    return run_main("continual", ContinualSettings, trials, str(__doc__), arguments, program=program)


if __name__ == "__main__":
    sys.exit(main())
