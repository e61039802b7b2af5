"""Head Reset: the layers after the encoder get fresh weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.fresh import find_head, fresh_weights
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.mechanisms.weights.weight_copy import named_tensors
from ht_ray.methods.registry import register
from ht_ray.methods.reinitializer import Reinitializer
from ht_ray.methods.settings import grid, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["HeadReset"]


@register
class HeadReset(Reinitializer):
    """Head Reset (Nikishin et al. 2022, arXiv 2205.07802; arXiv 2406.02596, appendix A.4).

    All trainable parameters of the head and its statistics (float buffers, BatchNorm's counters) are set to their
    initial values or to fresh ones, and the optimiser forgets them. Frozen parameters are left alone, and so are other
    integer buffers: masks of the classes known so far, in heads that grow, are not learned. Parameters that the head
    shares with the backbone count as the head's.

    Parameters
    ----------
    module
        The network as initialised.
    head
        The head's name, the head itself, or None to find it (see `find_head`); a list of names for several parts.
    settings, seed, **changes
        As in `Method`; the seed is that of fresh weights.
    factory
        Builds the network again, for ``"fresh"`` with networks that have no ``reset_parameters`` methods.

    Raises
    ------
    SettingError
        If a setting is not accepted, or the network has no such head.

    Examples
    --------
    >>> import torch
    >>> from collections import OrderedDict
    >>> net = nn.Sequential(OrderedDict(backbone=nn.Linear(1, 1), head=nn.Linear(1, 1)))
    >>> method = HeadReset(net)
    >>> before = net.head.weight.item()
    >>> with torch.no_grad():
    ...     for parameter in net.parameters():
    ...         _ = parameter.fill_(7.0)
    >>> method.apply()
    >>> net.head.weight.item() == before, net.backbone.weight.item()
    (True, 7.0)
    """

    name = "head_reset"
    title = "Head Reset"
    rank = 2
    tried = grid(toward=("initial", "fresh"))
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"interval": 40_000})

    @dataclass(frozen=True, kw_only=True)
    class Settings(Reinitializer.Settings):
        """Settings; the defaults are those of arXiv 2406.02596."""

        toward: Literal["initial", "fresh"] = setting(
            "initial",
            "Shrink & Perturb and Head Reset: towards initial or fresh weights.",
            shared="toward",
        )
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def __init__(
        self,
        module: nn.Module,
        settings: Any = None,
        *,
        seed: int = 0,
        head: str | nn.Module | list[str] | tuple[str, ...] | None = None,
        factory: Callable[[], nn.Module] | None = None,
        **changes: Any,
    ) -> None:
        try:
            named = [find_head(module, one) for one in (head if isinstance(head, (list, tuple)) else [head])]
        except ValueError as error:
            raise SettingError(f"HeadReset: {error}") from error
        self.head: str | tuple[str, ...] = tuple(named) if isinstance(head, (list, tuple)) else named[0]
        super().__init__(module, settings, seed=seed, factory=factory, **changes)

    def _part(self) -> nn.Module:
        # Looked up each time: growing networks replace their head.
        if isinstance(self.head, str):
            return self.module.get_submodule(self.head)
        return nn.ModuleDict({name.replace(".", "_"): self.module.get_submodule(name) for name in self.head})

    def _change(self, tortoise: Tortoise | None) -> list[nn.Parameter]:
        part = self._part()
        # By identity, not by prefix: a tensor that is tied to the backbone's has its name there.
        whole_names = {tensor: name for name, tensor in named_tensors(self.module)}
        if self.initial is not None:
            target: Mapping[str, Tensor] = self.initial.tensors
        else:
            draw = derive_seed(self.seed, "head reset: fresh weights", self.applications)
            if self.factory is None:
                target = fresh_weights(part, seed=draw)
            else:
                whole = fresh_weights(self.module, seed=draw, factory=self.factory)
                target = {name: whole[whole_names[live]] for name, live in named_tensors(part)}
        # What was pruned stays pruned: torch keeps a weight's mask under its name.
        masks = {f"{name.removesuffix('_orig')}_mask" for name, _ in part.named_parameters() if name.endswith("_orig")}
        changed: list[nn.Parameter] = []
        for name, live in named_tensors(part):
            if isinstance(live, nn.Parameter):
                if not live.requires_grad:
                    continue
                changed.append(live)
            elif not (live.is_floating_point() or name.endswith("num_batches_tracked")) or name in masks:
                continue
            for tensor in (live, *([tortoise.weights[whole_names[live]]] if tortoise is not None else [])):
                tensor.copy_(target[name])
        return changed
