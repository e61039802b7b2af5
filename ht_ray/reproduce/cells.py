"""Cells of the paper's tables and figures: which run each of them is, in the order of their worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch

from ht_ray.errors import SettingError
from ht_ray.report.atari.reference import AGENT_STEPS, EVALUATION_EPISODES, atari_games
from ht_ray.report.data.paper import METHODS_AT, OPTIMISER, SETTINGS
from ht_ray.vision import ContinualConfig, MethodConfig, ModelConfig, TrainingConfig, WarmStartConfig

if TYPE_CHECKING:
    from ht_ray.agents import AgentConfig, AtariConfig

__all__ = [
    "ACCESS",
    "COMPARED",
    "CONTINUAL",
    "IMAGES",
    "NOISES",
    "RATIOS",
    "SEEDS",
    "TABLE_1",
    "AtariCell",
    "Cell",
    "Run",
    "all_cells",
    "plan",
]

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
SEEDS = {"mnist": 5, "cifar10": 5, "cifar100": 5, "tiny-imagenet": 3, "atari100k": 5}
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
#: The agents of table 1 by their variants here, in its order.
TABLE_1 = {
    "drq": "DrQ",
    "drq+sp": "DrQ + S&P",
    "drq+ht": "DrQ + H&T",
    "drq+hr20k": "DrQ + HR 20k",
    "drq+hr40k": "DrQ + HR 40k",
    "drq+hr40k+ht": "DrQ + HR 40k + H&T",
    "bbf-spr0": "BBF without SPR",
    "bbf-spr0+ht": "BBF without SPR + H&T",
    "bbf": "BBF",
}


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


@dataclass(frozen=True)
class AtariCell:
    """One agent on one game of Atari-100k, by its protocol: what table 1 is an aggregate of.

    Attributes
    ----------
    id
        As in `Cell`.
    variant
        Of `ht_ray.agents.AGENT_VARIANTS`, with its settings.
    steps, episodes
        Steps of the agent in training, and whole games that its score is the mean of.

    Examples
    --------
    >>> cell = next(cell for cell in all_cells() if isinstance(cell, AtariCell))
    >>> cell.id, cell.game, cell.variant
    ('atari100k-RoadRunner-drq', 'RoadRunner', 'drq')
    """

    data: ClassVar[str] = "atari100k"

    id: str
    game: str
    variant: str
    steps: int = AGENT_STEPS
    episodes: int = EVALUATION_EPISODES

    # Imported where they are used: they need what a machine with torch alone lacks.
    @property
    def agent(self) -> AgentConfig:
        """The agent's settings."""
        from ht_ray.agents import agent_variant

        return agent_variant(self.variant)

    @property
    def env(self) -> AtariConfig:
        """The protocol of the games."""
        from ht_ray.agents import AtariConfig

        return AtariConfig()

    def precision(self, device: torch.device) -> str:
        """Return the precision in which the agent is trained on `device`: its own default there."""
        return self.agent.gpu_precision if device.type == "cuda" else "fp32"

    def check_available(self) -> None:
        """Raise `SettingError` unless games can be played here."""
        try:
            _ = self.env
        except ImportError as error:
            raise SettingError(f"{self.data}: games need gymnasium, ale_py and cv2 ({error}).") from error


class Run(NamedTuple):
    """One seed of a cell."""

    cell: Cell | AtariCell
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


def _games(*variants: str) -> Iterator[AtariCell]:
    # What this repository's own figures are of goes first.
    for game in sorted(atari_games(), key=lambda name: name != "RoadRunner"):
        for variant in variants:
            yield AtariCell(f"atari100k-{game}-{variant.replace('+', '-')}", game, variant)


def all_cells() -> tuple[Cell | AtariCell, ...]:
    """Return every cell of tables 1, 4 and 5, appendix B.3 and figure 6, the most valuable first.

    Examples
    --------
    >>> [cell.id for cell in all_cells()[:4]] # doctest: +NORMALIZE_WHITESPACE
    ['cifar10-r0.1-n0.5-plain', 'cifar10-fresh', 'cifar10-r0.1-n0.5-shrink_perturb',
     'cifar10-r0.1-n0.5-hare_tortoise']
    """
    compared = [_compared("cifar10", method) for method in COMPARED]
    cells: list[Cell | AtariCell] = [*compared[:4], *_games("drq", "drq+ht"), *compared[4:]]
    cells += [*_grid("mnist"), *_grid("cifar10"), *_continual("cifar10")]
    for data in ("cifar100", "tiny-imagenet"):
        cells += [_compared(data, method) for method in COMPARED]
        cells += [*_grid(data), *_continual(data)]
    cells += _games(*TABLE_1)
    # Plain warm-starting at ratio 0.1 and noise 0.5 is a cell of all three tables; DrQ's first cells stand above.
    return tuple({cell.id: cell for cell in cells}.values())


def plan(cells: Sequence[Cell | AtariCell], finished: Iterable[str]) -> tuple[Run, ...]:
    """Return the runs that are missing: the first seed of every cell in the given order, then the second, and so on.

    Parameters
    ----------
    finished
        `Run.id` of those that are there.
    """
    there = set(finished)
    runs = [Run(cell, seed) for seed in range(max(SEEDS.values())) for cell in cells if seed < SEEDS[cell.data]]
    return tuple(run for run in runs if run.id not in there)
