"""Network of a backbone and a head: which one is built, how wide, and from which initial weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from torch import Tensor, nn

from ht_ray._checks import check_choice, check_fields, check_number, refused
from ht_ray.errors import SettingError
from ht_ray.mechanisms.units.crelu import CReLU, Doubling, Fourier
from ht_ray.mechanisms.weights.rng import derive_seed, isolated_rng
from ht_ray.vision.models.layers import TruncNormalLinear
from ht_ray.vision.models.mlp import MLP
from ht_ray.vision.models.own import is_own_model, make_own_network
from ht_ray.vision.models.resnet import ResNet18
from ht_ray.vision.models.vgg import VGG16
from ht_ray.vision.models.vit import VisionTransformer

__all__ = ["ModelConfig", "Network", "make_model"]

# Beyond are typing errors.
_MOST_UNITS = 1_000_000
_NAMES = ("mlp", "resnet18", "vit_tiny", "vgg16")
_PAPER_DROPOUT = {"vit_tiny": 0.1}
_PAPER_HEAD = {"vgg16": (1024, 1024)}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "crelu": CReLU, "fourier": Fourier}
# CReLU replaces an activation: heads that have none get a hidden layer as wide as the published features.
_DOUBLED_HEAD = {"vgg16": (1024, 1024), "resnet18": (512,), "vit_tiny": (192,)}
# Of the mlp, by `ModelConfig.normalisation`.
_NORMS: Mapping[str, Callable[[int], nn.Module] | None] = {
    "published": nn.BatchNorm1d,
    "layer": nn.LayerNorm,
    "none": None,
}


class Network(nn.Module):
    """A backbone, which encodes images, and a head: everything after the encoder.

    Parameters
    ----------
    backbone
        Maps images ``(B, C, H, W)`` to features ``(B, feature_size)``.
    head
        Maps features to logits ``(B, K)``.
    feature_size
        The number of features.

    Notes
    -----
    For the networks of `make_model`, calling ``reset_parameters()`` on every sub-module that has it draws every
    parameter again from its initial distribution and empties BatchNorm's statistics. In the order of
    ``Module.apply`` and from the same state of the generator, it draws the same values as the construction.

    No activation module is used in two places, and none works in place, so that hooks see what each one returns.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, feature_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.feature_size = feature_size

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to logits ``(B, K)``."""
        logits: Tensor = self.head(self.backbone(images))
        return logits


@dataclass(frozen=True)
class ModelConfig:
    """Which of the paper's networks, and how it departs from the published one.

    Raises
    ------
    SettingError
        If a value is not accepted, or has no meaning for the named network.

    References
    ----------
    Lee et al. (2024), appendices A.2 and A.4. arXiv:2406.02596.
    Abbas et al. (2023). Loss of plasticity in continual deep reinforcement learning. arXiv:2303.07507.
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.

    Examples
    --------
    >>> ModelConfig(name="resnet")
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: ModelConfig.name = 'resnet': accepted are 'mlp', 'resnet18', 'vit_tiny', 'vgg16'. \
Did you mean 'resnet18'?
    """

    name: str = "mlp"
    """mlp, resnet18, vit_tiny or vgg16; the paper trains them on MNIST, CIFAR-10, CIFAR-100 and Tiny ImageNet. A
    network of yours is my_package.my_module:make_network, called with shape and num_classes; timm:resnet26 and
    torchvision:resnet18 are theirs, without trained weights."""
    hidden: tuple[int, ...] = (100, 100)
    """Units of each hidden layer of the mlp's backbone; the other networks take none."""
    width: float = 1.0
    """Factor on the width of every hidden layer, in backbone and head; 1 is the published network. A vit_tiny keeps
    heads of about 64 channels while it can: 2 is DeiT-S."""
    dropout: float | None = None
    """Probability of dropping an activation; None is the paper's: 0.1 for vit_tiny, 0 for the others. It acts after
    each hidden layer of the mlp and of any head, on the features of resnet18 and vgg16, and in vit_tiny as in DeiT."""
    head_hidden: tuple[int, ...] | None = None
    """Units of each hidden layer of the head, () for a linear one; None is the paper's: (1024, 1024) for vgg16, () for
    the others (but see `activation`)."""
    activation: str = "relu"
    """relu (as published; the blocks of vit_tiny have GELU), crelu as in the paper's comparison, or fourier (sine and
    cosine): in the head, and in the mlp everywhere. Each layer before the latter two has half the units named here,
    rounded up, and so passes on as many features. The published heads of resnet18 and vit_tiny are linear and have no
    activation to replace: with these and ``head_hidden=None`` they get a hidden layer of 512 (as the authors' code has
    for CIFAR-10) and 192 features; the same network with ReLU has ``head_hidden=(512,)`` or ``(192,)``."""
    normalisation: str = "published"
    """published (BatchNorm; LayerNorm in vit_tiny), or layer: LayerNorm in BatchNorm's places; for the mlp also none.
    That of resnet18 and vgg16 is over all channels and positions of a sample, with one weight and bias per channel (a
    GroupNorm of one group). For vit_tiny only published is accepted."""
    head: str | None = None
    """Of a network of your own: the name of its head, as classifier.2; None looks for one."""

    def __post_init__(self) -> None:
        if isinstance(self.name, str) and is_own_model(self.name):
            self._check_own()
            return
        check_choice("ModelConfig.name", self.name, _NAMES)
        if self.head is not None:
            raise refused(
                "ModelConfig.head", self.head, f": accepted for a network of your own; {self.name} has its head."
            )
        check_fields(self, "hidden", "head_hidden", low=1, high=_MOST_UNITS, integer=True)
        if self.name != "mlp" and tuple(self.hidden) != ModelConfig.hidden:
            why = (
                f": accepted for {{ModelConfig.name}} = 'mlp' only; narrow or widen {self.name} with "
                "{ModelConfig.width}."
            )
            raise refused("ModelConfig.hidden", self.hidden, why)
        check_fields(self, "width", low=0.001, high=100)
        check_fields(self, "dropout", low=0, high=1, high_open=True)
        check_choice("ModelConfig.activation", self.activation, _ACTIVATIONS)
        if self.activation != "relu" and self.head_hidden == () and self.name != "mlp":
            why = (
                f": a linear head has no activation; accepted for {self.name} is a {{ModelConfig.head_hidden}} "
                f"with layers, or None for {_DOUBLED_HEAD[self.name]}."
            )
            raise refused("ModelConfig.activation", self.activation, why)
        known = ("published", "layer", "none") if self.name == "mlp" else ("published", "layer")
        check_choice("ModelConfig.normalisation", self.normalisation, known)
        if self.normalisation == "layer" and self.name == "vit_tiny":
            why = ": accepted for vit_tiny is 'published', which is LayerNorm."
            raise refused("ModelConfig.normalisation", self.normalisation, why)

    def _check_own(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name not in ("name", "head") and value != one.default:
                why = ": it has no meaning for {ModelConfig.name} = {name!r}, which is made as it is."
                raise refused(f"ModelConfig.{one.name}", value, why, name=self.name)


def make_model(config: ModelConfig, *, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    """Build a network on the CPU with the initial weights of `seed`.

    Parameters
    ----------
    config
        Which network.
    shape
        One image's ``(channels, height, width)``. Every network takes any size: see `VGG16` and `VisionTransformer` for
        how they adapt. Of a table, ``(features,)``: for the mlp, and networks of one's own.
    num_classes
        The number of logits.
    seed
        The run's seed. The caller's generators are neither read nor moved.

    Raises
    ------
    SettingError
        If `shape` is not one or three positive whole numbers, `num_classes` not one, the network does not take such
        samples, or it cannot be made.

    Examples
    --------
    >>> network = make_model(ModelConfig("mlp"), shape=(1, 28, 28), num_classes=10, seed=0)
    >>> sum(p.numel() for p in network.parameters())
    90010
    >>> network.head
    Sequential(
      (0): Linear(in_features=100, out_features=10, bias=True)
    )
    """
    if len(shape) not in (1, 3):
        raise SettingError(f"make_model: shape = {shape!r}: accepted is (channels, height, width), or (features,).")
    for side in shape:
        check_number("make_model: shape", side, low=1, integer=True)
    check_number("make_model: num_classes", num_classes, low=1, integer=True)
    if is_own_model(config.name):
        with isolated_rng(derive_seed(seed, "init")):
            return make_own_network(config.name, config.head, tuple(shape), num_classes)
    if len(shape) == 1 and config.name != "mlp":
        why = ": it takes images, and the data are a table; accepted is 'mlp', or a network of your own."
        raise refused("ModelConfig.name", config.name, why)
    dropout = _PAPER_DROPOUT.get(config.name, 0.0) if config.dropout is None else config.dropout
    activation, layer_norm = _ACTIVATIONS[config.activation], config.normalisation == "layer"
    doubles = issubclass(activation, Doubling)
    paper_head = (_DOUBLED_HEAD if doubles else _PAPER_HEAD).get(config.name, ())
    head_hidden = paper_head if config.head_hidden is None else config.head_hidden
    base = _scaled(64, config.width)
    backbone: MLP | ResNet18 | VGG16 | VisionTransformer
    linear: type[nn.Linear] = nn.Linear
    with isolated_rng(derive_seed(seed, "init")):
        if config.name == "mlp":
            hidden = [_scaled(units, config.width) for units in config.hidden]
            norm = _NORMS[config.normalisation]
            backbone = MLP(shape, hidden=hidden, dropout=dropout, norm=norm, activation=activation)
        elif config.name == "resnet18":
            backbone = ResNet18(shape[0], base=base, dropout=dropout, layer_norm=layer_norm)
        elif config.name == "vgg16":
            backbone = VGG16(_sides(shape), base=base, dropout=dropout, layer_norm=layer_norm)
        else:
            heads = _scaled(3, config.width)
            dim = heads * 8 * _scaled(24 / heads, config.width)
            backbone = VisionTransformer(_sides(shape), dim=dim, heads=heads, dropout=dropout)
            linear = TruncNormalLinear
        head = nn.Sequential()
        features = backbone.feature_size
        for wanted in head_hidden:
            wanted = _scaled(wanted, config.width)
            units = math.ceil(wanted / 2) if doubles else wanted
            head.extend([linear(features, units), activation()])
            if dropout:
                head.append(nn.Dropout(dropout))
            features = 2 * units if doubles else units
        head.append(linear(features, num_classes))
    return Network(backbone, head, backbone.feature_size)


def _sides(shape: tuple[int, ...]) -> tuple[int, int, int]:
    channels, height, width = shape
    return channels, height, width


def _scaled(units: float, width: float) -> int:
    return max(1, round(units * width))
