"""Settings of a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ht_ray._checks import check_choice, check_fields
from ht_ray._deprecated import renamed
from ht_ray.errors import SettingError

__all__ = ["ReplayConfig"]


@renamed(prioritised="prioritized")
@dataclass(frozen=True)
class ReplayConfig:
    """Settings of a replay; the defaults are those of DrQ(ε) on Atari-100k.

    Parameters
    ----------
    capacity : int, default 100000
        Frames held: one per step and one per start of an episode (by default 0.7 GB of 84 x 84 frames).
    batch_size : int, default 32
        Transitions in a batch.
    n_step : int, default 10
        Steps whose rewards are summed before the value of what follows is taken.
    discount : float, default 0.99
        Discount of one step.
    stack : int, default 4
        Frames in an observation.
    prioritized : bool, default False
        Draw transitions in proportion to ``priority ** priority_exponent`` instead of uniformly.
    priority_exponent : float, default 0.5
        α of Schaul et al. (arXiv 1511.05952). The default: with losses as priorities the square root of the loss, as
        BBF (arXiv 2305.19452) does.
    importance : float, default 0.5
        β of the same: weights are ``probability ** -importance``, divided by the batch's largest.
    published_n_step : bool, default False
        Bootstrap from the observation one step early, o_{t+m-1}, with the discount of m steps, also where the episode
        terminates on exactly the n-th step, as the code published with SPR and BBF does.
    device : str, default "cpu"
        Where frames are kept and batches come.
    graph : {"auto", "on", "off"}, default "auto"
        ``"auto"``, ``"on"`` or ``"off"``: whether CUDA graphs put batches together and set priorities. Default
        ``"auto"``: on a GPU.

    Raises
    ------
    SettingError
        If a number is out of its range, or torch knows no such device.

    Examples
    --------
    >>> ReplayConfig(discount=1.5)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: ReplayConfig.discount = 1.5: accepted is a number with 0 <= discount <= 1.
    """

    capacity: int = 100_000
    batch_size: int = 32
    n_step: int = 10
    discount: float = 0.99
    stack: int = 4
    prioritized: bool = False
    priority_exponent: float = 0.5
    importance: float = 0.5
    published_n_step: bool = False
    device: str = "cpu"
    graph: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self, "capacity", "batch_size", "n_step", "stack", low=1, integer=True)
        check_fields(self, "discount", "priority_exponent", "importance", low=0, high=1)
        try:
            torch.device(self.device)
        except RuntimeError as error:
            raise SettingError(f"ReplayConfig.device = {self.device!r}: {error}") from error
        check_choice("ReplayConfig.graph", self.graph, ["auto", "on", "off"])
