"""Cells of the paper's tables and figures: which run each of them is, in the order of their worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ht_ray.report.data.paper import METHODS_AT, OPTIMISER, SETTINGS
from ht_ray.vision import ContinualConfig, MethodConfig, ModelConfig, TrainingConfig, WarmStartConfig

__all__ = ["ACCESS", "COMPARED", "CONTINUAL", "IMAGES", "NOISES", "RATIOS", "SEEDS", "Cell", "Run", "all_cells", "plan"]

#: The network that the paper trains on each data set, in the order of its columns.
NETWORKS = dict(SETTINGS.keys())
#: Images to train and to test with in the data sets as published; a cell is not run on fewer.
IMAGES = {
    "mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "cifar100": (50_000, 10_000),
    "tiny-imagenet": (100_000, 10_000),
}
#: Seeds of the paper.
SEEDS = {"mnist": 5, "cifar10": 5, "cifar100": 5, "tiny-imagenet": 3}
RATIOS = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
#: Methods at ratio 0.1 and noise 0.5, by worth: those of appendix B.3, and those of which the paper has figures only.
COMPARED = (
    "plain",
    "fresh",
    "shrink_perturb",
    "hare_tortoise",
    "fresh+augment",
    "shrink_perturb+l2+augment",
    "hare_tortoise+l2+augment",
    "augment",
    "l2",
    "head_reset",
    "redo",
    "crelu",
    "regenerative",
    "spectral_decoupling",
    "ema",
    "self_distillation",
)
#: Methods and access to older data of figure 6.
CONTINUAL = ("plain", "hare_tortoise", "shrink_perturb", "head_reset", "ema")
ACCESS: tuple[Literal["full", "buffer"], ...] = ("full", "buffer")


@dataclass(frozen=True)
class Cell:
    """One cell: a data set, a network, a stream and a method, by the paper's protocol.

    Attributes
    ----------
    id
        Its name on the command line and in the names of files: letters, digits, ``.``, ``_`` and ``-``.
    method
        As tables call it: ``"fresh+augment"``.
    evaluate_every
        Epochs between two tests; training does not depend on it.

    Examples
    --------
    >>> cell = all_cells()[0]
    >>> cell.id, cell.stream.subset_ratio, cell.method_config.name
    ('cifar10-r0.1-n0.5-plain', 0.1, 'plain')
    """

    id: str
    data: str
    model: str
    stream: WarmStartConfig | ContinualConfig
    method: str
    evaluate_every: int

    @property
    def method_config(self) -> MethodConfig:
        """The method with the package's default settings, which are the paper's where it gives them."""
        return MethodConfig("+".join(part for part in self.method.split("+") if part != "fresh") or "plain")

    @property
    def model_config(self) -> ModelConfig:
        """The published network, as the method needs it."""
        return self.method_config.model(ModelConfig(self.model))

    def training(self, device: torch.device) -> TrainingConfig:
        """Return the paper's optimiser; on a GPU with autocast to bf16 and channels last."""
        rate, decay = OPTIMISER[SETTINGS[self.data, self.model]]
        fast = device.type == "cuda"
        return TrainingConfig(
            learning_rate=rate,
            weight_decay=decay,
            augment="crop_flip" if isinstance(self.stream, ContinualConfig) else "none",
            precision="bf16" if fast else "fp32",
            channels_last=fast,
        )


class Run(NamedTuple):
    """One seed of a cell."""

    cell: Cell
    seed: int

    @property
    def id(self) -> str:
        """The name of its files."""
        return f"{self.cell.id}-seed{self.seed}"


def _compared(data: str, method: str) -> Cell:
    if "fresh" in method.split("+"):
        name = method.replace("+", "-")
        return Cell(f"{data}-{name}", data, NETWORKS[data], WarmStartConfig(fresh=True), method, 10)
    return _warm(data, *METHODS_AT, method)


def _warm(data: str, ratio: float, noise: float, method: str = "plain") -> Cell:
    stream = WarmStartConfig(subset_ratio=ratio, label_noise=noise)
    name = method.replace("+", "-")
    return Cell(f"{data}-r{ratio:g}-n{noise:g}-{name}", data, NETWORKS[data], stream, method, 10)


def _grid(data: str) -> Iterator[Cell]:
    edges = {(ratio, noise) for ratio in (RATIOS[0], RATIOS[-1]) for noise in (NOISES[0], NOISES[-1])}
    everywhere = [(ratio, noise) for ratio in RATIOS for noise in NOISES]
    for ratio, noise in sorted(everywhere, key=lambda at: at not in edges):
        yield _warm(data, ratio, noise)


def _continual(data: str) -> Iterator[Cell]:
    for method in CONTINUAL:
        for access in ACCESS:
            stream = ContinualConfig(access=access)
            yield Cell(f"{data}-{access}-{method}", data, NETWORKS[data], stream, method, 1)


def all_cells() -> tuple[Cell, ...]:
    """Return every cell of tables 4 and 5, appendix B.3 and figure 6, the most valuable first.

    Examples
    --------
    >>> [cell.id for cell in all_cells()[:4]] # doctest: +NORMALIZE_WHITESPACE
    ['cifar10-r0.1-n0.5-plain', 'cifar10-fresh', 'cifar10-r0.1-n0.5-shrink_perturb',
     'cifar10-r0.1-n0.5-hare_tortoise']
    """
    cells: list[Cell] = [_compared("cifar10", method) for method in COMPARED]
    cells += [*_grid("mnist"), *_grid("cifar10"), *_continual("cifar10")]
    for data in ("cifar100", "tiny-imagenet"):
        cells += [_compared(data, method) for method in COMPARED]
        cells += [*_grid(data), *_continual(data)]
    # Plain warm-starting at ratio 0.1 and noise 0.5 is a cell of all three tables.
    return tuple({cell.id: cell for cell in cells}.values())


def plan(cells: Sequence[Cell], finished: Iterable[str]) -> tuple[Run, ...]:
    """Return the runs that are missing: the first seed of every cell in the given order, then the second, and so on.

    Parameters
    ----------
    finished
        `Run.id` of those that are there.
    """
    there = set(finished)
    runs = [Run(cell, seed) for seed in range(max(SEEDS.values())) for cell in cells if seed < SEEDS[cell.data]]
    return tuple(run for run in runs if run.id not in there)
