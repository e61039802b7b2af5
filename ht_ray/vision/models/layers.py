"""Layers that differ from torch's only in how they draw their initial weights, and which normalisation is meant.

The initialisation belongs to the layer, not to the network that holds it: torch's constructors call
``reset_parameters()``, so building a network, re-initialising all of it (Shrink & Perturb), its head (Head Reset) or
single units (ReDo) draw from one definition.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["HeConv2d", "TruncNormalLinear", "map_norm", "small_normal_"]


class HeConv2d(nn.Conv2d):
    """A convolution with weights from He's normal distribution by fan-out, and biases of zero.

    As torchvision initialises ResNet and VGG.

    References
    ----------
    He et al. (2015). Delving deep into rectifiers. arXiv:1502.01852.
    """

    def reset_parameters(self) -> None:
        """Draw the initial weights again."""
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TruncNormalLinear(nn.Linear):
    """A linear layer with weights from a truncated normal distribution of deviation 0.02, and biases of zero.

    As DeiT initialises its transformer and its head (see `small_normal_`).

    References
    ----------
    Touvron et al. (2021). Training data-efficient image transformers. arXiv:2012.12877.
    """

    def reset_parameters(self) -> None:
        """Draw the initial weights again."""
        small_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def small_normal_(tensor: Tensor) -> None:
    """Draw `tensor` from a normal distribution of deviation 0.02, in place.

    DeiT truncates it at -2 and 2, which is a hundred deviations away. How torch's ``trunc_normal_`` draws differs
    between its versions (2.11 inverts the distribution, 2.15 rejects); drawn so, a seed's weights are the same in both,
    and those of ``trunc_normal_`` in 2.15.
    """
    nn.init.normal_(tensor, std=0.02)


def map_norm(channels: int, *, layer_norm: bool) -> nn.Module:
    """Return the normalisation of maps ``(B, C, H, W)``: BatchNorm, or LayerNorm over each sample's ``(C, H, W)``.

    The latter is a GroupNorm of one group: statistics as LayerNorm's over ``(C, H, W)``, but one weight and bias per
    channel, as BatchNorm has, and not per position.

    References
    ----------
    Ba et al. (2016). Layer normalization. arXiv:1607.06450.
    Wu and He (2018). Group normalization. arXiv:1803.08494.
    """
    return nn.GroupNorm(1, channels) if layer_norm else nn.BatchNorm2d(channels)
