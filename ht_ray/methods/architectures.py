"""Architectures as methods: CReLU, Fourier features and LayerNorm, with which the network is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ht_ray._checks import refused
from ht_ray.mechanisms.units.crelu import CReLU, Fourier
from ht_ray.methods.method import Method
from ht_ray.methods.registry import register

__all__ = ["CReLUNetwork", "DeepFourier", "LayerNormNetwork"]


class _Architecture(Method):
    """Base of methods that are a form of the network."""

    capturable = True
    not_for_agents = "it is a form of the vision networks"
    #: What a network of that form has.
    kinds: tuple[type[nn.Module], ...] = ()

    def _begin(self) -> None:
        if not any(isinstance(part, self.kinds) for part in self.module.modules()):
            why = (
                f": the network has no {self.kinds[0].__name__}; build it with "
                "make_model(method.model(ModelConfig(...)), ...)."
            )
            raise refused("MethodConfig.name", self.name, why)


class _Activation(_Architecture):
    """Base of methods that are an activation in place of ReLU."""

    #: The activation, as network configurations call it.
    activation: str

    @classmethod
    def configure_model(cls, settings: Any, config: Any) -> Any:
        """Return `config` with the activation.

        Raises
        ------
        SettingError
            If the network has another activation in place of ReLU.
        """
        if config.activation not in ("relu", cls.activation):
            why = f": the network has {config.activation} in place of ReLU already."
            raise refused("MethodConfig.name", cls.name, why)
        return replace(config, activation=cls.activation)


@register
class CReLUNetwork(_Activation):
    """CReLU in place of ReLU (Abbas et al. 2023, arXiv 2303.07507)."""

    name = "crelu"
    title = "CReLU"
    kinds = (CReLU,)
    activation = "crelu"


@register
class DeepFourier(_Activation):
    """Sine and cosine in place of ReLU (Lewandowski et al. 2025, arXiv 2410.20634)."""

    name = "deep_fourier"
    title = "Deep Fourier Features"
    kinds = (Fourier,)
    activation = "fourier"


@register
class LayerNormNetwork(_Architecture):
    """LayerNorm in BatchNorm's places (Lyle et al. 2023, arXiv 2303.01486)."""

    name = "layer_norm"
    title = "LayerNorm"
    kinds = (nn.LayerNorm, nn.GroupNorm)

    @classmethod
    def configure_model(cls, settings: Any, config: Any) -> Any:
        """Return `config` with LayerNorm.

        Raises
        ------
        SettingError
            If the network has LayerNorm as published.
        """
        if config.name == "vit_tiny":
            why = ": it is LayerNorm in BatchNorm's places, and vit_tiny has it as published; leave it out."
            raise refused("MethodConfig.name", cls.name, why)
        return replace(config, normalisation="layer")
