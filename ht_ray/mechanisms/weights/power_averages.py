"""Post-hoc averages: averages of the weights of any length, made after training from snapshots of two."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray._checks import check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.weight_copy import WeightCopy

__all__ = ["LONGEST", "PowerAverages", "check_sigma_rel", "posthoc_coefficients", "power_exponent"]

#: The relative length of the plain mean of all weights so far, the longest of these averages.
LONGEST = 12**-0.5


def check_sigma_rel(where: str, value: Any) -> None:
    """Refuse what is no relative length."""
    check_number(where, value, low=0, low_open=True, high=LONGEST)


def power_exponent(sigma_rel: float) -> float:
    """Return the exponent of the power-function average of a relative length.

    At step t such an average gives the weights of step s a share in proportion to ``s ** exponent``. Its relative
    length is the standard deviation of these shares in units of t, ``sqrt((e + 1) / ((e + 2) ** 2 * (e + 3)))``.

    Parameters
    ----------
    sigma_rel
        The relative length, above 0 and at most 0.2887, that of the plain mean.

    Raises
    ------
    SettingError
        If it is not.

    References
    ----------
    Karras et al. (2024). Analyzing and improving the training dynamics of diffusion models, section 3 and appendix C.
    arXiv:2312.02696.

    Examples
    --------
    >>> round(power_exponent(0.05), 2), round(power_exponent(0.1), 2)
    (16.97, 6.94)
    """
    check_sigma_rel("power_exponent: sigma_rel", sigma_rel)
    low, high = 0.0, 1.0 / sigma_rel
    # The length falls as the exponent grows; half the interval at a time, to the last bit.
    while low < (middle := (low + high) / 2) < high:
        longer = (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > sigma_rel**2
        low, high = (middle, high) if longer else (low, middle)
    return low


def posthoc_coefficients(
    steps: Sequence[float], sigma_rels: Sequence[float], step: float, sigma_rel: float
) -> list[float]:
    """Return how stored averages are combined into one of another length, by least squares of their profiles.

    Parameters
    ----------
    steps, sigma_rels
        At which step each stored average was taken, and its relative length.
    step, sigma_rel
        The same of the average that is wanted.

    Returns
    -------
    list of float
        A factor for each stored average; their sum is 1.

    References
    ----------
    Karras et al. (2024), appendix C.3 and algorithm 3; the sum as in the authors' code. arXiv:2312.02696.

    Examples
    --------
    >>> [round(abs(factor), 6) for factor in posthoc_coefficients([50, 100, 100], [0.1, 0.05, 0.1], 100, 0.1)]
    [0.0, 0.0, 1.0]
    """
    taken = torch.tensor([*steps, step], dtype=torch.float64)
    power = torch.tensor([power_exponent(one) for one in (*sigma_rels, sigma_rel)], dtype=torch.float64)
    # The inner product of each two profiles, (e + 1) * s ** e / t ** (e + 1) for s from 0 to t.
    earlier = taken[:, None] <= taken
    later_power = torch.where(earlier, power, power[:, None])
    first, last = torch.minimum(taken[:, None], taken), torch.maximum(taken[:, None], taken)
    products = (power[:, None] + 1) * (power + 1) / (power[:, None] + power + 1) * (first / last) ** later_power / last
    # Neighbouring snapshots are nearly the same: of all that do as well the least factors are taken.
    found = torch.linalg.lstsq(products[:-1, :-1], products[:-1, -1:], driver="gelsd").solution[:, 0]
    return list((found / found.sum()).tolist())


class PowerAverages:
    """Two averages of a network's weights, and snapshots of them, from which averages of any length are made.

    How long an average should be is known after training only. These two grow with the run: their momentum at step t
    is ``(1 - 1 / t) ** (exponent + 1)``, so that each always reaches back over the same share of it. Snapshots of both
    hold enough to tell what an average of another length would be, at each step that has a snapshot.

    Parameters
    ----------
    module
        The network. What is averaged is what `WeightCopy` averages; other buffers stay the network's.
    sigma_rels
        Relative lengths of the averages that are tracked, two or more, each above 0 and at most 0.2887. Default
        (0.05, 0.1), the paper's: good from about 0.015 to 0.25.
    average_buffers
        As of `WeightCopy`.

    Raises
    ------
    SettingError
        If a length is not accepted.

    References
    ----------
    Karras et al. (2024). Analyzing and improving the training dynamics of diffusion models, section 3.
    arXiv:2312.02696.

    Examples
    --------
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> averages = PowerAverages(layer)
    >>> for step in range(1, 101):
    ...     with torch.no_grad():
    ...         _ = layer.weight.fill_(step)
    ...     averages.update(layer)
    ...     if step % 10 == 0:
    ...         averages.take_snapshot()
    >>> exponent = power_exponent(0.2)
    >>> share = [(step / 100) ** (exponent + 1) - ((step - 1) / 100) ** (exponent + 1) for step in range(1, 101)]
    >>> mean = sum(step * one for step, one in zip(range(1, 101), share))
    >>> abs(averages.synthesize(layer, 0.2)["weight"].item() - mean) < 0.6
    True
    """

    def __init__(
        self,
        module: nn.Module,
        sigma_rels: Sequence[float] = (0.05, 0.1),
        *,
        average_buffers: Collection[str] = (),
    ) -> None:
        if len(set(sigma_rels)) < max(2, len(sigma_rels)):
            raise SettingError(
                owner="PowerAverages", field="sigma_rels", value=sigma_rels, accepted="two or more different numbers"
            )
        self.sigma_rels = tuple(map(float, sigma_rels))
        self._exponents = [power_exponent(one) for one in self.sigma_rels]
        self.copies = [WeightCopy(module, average_buffers=average_buffers) for _ in self.sigma_rels]
        #: Steps that the averages have followed.
        self.steps = 0
        #: By their step: each average's tensors by name, on the CPU.
        self.snapshots: dict[int, list[dict[str, Tensor]]] = {}

    def update(self, module: nn.Module) -> None:
        """Follow the network by a step."""
        self.steps += 1
        for copy, exponent in zip(self.copies, self._exponents, strict=True):
            copy.lerp_from(module, 1.0 - (1.0 - 1.0 / self.steps) ** (exponent + 1.0))

    def take_snapshot(self) -> None:
        """Keep the averages as they are at this step."""
        if self.steps:
            self.snapshots[self.steps] = [
                {name: value.to("cpu", copy=True) for name, value in copy.tensors.items()} for copy in self.copies
            ]

    @torch.no_grad()
    def synthesize(self, module: nn.Module, sigma_rel: float, step: int | None = None) -> dict[str, Tensor]:
        """Return the average of a relative length.

        Parameters
        ----------
        module
            The network that was followed. What is not averaged is as in it.
        sigma_rel
            The relative length, above 0 and at most 0.2887.
        step
            The step at which it is wanted: one with a snapshot, or the present. Default: the present.

        Returns
        -------
        dict
            Tensors by name, in the types and on the devices of the network's.

        Raises
        ------
        SettingError
            If the length is not accepted, or there is nothing of that step.
        ValueError
            If the network had another form at a snapshot.
        """
        check_sigma_rel("PowerAverages.synthesize: sigma_rel", sigma_rel)
        held = dict(self.snapshots)
        if self.steps:
            held[self.steps] = [dict(copy.tensors) for copy in self.copies]
        wanted = self.steps if step is None else step
        if wanted not in held:
            raise SettingError(
                owner="PowerAverages.synthesize",
                field="step",
                value=wanted,
                accepted=f"a step with a snapshot: {', '.join(map(str, sorted(held))) or 'there is none yet'}",
            )
        used = [
            (at, own, tensors)
            for at, averages in held.items()
            if at <= wanted
            for own, tensors in zip(self.sigma_rels, averages, strict=True)
        ]
        factors = posthoc_coefficients([at for at, _, _ in used], [own for _, own, _ in used], wanted, sigma_rel)
        averaged = {id(tensor) for tensor in self.copies[0].averaged(module)}
        result: dict[str, Tensor] = {}
        live = {**dict(module.named_buffers()), **dict(module.named_parameters())}
        for name, present in self.copies[0].tensors.items():
            if id(present) not in averaged:
                result[name] = live[name].detach().clone()
                continue
            total = torch.zeros(present.shape, dtype=torch.promote_types(present.dtype, torch.float64))
            for (at, _, tensors), factor in zip(used, factors, strict=True):
                if (stored := tensors.get(name)) is None or stored.shape != present.shape:
                    raise ValueError(f"at step {at} the network had another form: {name!r} was not what it is")
                total += factor * stored.cpu()
            result[name] = total.to(live[name].device, live[name].dtype)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        return {
            "steps": self.steps,
            "averages": [copy.state_dict() for copy in self.copies],
            "snapshots": dict(self.snapshots),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, of averages of the same lengths."""
        for copy, held in zip(self.copies, state["averages"], strict=True):
            copy.load_state_dict(held)
        self.steps, self.snapshots = int(state["steps"]), dict(state["snapshots"])
