"""Methods by name, how names combine, and every method's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from ht_ray._checks import check_choice, check_number
from ht_ray.errors import SettingError
from ht_ray.vision.models import ModelConfig
from ht_ray.vision.training.optimizer import TrainingConfig

__all__ = [
    "METHODS",
    "MethodConfig",
    "MethodSettings",
    "display_name",
    "method_parts",
    "method_with_settings",
    "setting_names",
]

#: Methods by name, with how tables and figures call them.
METHODS = {
    "plain": "Plain",
    "ema": "EMA",
    "hare_tortoise": "Hare & Tortoise",
    "shrink_perturb": "Shrink & Perturb",
    "head_reset": "Head Reset",
    "l2": "L2",
    "augment": "Augmentation",
    "spectral_decoupling": "Spectral Decoupling",
    "regenerative": "Regenerative (L2 Init)",
    "redo": "ReDo",
    "crelu": "CReLU",
    "layer_norm": "LayerNorm",
    "self_distillation": "Self-Distillation",
    "optimizer_reset": "Optimiser Reset",
    "adam": "Adam ε β",
    "continual_backprop": "Continual Backprop",
    "plasticity_injection": "Plasticity Injection",
    "weight_clipping": "Weight Clipping",
    "upgd": "UPGD",
}

#: Other names of the same thing.
ALIASES = {"l2_init": "regenerative"}

# What follows the network with a tortoise; at most one of them beside Hare & Tortoise makes sense.
_FOLLOWING = ("hare_tortoise", "ema", "self_distillation")


def method_parts(name: str) -> tuple[str, ...]:
    """Return the methods that `name` combines with ``+``.

    Raises
    ------
    SettingError
        If one is unknown, given twice, or the combination makes no sense.

    Examples
    --------
    >>> method_parts("hare_tortoise+head_reset")
    ('hare_tortoise', 'head_reset')
    >>> method_parts("L2-Init")
    ('regenerative',)
    """
    parts = tuple(part.strip().replace("-", "_").lower() for part in name.split("+"))
    for part in parts:
        check_choice("MethodConfig: name", part, [*METHODS, *ALIASES])
    parts = tuple(ALIASES.get(part, part) for part in parts)
    if len(set(parts)) < len(parts):
        raise SettingError(f"MethodConfig: name = {name!r}: a method is given twice.")
    if "plain" in parts and len(parts) > 1:
        raise SettingError(f"MethodConfig: name = {name!r}: 'plain' means none and combines with nothing.")
    if "ema" in parts and "hare_tortoise" in parts:
        raise SettingError(
            f"MethodConfig: name = {name!r}: 'ema' is 'hare_tortoise' without resets; accepted is one of the two."
        )
    if "ema" in parts and "self_distillation" in parts:
        raise SettingError(
            f"MethodConfig: name = {name!r}: the teacher of 'self_distillation' is an EMA already; leave 'ema' out."
        )
    return parts


def display_name(name: str) -> str:
    """Return how tables and figures call the method.

    Examples
    --------
    >>> display_name("hare_tortoise+head_reset")
    'Hare & Tortoise + Head Reset'
    """
    return " + ".join(METHODS[part] for part in method_parts(name))


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Settings of the methods that are compared with Hare & Tortoise; see ``docs/methods.md`` for each one's formula.

    Raises
    ------
    SettingError
        If a value is not accepted, naming it.
    """

    l2_strength: float = 0.1
    """L2: share of a weight that decays at learning rate 1; with coupling "loss", the factor of the penalty."""
    l2_coupling: Literal["decoupled", "loss"] = "decoupled"
    """L2: decay apart from the gradient, as AdamW's and in its place, or a penalty in the loss on top of it (take a
    strength of about 1e-4)."""
    augmentation: str | None = None
    """Augmentation: crop or crop_flip; by default crop_flip for colour images and crop for others (digits)."""
    spectral_strength: float = 0.01
    """Spectral decoupling: factor of the penalty on the logits."""
    regenerative_strength: float = 1e-3
    """Regenerative regularisation (L2 Init): factor of the penalty on the distance to the initial weights."""
    regenerative_norm: Literal["l2", "l1"] = "l2"
    """Regenerative regularisation: squared distance (l2), or the absolute one (l1)."""
    regenerative_coupling: Literal["loss", "decoupled"] = "loss"
    """Regenerative regularisation: a penalty in the loss, or a decay apart from the gradient."""
    regenerative_toward: Literal["initial", "fresh"] = "initial"
    """Regenerative regularisation: towards the initial weights, or fresh ones drawn at every step."""
    redo_threshold: float = 0.025
    """ReDo: a unit is dormant when its activation is at most this share of its layer's mean."""
    redo_interval: int | None = 5
    """ReDo: dormant units are recycled after every so many epochs or steps; None means never."""
    redo_unit: Literal["epochs", "steps"] = "epochs"
    """ReDo: unit of the interval; epochs are counted from 1 in each phase."""
    redo_batches: int = 4
    """ReDo: from how many of the last batches a unit's activation is taken."""
    distillation_strength: float = 1.0
    """Self-distillation: factor of the divergence from the teacher's prediction."""
    distillation_temperature: float = 1.0
    """Self-distillation: temperature of teacher and student."""
    optimizer_reset_interval: int | None = 1
    """Optimiser reset: the optimiser forgets its state after every so many epochs or steps; None means never."""
    optimizer_reset_unit: Literal["epochs", "steps"] = "epochs"
    """Optimiser reset: unit of the interval; epochs are counted from 1 in each phase."""
    adam_eps: float = 1e-4
    """Adam: epsilon, in place of the training's."""
    adam_betas: tuple[float, float] = (0.9, 0.9)
    """Adam: decay of the two moments, in place of the training's."""
    cbp_replacement_rate: float = 1e-4
    """Continual backprop: share of the mature units of a layer that is replaced at each step; 0 means none."""
    cbp_maturity: int = 100
    """Continual backprop: steps for which a new unit is protected."""
    cbp_utility_decay: float = 0.99
    """Continual backprop: decay of the average utility."""
    injection_times: int | None = 1
    """Plasticity injection: before how many phases, from the second on, the head is frozen and a new one added; None
    means before each."""
    weight_clipping_factor: float | None = 2.0
    """Weight clipping: bound of the weights, in units of 1/sqrt(inputs of a unit); None means no bound."""
    upgd_utility_decay: float = 0.999
    """UPGD: decay of the average utility."""
    upgd_noise: float = 1e-3
    """UPGD: standard deviation of the noise added to the gradient."""

    def _check_method_settings(self) -> None:
        where = "MethodConfig: "
        for name in ("l2_strength", "spectral_strength", "regenerative_strength", "redo_threshold", "upgd_noise"):
            check_number(where + name, getattr(self, name), low=0)
        check_choice(where + "l2_coupling", self.l2_coupling, ["decoupled", "loss"])
        if self.augmentation is not None:
            check_choice(where + "augmentation", self.augmentation, ["crop", "crop_flip"])
        check_choice(where + "regenerative_norm", self.regenerative_norm, ["l2", "l1"])
        check_choice(where + "regenerative_coupling", self.regenerative_coupling, ["loss", "decoupled"])
        check_choice(where + "regenerative_toward", self.regenerative_toward, ["initial", "fresh"])
        for name in ("redo_interval", "optimizer_reset_interval", "injection_times"):
            if getattr(self, name) is not None:
                check_number(where + name, getattr(self, name), low=1, integer=True)
        for name in ("redo_unit", "optimizer_reset_unit"):
            check_choice(where + name, getattr(self, name), ["epochs", "steps"])
        check_number(where + "redo_batches", self.redo_batches, low=1, integer=True)
        check_number(where + "distillation_strength", self.distillation_strength, low=0)
        check_number(where + "distillation_temperature", self.distillation_temperature, low=0, low_open=True)
        check_number(where + "adam_eps", self.adam_eps, low=0)
        if not isinstance(self.adam_betas, (tuple, list)) or len(self.adam_betas) != 2:
            raise SettingError(f"{where}adam_betas = {self.adam_betas!r}: accepted are two numbers.")
        for beta in self.adam_betas:
            check_number(where + "adam_betas", beta, low=0, high=1, high_open=True)
        check_number(where + "cbp_replacement_rate", self.cbp_replacement_rate, low=0, high=1)
        check_number(where + "cbp_maturity", self.cbp_maturity, low=0, integer=True)
        check_number(where + "cbp_utility_decay", self.cbp_utility_decay, low=0, high=1, high_open=True)
        if self.weight_clipping_factor is not None:
            check_number(where + "weight_clipping_factor", self.weight_clipping_factor, low=0, low_open=True)
        check_number(where + "upgd_utility_decay", self.upgd_utility_decay, low=0, high=1, high_open=True)


@dataclass(frozen=True)
class MethodConfig(MethodSettings):
    """A method and its settings; those of other methods are ignored.

    Raises
    ------
    SettingError
        If a value is not accepted, or methods are combined that exclude each other.

    Examples
    --------
    >>> MethodConfig("hare_tortoise+l2", momentum=0.99).parts
    ('hare_tortoise', 'l2')
    """

    name: str = "hare_tortoise"
    """One of `METHODS`, or several joined by ``+``."""
    momentum: float = 0.999
    """Of the tortoise (Hare & Tortoise, EMA, the teacher of self-distillation), in [0, 1)."""
    reset_interval: int | None = 10
    """The hare is set back to the tortoise after every so many epochs or steps; None means never."""
    reset_unit: Literal["epochs", "steps"] = "epochs"
    """Unit of the reset interval; epochs are counted from 1 in each phase."""
    optimizer_state: Literal["keep", "clear"] = "keep"
    """Whether the optimiser's state is kept or cleared at a reset of the hare."""
    reset_at_phase_end: bool = True
    """Whether a reset due at a phase's last epoch happens."""
    recalibrate_batchnorm: int = 0
    """From how many of an epoch's last batches the tortoise's BatchNorm statistics are recomputed after the epoch; 0
    averages them like parameters."""
    ratio: float = 0.8
    """Shrink & Perturb: share of the weights that is given up, in [0, 1], and taken from the initial ones unless there
    is a `perturb`."""
    noise: float = 0.0
    """Shrink & Perturb: standard deviation of the added noise."""
    toward: Literal["initial", "fresh"] = "initial"
    """Shrink & Perturb and Head Reset: initial or fresh weights."""
    perturb: float = 0.0
    """Shrink & Perturb as Ash & Adams have it: factor of a freshly drawn network that is added to ``1 - ratio`` times
    the weights, in place of the share that is taken from `toward`; 0 adds none."""
    reinitialise_tortoise: bool = True
    """Whether what re-initialises weights (Shrink & Perturb, Head Reset, ReDo, continual backprop, plasticity
    injection) acts on the tortoise as well as on the hare."""

    def __post_init__(self) -> None:
        method_parts(self.name)
        check_number("MethodConfig: momentum", self.momentum, low=0, high=1, high_open=True)
        if self.reset_interval is not None:
            check_number("MethodConfig: reset_interval", self.reset_interval, low=1, integer=True)
        check_choice("MethodConfig: reset_unit", self.reset_unit, ["epochs", "steps"])
        check_choice("MethodConfig: optimizer_state", self.optimizer_state, ["keep", "clear"])
        check_number("MethodConfig: recalibrate_batchnorm", self.recalibrate_batchnorm, low=0, integer=True)
        check_number("MethodConfig: ratio", self.ratio, low=0, high=1)
        check_number("MethodConfig: noise", self.noise, low=0)
        check_number("MethodConfig: perturb", self.perturb, low=0)
        check_choice("MethodConfig: toward", self.toward, ["initial", "fresh"])
        self._check_method_settings()

    @property
    def parts(self) -> tuple[str, ...]:
        """The methods that are combined."""
        return method_parts(self.name)

    @property
    def follows(self) -> bool:
        """Whether there is a tortoise, which predicts."""
        return any(part in _FOLLOWING for part in self.parts)

    @property
    def resets(self) -> bool:
        """Whether the hare is set back to the tortoise."""
        return "hare_tortoise" in self.parts and self.reset_interval is not None

    def settings_of(self, part: str, *, seed: int = 0) -> dict[str, Any]:
        """Return one method's settings as its mechanism and its plugin name them."""
        return dict(_SETTINGS[part](self, seed))

    def training(self, config: TrainingConfig, shape: tuple[int, int, int]) -> TrainingConfig:
        """Return how the network is trained with this method: with its augmentation, its weight decay, and its Adam.

        Decoupled L2 takes the place of the optimiser's own weight decay, as in the authors' code.

        Parameters
        ----------
        config
            Without the method.
        shape
            One image's ``(channels, height, width)``.
        """
        if "augment" in self.parts:
            config = replace(config, augment=self.augmentation or ("crop_flip" if shape[0] > 1 else "crop"))
        if "l2" in self.parts and self.l2_coupling == "decoupled" and self.l2_strength:
            config = replace(config, weight_decay=0.0)
        if "adam" in self.parts:
            config = replace(config, eps=self.adam_eps, betas=self.adam_betas)
        return config

    def model(self, config: ModelConfig) -> ModelConfig:
        """Return which network is built with this method: with its activation (CReLU) and normalisation (LayerNorm).

        Raises
        ------
        SettingError
            If the network does not come in that form.
        """
        if "crelu" in self.parts:
            config = replace(config, activation="crelu")
        if "layer_norm" in self.parts:
            if config.name == "vit_tiny":
                raise SettingError(
                    f"MethodConfig: name = {self.name!r}: 'layer_norm' is LayerNorm in BatchNorm's places, and "
                    "vit_tiny has LayerNorm as published; leave 'layer_norm' out."
                )
            config = replace(config, normalisation="layer")
        return config


_SETTINGS: dict[str, Any] = {
    "hare_tortoise": lambda c, seed: {
        "momentum": c.momentum,
        "reset_interval": c.reset_interval,
        "reset_unit": c.reset_unit,
        "optimizer_state": c.optimizer_state,
        "reset_at_phase_end": c.reset_at_phase_end,
    },
    "ema": lambda c, seed: {"momentum": c.momentum},
    "shrink_perturb": lambda c, seed: {
        "ratio": c.ratio,
        "noise": c.noise,
        "toward": c.toward,
        "perturb": c.perturb,
        "seed": seed,
    },
    "head_reset": lambda c, seed: {"toward": c.toward, "seed": seed},
    "plasticity_injection": lambda c, seed: {"times": c.injection_times, "seed": seed},
    "l2": lambda c, seed: {"strength": c.l2_strength, "coupling": c.l2_coupling},
    "spectral_decoupling": lambda c, seed: {"strength": c.spectral_strength},
    "regenerative": lambda c, seed: {
        "strength": c.regenerative_strength,
        "norm": c.regenerative_norm,
        "coupling": c.regenerative_coupling,
        "toward": c.regenerative_toward,
        "seed": seed,
    },
    "self_distillation": lambda c, seed: {
        "strength": c.distillation_strength,
        "temperature": c.distillation_temperature,
    },
    "upgd": lambda c, seed: {"utility_decay": c.upgd_utility_decay, "noise": c.upgd_noise, "seed": seed},
    "weight_clipping": lambda c, seed: {"factor": c.weight_clipping_factor},
    "continual_backprop": lambda c, seed: {
        "replacement_rate": c.cbp_replacement_rate,
        "maturity": c.cbp_maturity,
        "utility_decay": c.cbp_utility_decay,
        "seed": seed,
    },
    "redo": lambda c, seed: {
        "threshold": c.redo_threshold,
        "interval": c.redo_interval,
        "unit": c.redo_unit,
        "batches": c.redo_batches,
        "seed": seed,
    },
    "optimizer_reset": lambda c, seed: {
        "interval": c.optimizer_reset_interval,
        "unit": c.optimizer_reset_unit,
    },
}

_TORTOISE = ("momentum", "recalibrate_batchnorm")
_RESET = ("reset_interval", "reset_unit", "optimizer_state", "reset_at_phase_end")
# Which settings mean something for which method; those with the same beginning are found by it.
_OWN = {
    "ema": _TORTOISE,
    "hare_tortoise": (*_TORTOISE, *_RESET),
    "self_distillation": _TORTOISE,
    "shrink_perturb": ("ratio", "noise", "toward", "perturb", "reinitialise_tortoise"),
    "head_reset": ("toward", "reinitialise_tortoise"),
    "plasticity_injection": ("reinitialise_tortoise",),
    "continual_backprop": ("reinitialise_tortoise",),
    "redo": ("reinitialise_tortoise",),
}
_PREFIX = {
    "l2": "l2_",
    "augment": "augmentation",
    "spectral_decoupling": "spectral_",
    "regenerative": "regenerative_",
    "redo": "redo_",
    "self_distillation": "distillation_",
    "optimizer_reset": "optimizer_reset_",
    "adam": "adam_",
    "continual_backprop": "cbp_",
    "plasticity_injection": "injection_",
    "weight_clipping": "weight_clipping_",
    "upgd": "upgd_",
}


def setting_names(parts: Sequence[str]) -> list[str]:
    """Return the fields of `MethodConfig` that mean something to these methods.

    Examples
    --------
    >>> setting_names(["l2", "augment"])
    ['l2_strength', 'l2_coupling', 'augmentation']
    """
    return [
        field.name
        for field in fields(MethodConfig)
        if any(field.name in _OWN.get(part, ()) or field.name.startswith(_PREFIX.get(part, "\0")) for part in parts)
    ]


def method_with_settings(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings in ``"name:setting=value,setting=value"``; without a colon there are none.

    Values are numbers, words, ``none``, ``true`` and ``false``; pairs are written ``0.9/0.99``.

    Raises
    ------
    SettingError
        If the name is unknown, or a setting is not one of the method's, has no value, or is given twice.

    Examples
    --------
    >>> method_with_settings("l2:l2_strength=0.01")
    ('l2', {'l2_strength': 0.01})
    >>> method_with_settings("adam+redo:adam_betas=0.9/0.9,redo_interval=none")
    ('adam+redo', {'adam_betas': (0.9, 0.9), 'redo_interval': None})
    """
    name, colon, rest = text.partition(":")
    parts = method_parts(name)
    every = [field.name for field in fields(MethodConfig) if field.name != "name"]
    known = setting_names(parts)
    settings: dict[str, Any] = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not key or not value:
            raise SettingError(f"MethodConfig: name = {text!r}: {item!r} is no setting=value.")
        key = key.replace("-", "_")
        if key in every and key not in known:
            raise SettingError(
                f"MethodConfig: name = {text!r}: {key!r} is no setting of {name!r}, which has "
                f"{', '.join(known) or 'none'}."
            )
        check_choice(f"MethodConfig: name = {text!r}: a setting", key, known)
        if key in settings:
            raise SettingError(f"MethodConfig: name = {text!r}: {key!r} is given twice.")
        settings[key] = _value(value)
    return "+".join(parts), settings


def _value(text: str) -> Any:
    if "/" in text:
        return tuple(_value(piece) for piece in text.split("/"))
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
