"""Penalties on weights and logits: L2, spectral decoupling, regenerative regularisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim import Optimizer

from ht_ray._checks import check_choice, check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.fresh import FreshWeights
from ht_ray.mechanisms.weights.rng import derive_seed
from ht_ray.mechanisms.weights.stepped_groups import stepped_groups
from ht_ray.mechanisms.weights.transfer import upload
from ht_ray.mechanisms.weights.weight_copy import WeightCopy
from ht_ray.methods.method import Mechanism

__all__ = ["L2", "Regenerative", "SpectralDecoupling"]


class _Deviation(torch.autograd.Function):
    """Sum of ``|w - anchor| ** power`` over all parameters; without anchors, of ``|w| ** power``.

    A few kernels for the whole network, in both directions, where autograd's own would be several for each parameter.
    """

    @staticmethod
    def forward(ctx: Any, power: int, anchors: list[Tensor] | None, *parameters: Tensor) -> Tensor:
        deviations = parameters if anchors is None else torch._foreach_sub(parameters, anchors)
        ctx.power = power
        ctx.save_for_backward(*deviations)
        # A sum that is rounded to 16 bits has two or three digits.
        wide = [d.float() if d.element_size() < 4 else d for d in deviations]
        norms = torch.stack(torch._foreach_norm(wide, power))
        return norms.square().sum() if power == 2 else norms.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slopes = torch._foreach_sign(ctx.saved_tensors) if ctx.power == 1 else ctx.saved_tensors
        return (None, None, *torch._foreach_mul(slopes, gradient * ctx.power))


def _deviation(power: int, anchors: list[Tensor] | None, parameters: list[Tensor]) -> Tensor:
    total: Tensor = _Deviation.apply(power, anchors, *parameters)
    return total


class L2(Mechanism):
    """L2 regularisation: weights are drawn towards zero.

    Of all trainable parameters, biases and those of normalisation layers included ("the square of the magnitude" of
    the parameters, arXiv 2406.02596, appendix A.4).

    Parameters
    ----------
    module
        The network.
    strength
        Default 0.1 (what the authors' code of arXiv 2406.02596 takes with augmentation, from a grid of 1 to 1e-4, for
        the decoupled form; for the penalty in the loss take about 1e-4). 0 is off.
    coupling
        ``"decoupled"`` (default; what the authors' code does): before each step ``w <- (1 - lr * strength) * w`` with
        the learning rate of the parameter's group, on top of the optimiser's own weight decay; in the authors' code it
        takes the place of that, so give the optimiser none. With ``AdamW(weight_decay=0)`` this is
        ``AdamW(weight_decay=strength)``, bit for bit in its ``foreach`` and single-tensor forms; as there, parameters
        without a gradient are passed over.
        ``"loss"`` (what the paper describes) adds ``strength * sum(w ** 2)`` to the loss, whose gradient is
        ``2 * strength * w``.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Loshchilov & Hutter (2019). Decoupled weight decay regularization. arXiv:1711.05101.

    Examples
    --------
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    >>> L2(layer, strength=0.5, coupling="loss").loss(torch.zeros(8, 1)).item()
    12.5
    """

    rank: ClassVar[int] = -10
    capturable = True

    def __init__(
        self, module: nn.Module, *, strength: float = 0.1, coupling: Literal["decoupled", "loss"] = "decoupled"
    ) -> None:
        super().__init__(module)
        check_number("L2: strength", strength, low=0)
        check_choice("L2: coupling", coupling, ["decoupled", "loss"])
        self.strength = float(strength)
        self.coupling = coupling
        self.begin_phase()

    def begin_phase(self) -> None:
        """Find the network's parameters."""
        self._parameters: dict[Tensor, None] = dict.fromkeys(self.module.parameters())

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return ``strength * sum(w ** 2)`` with ``coupling="loss"``."""
        if self.coupling != "loss" or not self.strength:
            return None
        trained = [p for p in self._parameters if p.requires_grad]
        return self.strength * _deviation(2, None, trained) if trained else None

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Shrink the parameters with ``coupling="decoupled"``."""
        if self.coupling != "decoupled" or not self.strength:
            return
        for group, own in stepped_groups(optimizer, self._parameters):
            torch._foreach_mul_(own, 1 - group["lr"] * self.strength)


class SpectralDecoupling(Mechanism):
    """Spectral decoupling: an L2 penalty on the logits, against gradient starvation.

    Adds ``strength / 2`` times the squared norm of a sample's logits (the sum over its classes), averaged over the
    batch. The paper writes ``lambda / 2 * ||y||^2`` for the single logits of binary classification, beside a loss that
    is likewise summed over samples; that is ours times the number of samples, in both terms. Code that averages over
    classes as well has a penalty smaller by their number.

    Parameters
    ----------
    module
        The network.
    strength
        The paper's lambda. Default 0.01 (ours: the paper tunes it for each data set). 0 is off.

    Raises
    ------
    SettingError
        If `strength` is negative.

    References
    ----------
    Pezeshki et al. (2021). Gradient starvation: a learning proclivity in neural networks. arXiv:2011.09468.

    Examples
    --------
    >>> method = SpectralDecoupling(nn.Linear(1, 2), strength=0.1)
    >>> round(method.loss(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item(), 6)
    0.65
    """

    rank: ClassVar[int] = -9
    capturable = True

    def __init__(self, module: nn.Module, *, strength: float = 0.01) -> None:
        super().__init__(module)
        check_number("SpectralDecoupling: strength", strength, low=0)
        self.strength = float(strength)

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return the penalty on logits ``(B, K)``."""
        if not self.strength:
            return None
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return self.strength / 2 * wide.square().flatten(1).sum(1).mean()


class Regenerative(Mechanism):
    """Regenerative regularisation ("L2 Init"): weights are drawn towards their initialisation.

    Of all trainable parameters, biases and those of normalisation layers included. Units that the network grows are
    drawn towards the values that they have when `begin_phase` first sees them.

    Parameters
    ----------
    module
        The network as initialised: its weights ``w0`` are what ``toward="initial"`` draws to.
    strength
        Default 1e-3 (ours: the papers tune it). 0 is off.
    norm
        ``"l2"`` (default): ``strength * sum((w - w0) ** 2)``; ``"l1"``: ``strength * sum(|w - w0|)``.
    coupling
        ``"loss"`` (default) adds that to the loss. ``"decoupled"``, for ``"l2"`` only, moves the weights before each
        step, ``w <- w - min(1, lr * strength) * (w - w0)`` with the learning rate of the parameter's group, past the
        optimiser's moments (and without the factor 2 of the square's gradient); parameters without a gradient are
        passed over. That variant is ours.
    toward
        ``"initial"`` (default), or ``"fresh"``: ``w0`` is drawn anew at every step from the distribution of the
        initialisation (the ablation "L2 Init + Resample"). Slow: each draw initialises a network on the CPU.
    seed
        Of fresh weights.
    factory
        Makes the network anew, for ``"fresh"`` with networks that have no ``reset_parameters`` methods.

    Raises
    ------
    SettingError
        If a setting is out of its range, or ``"fresh"`` cannot draw the network's weights.

    References
    ----------
    Kumar et al. (2023). Maintaining plasticity in continual learning via regenerative regularization.
    arXiv:2308.11958. Compared with in arXiv:2406.02596.

    Examples
    --------
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> method = Regenerative(layer, strength=0.5)
    >>> with torch.no_grad():
    ...     _ = layer.weight.add_(2.0)
    >>> round(method.loss(torch.zeros(8, 1)).item(), 4)
    4.0
    """

    rank: ClassVar[int] = -8

    def __init__(
        self,
        module: nn.Module,
        *,
        strength: float = 1e-3,
        norm: Literal["l2", "l1"] = "l2",
        coupling: Literal["loss", "decoupled"] = "loss",
        toward: Literal["initial", "fresh"] = "initial",
        seed: int = 0,
        factory: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__(module)
        check_number("Regenerative: strength", strength, low=0)
        check_choice("Regenerative: norm", norm, ["l2", "l1"])
        check_choice("Regenerative: coupling", coupling, ["loss", "decoupled"])
        check_choice("Regenerative: toward", toward, ["initial", "fresh"])
        check_number("Regenerative: seed", seed, integer=True)
        if coupling == "decoupled" and norm == "l1":
            raise SettingError(
                "Regenerative: norm = 'l1' with coupling = 'decoupled': accepted is norm = 'l2', or coupling = 'loss'."
            )
        self.strength = float(strength)
        self.norm = norm
        self.coupling = coupling
        self.toward = toward
        # Fresh weights are drawn in each step, and the decoupled form reads the learning rate as a number.
        self.capturable = coupling == "loss" and toward == "initial"
        self.seed = seed
        self.factory = factory
        #: How often fresh weights were drawn.
        self.draws = 0
        if toward == "fresh":
            try:
                FreshWeights(module, factory=factory).draw(seed)
            except ValueError as error:
                raise SettingError(f"Regenerative: toward = 'fresh': {error}") from error
        self.initial = WeightCopy(module) if toward == "initial" else None
        self.begin_phase()

    def begin_phase(self) -> None:
        """Find the network's parameters and note the initial weights of units that it has grown."""
        if self.initial is not None:
            self.initial.sync(self.module)
        elif self.strength:
            self._fresh = FreshWeights(self.module, factory=self.factory)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in self.module.named_parameters()}

    def _anchor(self) -> Mapping[str, Tensor]:
        if self.initial is not None:
            return self.initial.tensors
        draw = derive_seed(self.seed, "regenerative: fresh weights", self.draws)
        self.draws += 1
        return self._fresh.draw(draw)

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return the distance from the initial weights with ``coupling="loss"``."""
        if self.coupling != "loss" or not self.strength:
            return None
        anchor = self._anchor()
        trained = [p for p in self._names if p.requires_grad]
        anchors = [upload(anchor[self._names[p]], p.device) for p in trained]
        return self.strength * _deviation(1 if self.norm == "l1" else 2, anchors, trained) if trained else None

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Move the parameters towards the initial weights with ``coupling="decoupled"``."""
        if self.coupling != "decoupled" or not self.strength:
            return
        anchor = self._anchor()
        for group, own in stepped_groups(optimizer, self._names):
            targets = [upload(anchor[self._names[p]].to(p.dtype), p.device) for p in own]
            torch._foreach_lerp_(own, targets, min(1.0, group["lr"] * self.strength))

    def state_dict(self) -> dict[str, Any]:
        """Return the initial weights and the counter of draws."""
        return {"initial": self.initial.state_dict() if self.initial is not None else {}, "draws": self.draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ from the network's; nothing is changed then.
        """
        if self.initial is not None:
            self.initial.sync(self.module)
            self.initial.load_state_dict(state["initial"])
        self.draws = int(state["draws"])
