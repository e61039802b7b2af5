"""The agents of `ht_ray.agents` as algorithms of RLlib."""
