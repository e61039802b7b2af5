"""Acting with the tortoise: an RLModule that chooses its actions by the target networks."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule

__all__ = ["ActWithTortoise"]


class ActWithTortoise(TorchRLModule):
    """Mixin for DQN's RLModules, own ones included: exploration and inference use the target networks.

    RLlib's env runners get a copy of the module without target networks; here they get both. Training is as before.
    Put it before the module's class: ``class MyModule(ActWithTortoise, DefaultDQNTorchRLModule)``.
    `ht_ray.rllib.HareTortoiseConfig` does so for the algorithm's default module when ``act_with_tortoise`` is set.
    """

    _acting = False

    def setup(self) -> None:
        """Build the networks; where there is no learner to do so, the target networks too."""
        super().setup()
        if self.inference_only:
            self.make_target_networks()

    def get_non_inference_attributes(self) -> list[str]:
        """Return what acting does not need: what it is without the mixin, but for the target networks."""
        targets = {target for _, target in self.get_target_network_pairs()}
        kept = {name for name, part in self.named_modules() if part in targets}
        return [name for name in super().get_non_inference_attributes() if name not in kept]

    def compute_q_values(self, batch: Any) -> Any:
        """Return the Q-values of the online networks; while acting, of the target networks."""
        return self.forward_target(batch) if self._acting else super().compute_q_values(batch)

    def _forward_inference(self, batch: Any, **kwargs: Any) -> Any:
        return self._act(super()._forward_inference, batch, **kwargs)

    def _forward_exploration(self, batch: Any, **kwargs: Any) -> Any:
        return self._act(super()._forward_exploration, batch, **kwargs)

    def _act(self, forward: Any, batch: Any, **kwargs: Any) -> Any:
        self._acting = True
        try:
            return forward(batch, **kwargs)
        finally:
            self._acting = False
