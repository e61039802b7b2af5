"""Plain training, which nothing is added to."""

from __future__ import annotations

from ht_ray.methods.method import Method
from ht_ray.methods.registry import register

__all__ = ["Plain"]


@register
class Plain(Method):
    """No method: it stands for itself and combines with nothing."""

    name = "plain"
    title = "Plain"
    capturable = True
