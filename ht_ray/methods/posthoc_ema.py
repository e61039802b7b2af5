"""Post-hoc EMA: two averages and their snapshots are kept while a network trains; their length is chosen afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ht_ray.mechanisms.weights.buffers import check_buffers_named, check_patterns
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.power_averages import PowerAverages, check_sigma_rel
from ht_ray.mechanisms.weights.spectral_norm import fit_spectral_norm
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.settings import MethodSettings, interval_unit, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["PosthocEMA"]


def _check_lengths(where: str, value: Any) -> None:
    for one in value if isinstance(value, (tuple, list)) else (value,):
        check_sigma_rel(where, one)


class PosthocEMA(Method):
    """Averages of the weights whose length is chosen after training (Karras et al. 2024, arXiv 2312.02696).

    Training and prediction are as without it. It follows the network after every step with two averages, and keeps
    snapshots of both; `network` makes of them what an average of any length would have been, at any step with a
    snapshot. It is no name of the studies: give it to ``fit`` as a method over the network, with others by ``+``, or to
    ``MethodPlugin`` as a class.

    Snapshots are taken after every `interval` epochs, counted from 1 in each phase, and a phase's last, or after every
    so many steps of the whole run. They lie in memory and in checkpoints: each is two networks. The network must keep
    its form.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`.

    Attributes
    ----------
    averages : PowerAverages
        The averages and their snapshots.

    Raises
    ------
    SettingError
        If a setting is out of its range, or one of `average_buffers` matches nothing.

    Examples
    --------
    >>> net = nn.Linear(2, 1)
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> method = PosthocEMA(net, interval=5, unit="steps")
    >>> for _ in range(20):
    ...     optimizer.zero_grad()
    ...     net(torch.randn(8, 2)).square().mean().backward()
    ...     optimizer.step()
    ...     method.after_step()
    >>> list(method.averages.snapshots)
    [5, 10, 15, 20]
    >>> short, long = method.network(0.02), method.network(0.25)
    """

    name = "posthoc_ema"
    title = "Post-hoc EMA"
    # After all that changes weights.
    rank = 7
    capturable = True
    not_for_agents = "its averages are made after training"
    counters = ("epochs",)

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the lengths are the paper's."""

        sigma_rels: tuple[float, ...] = setting(
            (0.05, 0.1),
            "Relative lengths of the averages that are tracked, two or more: the standard deviation of the time that "
            "an average looks back, in units of the run so far; above 0, at most 0.2887.",
            check=_check_lengths,
        )
        interval: int | None = setting(
            1, "A snapshot is kept after every so many epochs, and a phase's last, or steps; None keeps none.", low=1
        )
        unit: Literal["epochs", "steps"] = interval_unit()
        average_buffers: tuple[str, ...] = setting(
            (),
            "Names, with wildcards, of more floating-point buffers that are averaged.",
            check=check_patterns,
        )

    settings: Settings

    def _begin(self) -> None:
        own = self.settings
        check_buffers_named("PosthocEMA: average_buffers", own.average_buffers, self.module)
        self.averages = PowerAverages(self.module, own.sigma_rels, average_buffers=own.average_buffers)
        self.epochs = 0

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Count epochs from 0."""
        self.epochs = 0

    def grown(self) -> None:
        """Follow what the network has grown."""
        for copy in self.averages.copies:
            copy.sync(self.module)

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Follow the network, and keep a snapshot if that is due in steps."""
        self.averages.update(self.module)
        if self._due("steps", self.averages.steps):
            self.averages.take_snapshot()

    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> None:
        """Keep a snapshot if that is due in epochs, or the phase's last."""
        self.epochs += 1
        own = self.settings
        if self._due("epochs", self.epochs) or (last and own.unit == "epochs" and own.interval is not None):
            self.averages.take_snapshot()

    @torch.no_grad()
    def network(self, sigma_rel: float, step: int | None = None) -> nn.Module:
        """Return the network with an average of its weights, as a plain module in evaluation mode.

        Parameters
        ----------
        sigma_rel
            The relative length of the average, above 0 and at most 0.2887.
        step
            The step of the run at which it is wanted: one with a snapshot (``averages.snapshots``). Default: the
            present.

        Raises
        ------
        SettingError, ValueError
            As `ht_ray.mechanisms.PowerAverages.synthesize`.
        """
        weights = self.averages.synthesize(self.module, sigma_rel, step)
        held = WeightCopy(self.module)
        for name, tensor in held.tensors.items():
            tensor.copy_(weights[name])
        held.swap(self.module)
        try:
            fit_spectral_norm(self.module)
            copied = detached_copy(self.module).eval()
        finally:
            held.swap(self.module)
        for parameter in copied.parameters():
            parameter.grad = None
        return copied

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; settings are not part of it."""
        return {**self.averages.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.grown()
        self.averages.load_state_dict(state)
        super().load_state_dict(state)
