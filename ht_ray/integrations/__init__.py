"""Hare & Tortoise in other libraries' training loops; each module needs its library, an extra of this package.

`ht_ray.integrations.lightning` and `ht_ray.integrations.transformers`.
"""
