"""What acts at every step, in any Avalanche strategy."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any, ClassVar, Literal

from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import isolated_rng
from ht_ray.methods import (
    L2,
    UPGD,
    ContinualBackprop,
    Mechanism,
    OptimizerReset,
    ReDo,
    Regenerative,
    SelfDistillation,
    SpectralDecoupling,
    WeightClipping,
)

from ..loading import InMemoryLoading
from .hare_tortoise import find_tortoise
from .ordered import OrderedPlugin

__all__ = [
    "ContinualBackpropPlugin",
    "L2Plugin",
    "MechanismPlugin",
    "OptimizerResetPlugin",
    "ReDoPlugin",
    "RegenerativePlugin",
    "SelfDistillationPlugin",
    "SpectralDecouplingPlugin",
    "UPGDPlugin",
    "WeightClippingPlugin",
]


#: Of `ht_ray.mechanisms.find_units`, or what returns them for the model as it is, once it has grown.
UnitLayers = Sequence[Any] | Callable[[nn.Module], Sequence[Any]]


class MechanismPlugin(OrderedPlugin):
    """Calls a `ht_ray.methods.Mechanism` at its moments; base of the plugins below.

    The mechanism is made before the first experience, when the model and its initial weights are there. Several act in
    the order of their rank, wherever they stand in the list of plugins.

    An experience is a phase, and so is each sub-experience of an online stream: epochs are counted anew in it, so count
    intervals in steps there. A warning says when an interval is longer than an experience. If the network raises while
    the mechanism looks at it, its hooks are gone when training or evaluation starts again (or by `restore`).

    Parameters
    ----------
    reinitialise_tortoise
        Whether the tortoise, if the strategy has one, is treated as the model is. Default True.
    **settings
        Of the mechanism; ``layers`` may be a function of the model, called before each experience.

    Raises
    ------
    SettingError
        If a setting is out of its range; before the first experience, if the mechanism cannot act on the model.
    """

    kind: ClassVar[type[Mechanism]]
    begin_rank = 100

    def __init__(self, *, reinitialise_tortoise: bool = True, **settings: Any) -> None:
        super().__init__()
        self.reinitialise_tortoise = reinitialise_tortoise
        self.settings = settings
        #: The mechanism; None before the first experience.
        self.mechanism: Mechanism | None = None
        self._watching = ExitStack()
        self._warned = False
        if "layers" in settings:
            settings = {**settings, "layers": None}  # names that a probe does not have
        with isolated_rng():  # the user's next model is what it would have been
            probe = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1))
            self.kind(probe, **settings)  # wrong settings are refused here, not at the first experience

    def __init_subclass__(cls, supports_distributed: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(supports_distributed=supports_distributed, **kwargs)
        if hasattr(cls, "kind"):
            cls.rank = cls.kind.rank

    def __getstate__(self) -> dict[str, Any]:
        # Between batches, where alone a strategy can be saved, nothing is on the stack.
        return {**self.__dict__, "_watching": ExitStack()}

    def attach(self, model: nn.Module) -> Mechanism:
        """Return the mechanism over `model`, made now (from its present weights as the initial ones) if needed."""
        settings = self.settings
        if callable(settings.get("layers")):
            settings = {**settings, "layers": settings["layers"](model)}
        if self.mechanism is None:
            self.mechanism = self.kind(model, **settings)
        self.mechanism.module = model
        if isinstance(self.mechanism, (ContinualBackprop, ReDo)):
            self.mechanism.layers = settings["layers"]
        return self.mechanism

    def restore(self) -> None:
        """Take off the hooks that an exception in the network left there."""
        self._watching.close()

    def _tortoise(self, strategy: Any) -> Any:
        plugin = find_tortoise(strategy)
        return plugin.tortoise if plugin is not None and self.reinitialise_tortoise else None

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.restore()

    def begin(self, strategy: Any) -> None:
        self.restore()
        self.attach(strategy.model).begin_phase()
        interval, epochs = self.settings.get("interval"), strategy.train_epochs
        if self.settings.get("unit") == "epochs" and interval is not None and interval > epochs and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(self).__name__}: interval = {interval} epochs, and an experience has {epochs}: it never acts, "
                f"as epochs are counted anew in each. Take an interval of at most {epochs}, or unit='steps'.",
                SettingWarning,
                stacklevel=2,
            )

    def enter_network(self, strategy: Any) -> None:
        assert self.mechanism is not None
        plugin = find_tortoise(strategy)
        several = is_multi_task_module(strategy.model)
        inputs = (strategy.mb_x, strategy.mb_task_id) if several else strategy.mb_x
        with strategy.autocast() if isinstance(strategy, InMemoryLoading) else nullcontext():
            self.mechanism.before_forward(inputs, plugin.tortoise if plugin is not None else None)
        if type(self.mechanism).watching is not Mechanism.watching:
            self._watching.enter_context(self.mechanism.watching())

    def leave_network(self, strategy: Any) -> None:
        self._watching.close()

    def add_loss(self, strategy: Any) -> None:
        assert self.mechanism is not None
        term = self.mechanism.loss(self.outputs(strategy))
        if term is not None:
            strategy.loss = strategy.loss + term

    def outputs(self, strategy: Any) -> Tensor:
        """Return the logits of the batch, as the mechanism is to see them."""
        logits: Tensor = strategy.mb_output
        return logits

    def prepare_step(self, strategy: Any) -> None:
        assert self.mechanism is not None
        self.mechanism.before_step(strategy.optimizer)

    def follow_step(self, strategy: Any) -> None:
        assert self.mechanism is not None
        self.mechanism.after_step(strategy.optimizer, self._tortoise(strategy))

    def end_epoch(self, strategy: Any) -> None:
        assert self.mechanism is not None
        self.mechanism.end_epoch(strategy.optimizer, self._tortoise(strategy))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; empty before the first experience."""
        return {"mechanism": self.mechanism.state_dict()} if self.mechanism is not None else {}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Continue from `state` on `model`, in the middle of an experience, too."""
        if state:
            mechanism = self.attach(model)
            mechanism.begin_phase()  # finds what it acts on; what it counts and draws comes from the state
            mechanism.load_state_dict(state["mechanism"])


class L2Plugin(MechanismPlugin):
    """L2 regularisation, as a decay apart from the gradient or a penalty in the loss.

    Parameters
    ----------
    strength
        As in `ht_ray.methods.L2`. Default 0.1, that of `ht_ray.vision.MethodConfig`; with coupling ``"loss"`` take
        about 1e-4.
    coupling
        As in `ht_ray.methods.L2`.
    """

    kind = L2

    def __init__(self, *, strength: float = 0.1, coupling: Literal["decoupled", "loss"] = "decoupled") -> None:
        super().__init__(strength=strength, coupling=coupling)


class SpectralDecouplingPlugin(MechanismPlugin):
    """Spectral decoupling: a penalty on the logits (Pezeshki et al. 2021, arXiv 2011.09468).

    Logits that Avalanche's heads mask, which are a large constant, take no part.

    Parameters
    ----------
    strength
        As in `ht_ray.methods.SpectralDecoupling`.
    """

    kind = SpectralDecoupling

    def __init__(self, *, strength: float = 0.01) -> None:
        super().__init__(strength=strength)
        self._masked: set[float] = set()

    def attach(self, model: nn.Module) -> Mechanism:
        heads = (IncrementalClassifier, MultiHeadClassifier)
        parts = [part for part in model.modules() if isinstance(part, heads)]
        self._masked = {float(part.mask_value) for part in parts if part.masking}
        return super().attach(model)

    def outputs(self, strategy: Any) -> Tensor:
        logits = super().outputs(strategy)
        for value in self._masked:
            logits = logits.masked_fill(logits == value, 0.0)
        return logits


class RegenerativePlugin(MechanismPlugin):
    """Regenerative regularisation, L2 Init: towards the weights before the first experience (arXiv 2308.11958).

    Parameters
    ----------
    strength, norm, coupling, toward, seed
        As in `ht_ray.methods.Regenerative`.
    """

    kind = Regenerative

    def __init__(
        self,
        *,
        strength: float = 1e-3,
        norm: Literal["l2", "l1"] = "l2",
        coupling: Literal["loss", "decoupled"] = "loss",
        toward: Literal["initial", "fresh"] = "initial",
        seed: int = 0,
    ) -> None:
        super().__init__(strength=strength, norm=norm, coupling=coupling, toward=toward, seed=seed)


class SelfDistillationPlugin(MechanismPlugin):
    """Self-distillation: the model is drawn to the predictions of its own average (Tarvainen & Valpola 2017).

    The teacher is the tortoise: put an `EMAPlugin` (or a `HareTortoisePlugin`) beside it.

    Parameters
    ----------
    strength, temperature
        As in `ht_ray.methods.SelfDistillation`.

    Raises
    ------
    SettingError
        If a setting is out of its range; when training starts, if the strategy has no tortoise.
    """

    kind = SelfDistillation

    def __init__(self, *, strength: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__(strength=strength, temperature=temperature)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        if find_tortoise(strategy) is None:
            raise SettingError(
                "SelfDistillationPlugin: the strategy has no teacher: put an EMAPlugin or a HareTortoisePlugin beside "
                "it."
            )


class UPGDPlugin(MechanismPlugin):
    """Utility-based perturbed gradient descent around the strategy's optimiser (Elsayed & Mahmood 2024).

    Parameters
    ----------
    utility_decay, noise, seed
        As in `ht_ray.methods.UPGD`.
    """

    kind = UPGD

    def __init__(self, *, utility_decay: float = 0.999, noise: float = 1e-3, seed: int = 0) -> None:
        super().__init__(utility_decay=utility_decay, noise=noise, seed=seed)


class WeightClippingPlugin(MechanismPlugin):
    """Weight clipping after every step (Elsayed et al. 2024, arXiv 2407.01704).

    Parameters
    ----------
    factor
        As in `ht_ray.methods.WeightClipping`.
    """

    kind = WeightClipping

    def __init__(self, *, factor: float | None = 2.0) -> None:
        super().__init__(factor=factor)


class ContinualBackpropPlugin(MechanismPlugin):
    """Continual backprop: at every step, a few units of low utility start anew (Dohare et al. 2024, Nature 632).

    Parameters
    ----------
    replacement_rate, maturity, utility_decay, seed
        As in `ht_ray.methods.ContinualBackprop`.
    layers
        As there, or a function that returns them for the model, called before each experience. Models with a head for
        each task cannot be traced: name all their heads.
    reinitialise_tortoise
        As in `MechanismPlugin`.
    """

    kind = ContinualBackprop

    def __init__(
        self,
        *,
        replacement_rate: float = 1e-4,
        maturity: int = 100,
        utility_decay: float = 0.99,
        seed: int = 0,
        layers: UnitLayers | None = None,
        reinitialise_tortoise: bool = True,
    ) -> None:
        super().__init__(
            reinitialise_tortoise=reinitialise_tortoise,
            replacement_rate=replacement_rate,
            maturity=maturity,
            utility_decay=utility_decay,
            seed=seed,
            layers=layers,
        )


class ReDoPlugin(MechanismPlugin):
    """ReDo: dormant units start anew (Sokar et al. 2023, arXiv 2302.12902).

    Parameters
    ----------
    threshold, interval, unit, batches, seed
        As in `ht_ray.methods.ReDo`.
    layers
        As in `ContinualBackpropPlugin`.
    reinitialise_tortoise
        As in `MechanismPlugin`.
    """

    kind = ReDo

    def __init__(
        self,
        *,
        threshold: float = 0.025,
        interval: int | None = 5,
        unit: Literal["epochs", "steps"] = "epochs",
        batches: int = 4,
        seed: int = 0,
        layers: UnitLayers | None = None,
        reinitialise_tortoise: bool = True,
    ) -> None:
        super().__init__(
            reinitialise_tortoise=reinitialise_tortoise,
            threshold=threshold,
            interval=interval,
            unit=unit,
            batches=batches,
            seed=seed,
            layers=layers,
        )

    def resume(self, strategy: Any) -> None:
        """Make the batches again that are to be scored: images are not written into checkpoints."""
        assert isinstance(self.mechanism, ReDo)
        batches = self.mechanism.batches
        if self.mechanism.interval is None or batches:
            return
        assert batches.maxlen is not None
        several = is_multi_task_module(strategy.model)
        for batch in strategy.dataloader.before(strategy.clock.train_exp_epochs + 1, batches.maxlen):
            batches.append((batch[0], batch[-1]) if several else batch[0])

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        assert isinstance(self.mechanism, ReDo)
        self.mechanism.batches.clear()


class OptimizerResetPlugin(MechanismPlugin):
    """The optimiser forgets its state at an interval (Asadi et al. 2023, arXiv 2306.17833).

    Parameters
    ----------
    interval, unit
        As in `ht_ray.methods.OptimizerReset`.
    """

    kind = OptimizerReset

    def __init__(self, *, interval: int | None = 1, unit: Literal["epochs", "steps"] = "epochs") -> None:
        super().__init__(interval=interval, unit=unit)
