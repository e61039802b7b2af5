"""Published settings of methods: what a method's paper, or a comparison, used on a data set with its network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PUBLISHED", "published_settings"]

#: Those of arXiv 2406.02596, whose code has the same on all four data sets.
_PAPER: Mapping[str, Mapping[str, Any]] = {
    "hare_tortoise": {"momentum": 0.999, "reset_interval": 10},
    "shrink_perturb": {"shrink_perturb_ratio": 0.8, "toward": "initial"},
    "l2": {"l2_strength": 0.1, "l2_coupling": "decoupled"},
}


def _fire(**columns: tuple[Any, Any, Any]) -> Mapping[str, dict[str, Any]]:
    """Return settings by data set, from their values on CIFAR-10, CIFAR-100 and Tiny ImageNet."""
    data_sets = ("cifar10", "cifar100", "tiny-imagenet")
    return {data: {name: own[place] for name, own in columns.items()} for place, data in enumerate(data_sets)}


_MATURITY = (1000, 100, 1000)
_DASH_ALPHA = (0.3, 0.1, 0.1)
# The scripts of FIRE's comparison (arXiv 2602.08040; code isaac7778/FIRE): ResNet-18, ViT-Tiny and VGG-16.
_FIRE: Mapping[str, Mapping[str, Mapping[str, dict[str, Any]]]] = {
    "warm_start": {
        "regenerative": _fire(regenerative_strength=(1e-3, 1e-3, 1e-3)),
        "redo": _fire(redo_threshold=(0.5, 0.5, 0.5)),
        "continual_backprop": _fire(
            continual_backprop_replacement_rate=(1e-4, 1e-4, 1e-4), continual_backprop_maturity=_MATURITY
        ),
        "parseval": _fire(parseval_strength=(1e-3, 1e-5, 1e-3)),
        "dash": _fire(dash_alpha=_DASH_ALPHA, dash_floor=(0.05, 0.05, 0.05)),
    },
    "continual": {
        "regenerative": _fire(regenerative_strength=(1e-5, 1e-4, 1e-5)),
        "redo": _fire(redo_threshold=(0.05, 0.01, 0.01)),
        "continual_backprop": _fire(
            continual_backprop_replacement_rate=(1e-5, 1e-5, 1e-5), continual_backprop_maturity=_MATURITY
        ),
        "parseval": _fire(parseval_strength=(1e-3, 1e-5, 1e-4)),
        "dash": _fire(dash_alpha=_DASH_ALPHA, dash_floor=(0.05, 0.05, 0.1)),
    },
}
#: The network that the values are of, by data set.
PUBLISHED = {"mnist": "mlp", "cifar10": "resnet18", "cifar100": "vit_tiny", "tiny-imagenet": "vgg16"}


def published_settings(method: str, data: str, stream: str) -> dict[str, Any]:
    """Return a method's published settings on a data set with the network of `PUBLISHED`; none where none are known.

    Parameters
    ----------
    method : str
        One method's name, without combinations.
    data : str
        The data set's name.
    stream : str
        ``"warm_start"`` has values of its own; all other streams have those of data that arrive in phases.

    Examples
    --------
    >>> published_settings("redo", "cifar100", "continual")
    {'redo_threshold': 0.01}
    >>> published_settings("upgd", "cifar100", "continual")
    {}
    """
    kind = "warm_start" if stream == "warm_start" else "continual"
    known: Mapping[str, Any] = _PAPER.get(method) or _FIRE[kind].get(method, {}).get(data, {})
    return dict(known)
