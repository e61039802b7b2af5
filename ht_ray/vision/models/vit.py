"""Backbone of ViT-Tiny (DeiT-Ti)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ht_ray.errors import SettingError
from ht_ray.vision.models.layers import TruncNormalLinear, small_normal_

__all__ = ["VisionTransformer", "patch_size_for"]


def patch_size_for(height: int, width: int) -> int:
    """Return the largest patch size of at most 4, the paper's, that divides both sides of an image.

    Examples
    --------
    >>> [patch_size_for(side, side) for side in (64, 32, 28, 8, 9, 7)]
    [4, 4, 4, 4, 3, 1]
    """
    return next(size for size in (4, 3, 2, 1) if height % size == 0 and width % size == 0)


class _Tokens(nn.Module):
    """Put the class token before the patches ``(B, P, D)`` and add the position embedding: ``(B, 1 + P, D)``."""

    def __init__(self, patches: int, dim: int) -> None:
        super().__init__()
        self.class_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position = nn.Parameter(torch.empty(1, 1 + patches, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        small_normal_(self.class_token)
        small_normal_(self.position)

    def forward(self, patches: Tensor) -> Tensor:
        class_token = self.class_token.expand(patches.shape[0], -1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = TruncNormalLinear(dim, 3 * dim)
        self.out = TruncNormalLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = _Attention(dim, heads)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            TruncNormalLinear(dim, 4 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            TruncNormalLinear(4 * dim, dim),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class VisionTransformer(nn.Module):
    """A pre-norm vision transformer; its features are the class token after the last normalisation.

    Parameters
    ----------
    shape
        One image's ``(channels, height, width)``.
    patch_size
        Side of the square patches, in pixels; it must divide height and width. None: `patch_size_for` the image.
    dim
        Width of a token. Published (DeiT-Ti): 192.
    heads
        Attention heads; they must divide `dim`. Published: 3.
    depth
        Number of blocks. Published: 12.
    dropout
        Probability of dropping an activation: after the position embedding, the attention and each of the MLP's layers.
        Attention weights are not dropped.

    Raises
    ------
    SettingError
        If the patches do not tile the image, or the heads do not divide the width.

    Notes
    -----
    Weights start from a truncated normal distribution of deviation 0.02, as in DeiT; the projection of the patches, a
    convolution there too, starts from torch's default.

    Attention runs through `torch.nn.functional.scaled_dot_product_attention`, whose fused kernels have no second
    derivative: take curvature under ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``.

    References
    ----------
    Touvron et al. (2021). Training data-efficient image transformers. arXiv:2012.12877.
    Lee et al. (2024), appendix A.2. arXiv:2406.02596.

    Examples
    --------
    >>> VisionTransformer((3, 32, 32), dim=24, depth=2)(torch.zeros(5, 3, 32, 32)).shape
    torch.Size([5, 24])
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        patch_size: int | None = None,
        dim: int = 192,
        heads: int = 3,
        depth: int = 12,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        if patch_size is None:
            patch_size = patch_size_for(height, width)
        if patch_size < 1 or height % patch_size or width % patch_size:
            raise SettingError(
                f"VisionTransformer: patch_size = {patch_size!r}: accepted is a divisor of both sides of the image, "
                f"{height} and {width}."
            )
        if heads < 1 or dim % heads:
            raise SettingError(f"VisionTransformer: heads = {heads!r}: accepted is a divisor of dim = {dim}.")
        patches = (height // patch_size) * (width // patch_size)
        self.patches = nn.Conv2d(channels, dim, kernel_size=patch_size, stride=patch_size)
        self.tokens = _Tokens(patches, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(_Block(dim, heads, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.feature_size = dim

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(B, C, H, W)`` to features ``(B, feature_size)``."""
        tokens = self.tokens(self.patches(images).flatten(2).transpose(1, 2))
        features: Tensor = self.norm(self.blocks(self.dropout(tokens))[:, 0])
        return features
