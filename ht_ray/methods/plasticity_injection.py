"""Plasticity injection: the head is frozen, and a new one is added that learns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.fresh import find_head, fresh_weights
from ht_ray.mechanisms.weights.optimizer_state import clear_optimizer_state, each_optimizer
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.mechanisms.weights.spectral_norm import fit_spectral_norm
from ht_ray.mechanisms.weights.weight_copy import named_tensors
from ht_ray.methods.method import FIRST, Method, Phase
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting, treats_tortoise
from ht_ray.methods.tortoise import Tortoise

__all__ = ["InjectedHead", "PlasticityInjection"]


class InjectedHead(nn.Module):
    """The head ``frozen(x) + (grown(x) - offset(x))``, of which only `grown` learns.

    `offset` starts equal to `grown`, so this head starts equal to `frozen`. Both frozen parts always compute in
    evaluation mode: no dropout, and BatchNorm with its statistics. `grown` follows the network's mode.

    Parameters
    ----------
    frozen
        The old head, which is frozen in place.
    grown
        A head of its architecture with new weights.

    Examples
    --------
    >>> old = nn.Linear(2, 1)
    >>> head, x = InjectedHead(old, nn.Linear(2, 1)), torch.randn(5, 2)
    >>> bool((head(x) == old(x)).all())
    True
    >>> [name for name, parameter in head.named_parameters() if parameter.requires_grad]
    ['grown.weight', 'grown.bias']
    """

    def __init__(self, frozen: nn.Module, grown: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.grown = grown
        self.offset = detached_copy(grown)
        self.freeze()
        self.train(grown.training)

    def freeze(self) -> None:
        """Stop all but `grown` from learning, and drop the gradients there are."""
        for part in (self.frozen, self.offset):
            for parameter in part.parameters():
                parameter.requires_grad_(False)
                parameter.grad = None

    def train(self, mode: bool = True) -> InjectedHead:
        """Set the mode of `grown`; the frozen parts stay in evaluation mode."""
        super().train(mode)
        self.frozen.eval()
        self.offset.eval()
        return self

    def forward(self, *inputs: Any) -> Tensor:
        """Map what the old head took to what it returned, a tensor."""
        # The difference first: it is exactly zero while the two are equal, and so changes no bit of the sum.
        output: Tensor = self.frozen(*inputs) + (self.grown(*inputs) - self.offset(*inputs))
        return output


@register
class PlasticityInjection(Method):
    """Plasticity injection (Nikishin et al. 2023, arXiv 2305.15555).

    The head ``h`` is frozen and becomes ``h(x) + h1(x) - h2(x)``, where ``h1`` is drawn and learns, and ``h2`` is
    its frozen copy: the predictions do not change at that moment, nor does the number of trainable parameters. They do
    not change in training mode either, unless the head has dropout or BatchNorm (see `InjectedHead`).

    The new head takes the old one's places in the optimiser, whose state of them starts at zero. Of the head, trainable
    parameters and statistics are drawn; parameters that were frozen before, and integer buffers, are the old ones in
    all three parts.

    A tortoise keeps its average of the old head, and so its predictions. Frozen means without gradients: a reset to
    the tortoise sets the old head to its average, like everything else.

    A head that is one linear layer learns after the injection as it would have without: the sum of the three is that
    layer, with the same gradients. Only the optimiser's state and its weight decay (of the new part alone) differ. A
    warning says so; the paper's heads have hidden layers.

    Not handled: heads that return anything but one tensor, and heads that grow classes after the injection (each of
    the three parts grows by itself, so the outputs of new classes are no longer those of one new head).

    Parameters
    ----------
    module
        The network.
    head
        The head's name, the head itself, or None to find it (see `find_head`).
    settings, seed, **changes
        As in `Method`; the seed is that of the new heads.
    factory
        Makes the network as it was before any injection, for heads that have no ``reset_parameters`` methods.

    Raises
    ------
    SettingError
        If a setting is not accepted, the network has no such head, shares its tensors with other parts, or no new one
        can be drawn.

    Examples
    --------
    >>> from collections import OrderedDict
    >>> net = nn.Sequential(OrderedDict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 1)))
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> x = torch.randn(5, 2)
    >>> before = net(x)
    >>> method = PlasticityInjection(net)
    >>> method.apply(optimizer=optimizer)
    >>> bool((net(x) == before).all()), method.applications
    (True, 1)
    >>> optimizer.param_groups[0]["params"][2] is net.head.grown.weight
    True
    """

    name = "plasticity_injection"
    title = "Plasticity Injection"
    rank = 3
    tried = grid(times=(1, 2, 4))
    acts_before_phases = True
    capturable = True
    counters = ("applications",)
    not_for_agents = "it adds parts to the network before a phase, and an agent's training has no phases"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the default is the paper's."""

        times: int | None = setting(
            1,
            "Before how many phases, from the second on, the head is frozen and a new one added; None: before each.",
            was="injection_times",
            low=1,
        )
        reinitialize_tortoise: bool = treats_tortoise()

    settings: Settings

    def __init__(
        self,
        module: nn.Module,
        settings: Any = None,
        *,
        seed: int = 0,
        head: str | nn.Module | None = None,
        factory: Callable[[], nn.Module] | None = None,
        **changes: Any,
    ) -> None:
        super().__init__(module, settings, seed=seed, **changes)
        self.factory = factory
        #: How often a head was injected.
        self.applications = 0
        try:
            self.head = find_head(module, head)
            self._refuse_shared()
            self._new_head()  # so that what cannot be drawn is known before the first phase, not after it
        except ValueError as error:
            raise SettingError(f"PlasticityInjection: {error}") from error
        parts = [part for part in self._part().modules() if not list(part.children())]
        acting = [part for part in parts if not isinstance(part, (nn.Identity, nn.Flatten))]
        if len(acting) == 1 and isinstance(acting[0], nn.Linear):
            warnings.warn(
                f"PlasticityInjection: head = {self.head!r} is one linear layer: the injection changes no more than "
                "the optimiser's state and its weight decay. Take a head with hidden layers.",
                SettingWarning,
                stacklevel=2,
            )

    def _part(self) -> nn.Module:
        # Looked up each time: it is replaced.
        return self.module.get_submodule(self.head)

    def _injected(self) -> list[InjectedHead]:
        """Return the injected heads, the last one first."""
        part, found = self._part(), []
        while isinstance(part, InjectedHead):
            found.append(part)
            part = part.frozen
        return found

    def _refuse_shared(self) -> None:
        ours = {id(tensor) for _, tensor in named_tensors(self._part())}
        everywhere = [
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        ]
        shared = [n for n, tensor in everywhere if id(tensor) in ours and not n.startswith(f"{self.head}.")]
        if shared:
            raise ValueError(
                f"head = {self.head!r} shares {shared} with the rest of the network: freezing it would too"
            )

    @torch.no_grad()
    def _new_head(self) -> nn.Module:
        injected = self._injected()
        like = injected[0].grown if injected else self._part()
        factory = self.factory
        fresh = fresh_weights(
            like,
            seed=derive_seed(self.seed, "plasticity injection: fresh weights", self.applications),
            factory=None if factory is None else lambda: factory().get_submodule(self.head),
        )
        new = detached_copy(like)
        for name, tensor in named_tensors(new):
            if isinstance(tensor, nn.Parameter):
                tensor.grad = None
                drawn = tensor.requires_grad
            else:
                drawn = tensor.is_floating_point() or name.endswith("num_batches_tracked")
            if drawn:
                tensor.copy_(fresh[name])
        fit_spectral_norm(new)
        return new

    def _inject(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Inject once; return the parameters that learned, each with the one that learns in its place."""
        injected = self._injected()
        learned = injected[0].grown if injected else self._part()
        new = self._new_head()
        pairs = list(zip(learned.parameters(), new.parameters(), strict=True))
        self.module.set_submodule(self.head, InjectedHead(self._part(), new))
        self.applications += 1
        return pairs

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Inject before every phase but the first, unless that was done often enough."""
        if not phase.begins:
            return
        self.grown()
        if phase.number > 0:
            self.apply(tortoise, optimizer)

    def grown(self) -> None:
        """Keep frozen what is frozen, also where a growing network has replaced parameters."""
        for part in self._injected()[:1]:
            part.freeze()

    def apply(self, tortoise: Tortoise | None = None, optimizer: Any = None) -> None:
        """Inject a new head now, unless that was done `times` times.

        Parameters
        ----------
        tortoise
            The network's tortoise, which keeps its average of the old head; with None, one that there is takes the
            hare's old head when it next follows it.
        optimizer
            Whose groups get the new head's parameters in the places of the old one's, and which forgets these.

        Raises
        ------
        RuntimeError
            While the tortoise predicts: its values are in the hare then.
        ValueError
            If the head shares tensors with other parts by now.
        """
        self._check_not_predicting(tortoise)
        if self.settings.times is not None and self.applications >= self.settings.times:
            return
        self._refuse_shared()
        if tortoise is not None:
            tortoise.weights.sync(self.module)
        names = [name for name, _ in named_tensors(self._part())]
        successors = dict(self._inject())
        if tortoise is not None:
            tortoise.weights.rename({f"{self.head}.{name}": f"{self.head}.frozen.{name}" for name in names})
            tortoise.weights.sync(self.module)
        if optimizer is not None:
            clear_optimizer_state(optimizer, successors)
            for one in each_optimizer(optimizer):
                for group in one.param_groups:
                    group["params"][:] = [successors.get(parameter, parameter) for parameter in group["params"]]

    def not_packed(self) -> str:
        """Return why it cannot be packed."""
        return "plasticity_injection gives each network another structure"

    def rebuild(self, state: Mapping[str, Any]) -> None:
        """Give a newly made network the structure it had, so that its own state can be loaded then.

        To resume: make the network, this object, and the tortoise; `rebuild`; make the optimiser over the trainable
        parameters; load the states of network, optimiser, tortoise and this object.

        Parameters
        ----------
        state
            What `state_dict` returned. The new heads' values are to be loaded with the network's.

        Raises
        ------
        ValueError
            If the network has had more injections than that.
        """
        wanted, self.applications = int(state["applications"]), len(self._injected())
        if self.applications > wanted:
            raise ValueError(
                f"PlasticityInjection: the network has had {self.applications} injections, the state {wanted}: "
                "rebuild a newly made network"
            )
        while self.applications < wanted:
            self._inject()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, once the network has the structure that goes with it (see `rebuild`).

        Raises
        ------
        ValueError
            If the network has not; nothing is changed then.
        """
        wanted, found = int(state["applications"]), len(self._injected())
        if found != wanted:
            raise ValueError(
                f"PlasticityInjection: the network has had {found} injections, the state {wanted}: call rebuild first"
            )
        super().load_state_dict(state)
