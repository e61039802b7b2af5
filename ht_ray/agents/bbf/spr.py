"""SPR: what a network expects of its own future latents, against what they turn out to be."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

__all__ = ["spr_loss"]


def spr_loss(predictions: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of normalised predictions and targets, averaged over the steps.

    Parameters
    ----------
    predictions : Tensor
        ``(B, K, D)``: what is expected after 1 to K steps.
    targets : Tensor
        ``(B, K, D)``: what the target network makes of the observations there. No gradient flows into them.
    mask : Tensor
        ``(B, K)``: 1 where the step is of the same episode, 0 past its end. Masked steps count as 0 in the mean over
        all K, as in the code published with BBF.

    Returns
    -------
    Tensor
        ``(B,)``, float32, from 0 to 4.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    References
    ----------
    Schwarzer et al. (2021). Data-efficient reinforcement learning with self-predictive representations. \
arXiv:2007.05929. Their loss is the negative cosine: half of this one, less 1.

    Examples
    --------
    >>> import torch
    >>> predictions = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    >>> targets = torch.tensor([[[0.0, 3.0], [0.0, 5.0]]])
    >>> spr_loss(predictions, targets, torch.ones(1, 2)), spr_loss(predictions, targets, torch.tensor([[0.0, 1.0]]))
    (tensor([1.]), tensor([0.]))
    """
    if predictions.ndim != 3 or predictions.shape != targets.shape or mask.shape != predictions.shape[:2]:
        raise ValueError(
            f"spr_loss: predictions {tuple(predictions.shape)}, targets {tuple(targets.shape)}, mask "
            f"{tuple(mask.shape)}: expected (B, K, D), (B, K, D), (B, K)"
        )
    expected = functional.normalize(predictions.float(), dim=-1)
    found = functional.normalize(targets.detach().float(), dim=-1)
    return ((expected - found).square().sum(-1) * mask).mean(1)
