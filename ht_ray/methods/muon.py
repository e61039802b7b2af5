"""Muon: hidden weight matrices are stepped along the nearest isometry of their momentum, the rest by AdamW."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim import Muon as TorchMuon

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.matrices import weight_matrices
from ht_ray.methods.method import Method
from ht_ray.methods.plasticity_injection import InjectedHead
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["Muon", "MuonAdamW"]


class MuonAdamW(AdamW):
    """AdamW whose parameter groups with ``muon=True`` are stepped by ``torch.optim.Muon``.

    It is one optimiser: state, schedules, hooks and copies are those of any other. `Muon` makes it. It takes parameter
    groups; those with ``muon=True`` have all settings of ``torch.optim.Muon``.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override,unused-ignore]
        """Make a step of both; `closure` as in every optimiser."""
        loss = None if closure is None else torch.enable_grad()(closure)()  # type: ignore[no-untyped-call,unused-ignore]
        # Loading a state exchanges what both share, so that they get it again.
        for kind in (TorchMuon, AdamW):
            groups = [group for group in self.param_groups if bool(group.get("muon")) == (kind is TorchMuon)]
            if groups:
                part = self._parts.get(kind) or self._parts.setdefault(kind, kind(groups))
                part.param_groups, part.state = groups, self.state
                part.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Adam's looks for a step count of every parameter.
        Optimizer.__setstate__(self, state)

    @property
    def _parts(self) -> dict[type[Optimizer], Optimizer]:
        # Made when they are first needed, as copies of an optimiser, and those that are loaded, have state alone.
        parts: dict[type[Optimizer], Optimizer] = self.__dict__.setdefault("_stepping", {})
        return parts


@register
class Muon(Method):
    """Muon for the hidden weight matrices, AdamW for all else (Jordan et al. 2024; ``torch.optim.Muon``).

    The momentum of a matrix becomes, by five Newton-Schulz steps in bfloat16, about the nearest isometry, and that is
    the step::

        m <- momentum * m + (1 - momentum) * g
        w <- (1 - lr * decay) * w - lr * scale * isometry((1 - momentum) * g + momentum * m)

    with ``scale = 0.2 * sqrt(max(rows, columns))``, at which a step is as large as one of AdamW and has its learning
    rate and decay (Liu et al. 2025, arXiv 2502.16982), or ``sqrt(max(1, rows / columns))``, as Jordan has it.

    Matrices are the two-dimensional weights of linear and attention layers but the last: torch's Muon takes no
    convolutions. Learning rate schedules act on both. The loop's optimiser has to be AdamW, and gives way to
    `MuonAdamW`, one optimiser for both; a loop of your own calls `configure_optimizer` with each that it makes.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`; nothing is drawn.

    Raises
    ------
    SettingError
        If a setting is out of its range, or the network has no hidden weight matrices.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> optimizer = Muon(net).configure_optimizer(AdamW(net.parameters(), lr=0.01))
    >>> [(group["muon"], len(group["params"])) for group in optimizer.param_groups]
    [(False, 3), (True, 1)]
    """

    name = "muon"
    title = "Muon"
    rank = -3
    tried = grid(learning_rate=(3e-4, 1e-3, 3e-3, 1e-2))
    not_for_agents = "an agent has its own optimiser"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are torch's, but for `scale`."""

        learning_rate: float | None = setting(
            None, "Of the hidden matrices; by default that of all else.", low=0, low_open=True
        )
        momentum: float = setting(0.95, "Decay of the hidden matrices' momentum.", low=0, high=1, high_open=True)
        scale: Literal["match_rms_adamw", "original"] = setting(
            "match_rms_adamw", "Factor of their steps: as large as AdamW's, or original as Jordan has it."
        )

    settings: Settings

    def _begin(self) -> None:
        if not self.matrices():
            raise SettingError(
                owner="MethodConfig",
                field="name",
                value=self.name,
                reason=": the network has no weight matrices before the last layer, and torch.optim.Muon takes nothing "
                "else: no convolutions.",
            )

    def matrices(self) -> dict[str, nn.Parameter]:
        """Return the hidden weight matrices, by name."""
        parts = [part for part in self.module.modules() if isinstance(part, InjectedHead)]
        heads = [self.module, *(head for part in parts for head in part.children())]
        layers = ([part.weight for part in head.modules() if isinstance(part, nn.Linear)] for head in heads)
        last = {weights[-1] for weights in layers if weights}
        return {name: w for name, w in weight_matrices(self.module).items() if w.dim() == 2 and w not in last}

    def not_packed(self) -> str:
        """Return why it cannot be packed."""
        return "muon has an optimiser of its own, and a pack steps all its members with AdamW"

    def configure_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return `MuonAdamW` over the groups of `optimizer`; itself, if it is one.

        Raises
        ------
        SettingError
            If it is not AdamW.
        """
        if isinstance(optimizer, MuonAdamW):
            return optimizer
        if type(optimizer) is not AdamW:
            raise SettingError(
                f"Muon: the optimiser is {type(optimizer).__name__}: accepted is torch.optim.AdamW, which steps all "
                "but the hidden weight matrices."
            )
        own = self.settings
        hidden: set[Tensor] = set(self.matrices().values())
        rest, moved = [], []
        for group in optimizer.param_groups:
            rest.append({**group, "params": [p for p in group["params"] if p not in hidden], "muon": False})
            if matrices := [p for p in group["params"] if p in hidden]:
                lr = group["lr"] if own.learning_rate is None else own.learning_rate
                made = TorchMuon(matrices, lr, group["weight_decay"], momentum=own.momentum, adjust_lr_fn=own.scale)
                moved.append({**made.param_groups[0], "muon": True})
        return MuonAdamW([*rest, *moved])
