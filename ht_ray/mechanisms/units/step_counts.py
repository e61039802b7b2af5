"""Step counts of recycled units: what Adam takes for the age of weights that have just been drawn again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Adamax, NAdam, Optimizer, RAdam

from ht_ray._checks import check_choice
from ht_ray.errors import SettingWarning
from ht_ray.mechanisms.weights.optimizer_state import Optimizers, each_optimizer

__all__ = ["STEP_COUNTS", "RecycledSteps"]

#: What becomes of the step count when units are recycled.
STEP_COUNTS = ("keep", "per_weight", "reset")


class RecycledSteps:
    """What becomes of an optimiser's step counts where units are recycled, whose moments start again at 0.

    Adam divides its moments by ``1 - beta ** steps``, so that they are right from the first step on. It has one count
    for a whole parameter. ``"keep"`` leaves it alone, as Dopamine's ReDo does: the first steps of recycled weights are
    then ``(1 - beta1) / sqrt(1 - beta2)``, about 3 times, as large as those of new ones, and after ten steps 6 times.
    ``"reset"`` sets the parameter's count to 0: right for the recycled weights, and for all others the moments are
    taken for larger than they are. ``"per_weight"`` gives each recycled weight a count of its own, as the ``AdamGnT``
    of continual backprop's authors: right for all. For ``Adam`` and ``AdamW`` the recycled weights are set, right after
    the optimiser's step, to where the step with their own count would have put them; all others keep their bits.

    Optimisers whose state has no step count, and those of ``Adamax``'s kind that divide by it in another way, are left
    alone by ``"per_weight"``; a warning says so of the latter.

    Parameters
    ----------
    policy : {"keep", "per_weight", "reset"}
        Which of the three.

    Raises
    ------
    SettingError
        If there is no such policy.

    Examples
    --------
    >>> layer = nn.Linear(2, 2, bias=False)
    >>> adam = torch.optim.Adam(layer.parameters(), lr=0.1, eps=0.0)
    >>> for _ in range(50):
    ...     adam.zero_grad()
    ...     layer.weight.sum().backward()
    ...     adam.step()
    >>> steps = RecycledSteps("per_weight")
    >>> for moment in ("exp_avg", "exp_avg_sq"):
    ...     adam.state[layer.weight][moment][1] = 0.0
    >>> steps.recycled(layer, adam, layer.weight, (torch.tensor([1]),))
    >>> before = layer.weight.detach().clone()
    >>> steps.before_step(layer, adam)
    >>> adam.step()
    >>> [round(way, 4) for way in (before - layer.weight).mean(1).tolist()]
    [0.1, 0.1]
    """

    def __init__(self, policy: str) -> None:
        self.policy = check_choice("RecycledSteps: policy", policy, STEP_COUNTS)
        #: By parameter: at which count each of its weights was recycled, of the parameter's shape; 0: never.
        self.recycled_at: dict[str, Tensor] = {}
        self._warned = False

    @torch.no_grad()
    def recycled(
        self, module: nn.Module, optimizer: Optimizers, parameter: Tensor, index: tuple[slice | Tensor, ...]
    ) -> None:
        """Call when entries of `parameter` have been recycled and their moments forgotten.

        Parameters
        ----------
        module
            The network, for the parameter's name.
        optimizer
            One or several; those that do not know the parameter are passed over.
        parameter, index
            As of `ht_ray.mechanisms.weights.optimizer_state.forget_entries`.
        """
        if self.policy == "keep":
            return
        for one in each_optimizer(optimizer):
            count = one.state.get(parameter, {}).get("step")
            if count is None:
                continue
            if self.policy == "reset":
                if isinstance(count, Tensor):
                    count.zero_()
                else:
                    one.state[parameter]["step"] = 0
            elif self._is_adam(one):
                name = next(name for name, known in module.named_parameters() if known is parameter)
                held = self.recycled_at.get(name)
                if held is None or held.shape != parameter.shape:
                    held = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
                self.recycled_at[name] = held = held.to(parameter.device)
                held[index] = torch.as_tensor(count, dtype=torch.float32).to(held.device)

    def before_step(self, module: nn.Module, optimizer: Optimizers) -> None:
        """Call right before the optimiser's step, on the gradients that it will see."""
        if not self.recycled_at:
            return
        named = dict(module.named_parameters())
        self.recycled_at = {
            name: at for name, at in self.recycled_at.items() if name in named and named[name].shape == at.shape
        }
        for one in each_optimizer(optimizer):
            if self._is_adam(one):
                self._correct_after(one, named)

    def _correct_after(self, optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> None:
        # For this step alone: nothing is left on an optimiser, which may be replaced, copied or saved.
        def correct(*_: Any) -> None:
            handle.remove()
            for group in optimizer.param_groups:
                known = set(map(id, group["params"]))
                for name, at in self.recycled_at.items():
                    if id(named[name]) in known and named[name].grad is not None:
                        _correct(named[name], at, group, optimizer.state[named[name]])

        handle = optimizer.register_step_post_hook(correct)

    def _is_adam(self, optimizer: Optimizer) -> bool:
        if isinstance(optimizer, Adam):  # and AdamW, which is derived from it
            return True
        if isinstance(optimizer, (Adamax, NAdam, RAdam)) and not self._warned:
            self._warned = True
            warnings.warn(
                f"step_count = 'per_weight': {type(optimizer).__name__} keeps its count for recycled units, as with "
                "'keep'; Adam and AdamW have one for each weight.",
                SettingWarning,
                stacklevel=4,
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors to continue from."""
        return {name: at.clone() for name, at in self.recycled_at.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        self.recycled_at = {name: at.clone() for name, at in state.items()}


@torch.no_grad()
def _correct(parameter: Tensor, at: Tensor, group: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Move recycled weights from where Adam has put them to where a step with their own counts would have."""
    count = torch.as_tensor(state["step"], dtype=torch.float32).to(parameter.device)
    at *= count > 1  # a state that has begun again knows nothing of what was before
    own = (count - at).double()
    square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    moment, root, rate = state["exp_avg"].double(), square.double().sqrt(), group["lr"]
    beta1, beta2 = map(float, group["betas"])

    def step(steps: Tensor) -> Tensor:
        size: Tensor = rate * moment / (1 - beta1**steps) / (root / (1 - beta2**steps).sqrt() + group["eps"])
        return size

    corrected = parameter + (step(count.double()) - step(own)).to(parameter.dtype)
    parameter.copy_(torch.where(at > 0, corrected, parameter))
