"""What is done to the network, and when, while it trains on a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray.errors import SettingError
from ht_ray.mechanisms import CReLU
from ht_ray.methods import (
    L2,
    UPGD,
    ContinualBackprop,
    HeadReset,
    Mechanism,
    OptimizerReset,
    PlasticityInjection,
    ReDo,
    Regenerative,
    SelfDistillation,
    ShrinkPerturb,
    SpectralDecoupling,
    Tortoise,
    WeightClipping,
)
from ht_ray.vision.data.loader import InMemoryLoader
from ht_ray.vision.method_config import MethodConfig

__all__ = ["MECHANISMS", "REINITIALISERS", "Method"]

#: What re-initialises before a phase, in the order in which it acts.
REINITIALISERS: dict[str, Callable[..., ShrinkPerturb | HeadReset | PlasticityInjection]] = {
    "shrink_perturb": ShrinkPerturb,
    "head_reset": HeadReset,
    "plasticity_injection": PlasticityInjection,
}

#: What acts at steps and epochs, in the order in which it acts (of `Mechanism.rank`).
MECHANISMS: dict[str, type[Mechanism]] = {
    "l2": L2,
    "spectral_decoupling": SpectralDecoupling,
    "regenerative": Regenerative,
    "self_distillation": SelfDistillation,
    "upgd": UPGD,
    "weight_clipping": WeightClipping,
    "continual_backprop": ContinualBackprop,
    "redo": ReDo,
    "optimizer_reset": OptimizerReset,
}


class Method:
    """The mechanisms of a `MethodConfig` over one network, called by the plain loop at fixed moments.

    The order is fixed, however methods are combined. At the start of a phase: Shrink & Perturb, Head Reset, plasticity
    injection, each on hare and tortoise and none before the first phase. At a step: loss terms (L2, spectral
    decoupling, regenerative, self-distillation); the decays apart from the gradient; the optimiser's step with UPGD's
    gate and weight clipping; the tortoise follows and, if due, the hare is reset; continual backprop, ReDo, optimiser
    reset. At the end of an epoch: the hare's reset, ReDo, optimiser reset.

    Parameters
    ----------
    config
        What to do.
    model
        The network, as initialised.
    seed
        Of whatever the method draws.

    Raises
    ------
    SettingError
        If the method is an architecture (CReLU, LayerNorm) that `model` does not have, or it cannot act on `model`.
    """

    def __init__(self, config: MethodConfig, model: nn.Module, *, seed: int) -> None:
        self.config = config
        check_architecture(config, model)
        self.reinitialisers = {
            name: make(model, **config.settings_of(name, seed=seed))
            for name, make in REINITIALISERS.items()
            if name in config.parts
        }
        self.mechanisms = {
            name: make(model, **config.settings_of(name, seed=seed))
            for name, make in MECHANISMS.items()
            if name in config.parts
        }
        self.tortoise: Tortoise | None = None
        self.inputs: deque[Tensor] = deque(maxlen=config.recalibrate_batchnorm)
        if config.follows:
            settings = config.settings_of("hare_tortoise" if "hare_tortoise" in config.parts else "ema")
            self.tortoise = Tortoise(model, **settings)
        self._in_step = [m for m in self.mechanisms.values() if m.rank < 0]
        self._after_step = [m for m in self.mechanisms.values() if m.rank > 0]
        self._watching = [m for m in self.mechanisms.values() if type(m).watching is not Mechanism.watching]

    @property
    def _treated(self) -> Tortoise | None:
        return self.tortoise if self.config.reinitialise_tortoise else None

    @property
    def not_capturable(self) -> tuple[str, ...]:
        """Names of the mechanisms that cannot be part of a CUDA graph (see `Mechanism.capturable`)."""
        return tuple(name for name, mechanism in self.mechanisms.items() if not mechanism.capturable)

    def begin_phase(self, phase: int, optimizer: Optimizer, *, steps_per_epoch: int, epochs: int) -> None:
        """Call before the first epoch of a phase (numbered from 0)."""
        if self.tortoise is not None:
            self.tortoise.begin_phase(steps_per_epoch=steps_per_epoch, epochs=epochs)
        for method in self.reinitialisers.values():
            method.begin_phase()
            if phase > 0:
                method.apply(self._treated, optimizer)
        # A head may have been added: its weights are initial ones, and the tortoise's.
        for method in self.reinitialisers.values():
            method.begin_phase()
        if self.tortoise is not None:
            self.tortoise.weights.sync(self.tortoise.hare)
        for mechanism in self.mechanisms.values():
            mechanism.begin_phase()

    def resume_phase(self, loader: InMemoryLoader, *, epoch: int) -> None:
        """Call in place of `begin_phase` where a phase goes on with `epoch`, once the state of before it is loaded.

        Batches that a mechanism keeps from one epoch to the next are not part of the state; `loader`, that of the
        phase, makes them again.
        """
        redo = self.mechanisms.get("redo")
        if isinstance(redo, ReDo) and redo.interval is not None and redo.batches.maxlen is not None:
            # Every epoch has a batch at least.
            for loader.epoch in range(max(1, epoch - redo.batches.maxlen), epoch):
                redo.batches.extend(inputs for inputs, _ in loader)

    def before_forward(self, inputs: Tensor) -> None:
        """Call before the network computes a training batch."""
        for mechanism in self.mechanisms.values():
            mechanism.before_forward(inputs, self.tortoise)

    def watching(self) -> AbstractContextManager[Any]:
        """Return a context for the training forward pass."""
        return _entered(self._watching) if self._watching else nullcontext()

    def loss(self, loss: Tensor, outputs: Tensor) -> Tensor:
        """Return `loss` with the terms that the method adds to it.

        Parameters
        ----------
        loss
            Of the batch.
        outputs
            The network's logits, float32 of shape ``(B, K)``.
        """
        for mechanism in self.mechanisms.values():
            term = mechanism.loss(outputs)
            if term is not None:
                loss = loss + term
        return loss

    def before_step(self, optimizer: Optimizer) -> None:
        """Call before every optimiser step, when gradients are as it will see them."""
        for mechanism in self.mechanisms.values():
            mechanism.before_step(optimizer)

    def update(self, optimizer: Optimizer) -> None:
        """Call after every optimiser step: what belongs to it, and the tortoise's average.

        The first half of `after_step`: tensors are changed in place, and nothing is decided, so that it may be part of
        a CUDA graph, whose replay calls nothing.
        """
        for mechanism in self._in_step:
            mechanism.after_step(optimizer, self._treated)
        if self.tortoise is not None:
            self.tortoise.average()

    def after_update(self, optimizer: Optimizer, inputs: Tensor) -> bool:
        """Call after `update`, or its replay, with the batch: resets and recycling that are due.

        Returns
        -------
        bool
            Whether network and optimiser may have been changed.
        """
        reset = False
        if self.tortoise is not None:
            reset = self.tortoise.count_step(optimizer)
            self.inputs.append(inputs)
        for mechanism in self._after_step:
            mechanism.after_step(optimizer, self._treated)
        return reset or bool(self._after_step)

    def after_step(self, optimizer: Optimizer, inputs: Tensor) -> None:
        """Call after every optimiser step, with its batch: `update` and `after_update`."""
        self.update(optimizer)
        self.after_update(optimizer, inputs)

    def end_epoch(self, optimizer: Optimizer, *, last: bool) -> None:
        """Call after every epoch, before evaluation."""
        if self.tortoise is not None:
            if self.inputs:
                self.tortoise.recalibrate_batchnorm(self.inputs)
                self.inputs.clear()
            self.tortoise.end_epoch(optimizer, last=last)
        for mechanism in self.mechanisms.values():
            mechanism.end_epoch(optimizer, self._treated)

    def predict(self) -> AbstractContextManager[Any]:
        """Let the network compute as this method predicts: with the tortoise, if there is one."""
        return self.tortoise.predict() if self.tortoise is not None else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        parts: dict[str, Any] = {**self.reinitialisers, **self.mechanisms}
        if self.tortoise is not None:
            parts["tortoise"] = self.tortoise
        return {name: part.state_dict() for name, part in parts.items()}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        """Give the network the structure that it had in `state`; call before its own state is loaded.

        Raises
        ------
        ValueError
            If `state` is of other methods.
        """
        if state.keys() != (held := self.state_dict()).keys():
            raise ValueError(f"the state is of {sorted(state)}; {self.config.name!r} has {sorted(held)}")
        injection = self.reinitialisers.get("plasticity_injection")
        if isinstance(injection, PlasticityInjection):
            injection.rebuild(state["plasticity_injection"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, once the network has been rebuilt and loaded.

        Raises
        ------
        ValueError
            If `state` is of other methods, or of another network.
        """
        self.rebuild(state)
        for name, saved in state.items():
            part: Any = self.tortoise if name == "tortoise" else {**self.reinitialisers, **self.mechanisms}[name]
            if name in self.mechanisms:
                part.begin_phase()  # the network may have been rebuilt
            part.load_state_dict(saved)


@contextmanager
def _entered(mechanisms: list[Mechanism]) -> Iterator[None]:
    with ExitStack() as stack:
        for mechanism in mechanisms:
            stack.enter_context(mechanism.watching())
        yield


def check_architecture(config: MethodConfig, model: nn.Module) -> None:
    """Refuse a network that does not have the form a method stands for.

    Raises
    ------
    SettingError
        If `config` names CReLU or LayerNorm and `model` has none.
    """
    for part, kinds in (("crelu", (CReLU,)), ("layer_norm", (nn.LayerNorm, nn.GroupNorm))):
        if part in config.parts and not any(isinstance(module, kinds) for module in model.modules()):
            raise SettingError(
                f"MethodConfig: name = {config.name!r}: the network has no {kinds[0].__name__}; build it with "
                "make_model(method.model(ModelConfig(...)), ...)."
            )
