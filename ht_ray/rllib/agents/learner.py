"""The agents for RLlib: the module that holds an agent's networks, and the learner that holds the agent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.policy.sample_batch import DEFAULT_POLICY_ID, MultiAgentBatch, SampleBatch
from torch import Tensor

from ht_ray.agents import to_unit
from ht_ray.agents.registry import agent_from_dict, make_agent
from ht_ray.agents.replay import Batch
from ht_ray.rllib.last_value import LAST
from ht_ray.rllib.methods.learner import DISTANCE, HEAD_RESETS, RESETS, SHRINK_PERTURBS, UPDATES

__all__ = ["COMPONENT_AGENT", "AgentLearner", "AgentModule", "as_learner_batch"]

#: The agent's part of a learner's state.
COMPONENT_AGENT = "agent"

_COLUMNS = tuple(field.name for field in fields(Batch))
# Metrics, and what of an agent counts them, where it has it.
_APPLIED = {SHRINK_PERTURBS: "shrink_perturb", HEAD_RESETS: "head_reset", "restarts": "restart"}


def as_learner_batch(batch: Batch) -> MultiAgentBatch:
    """Return the batch of a replay as an `AgentLearner` takes it; tensors are passed on as they are."""
    columns = {name: column for name in _COLUMNS if (column := getattr(batch, name)) is not None}
    return MultiAgentBatch({DEFAULT_POLICY_ID: SampleBatch(columns)}, env_steps=len(batch.actions))


class AgentModule(TorchRLModule):
    """The online network of an `Agent` and its target, if it has one; for RLlib's inference and checkpoints.

    ``model_config`` holds the agent's settings and the seed. Observations are frame stacks, ``(B, C, H, W)``, from 0 to
    255. Actions are greedy; exploring is the env runner's, by the agent.
    """

    def setup(self) -> None:
        """Make the networks."""
        self.agent_config = agent_from_dict(self.model_config["agent"])
        agent = make_agent(
            self.agent_config,
            shape=self.observation_space.shape,
            num_actions=int(self.action_space.n),
            seed=self.model_config["seed"],
        )
        self.network, self.target, self.value = agent.network, agent.target, agent.value

    def compute_q_values(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the values of all actions by the network that acts: ``qf_preds``, ``(B, actions)``."""
        network = self.target if self.target is not None and self.agent_config.act_with_tortoise else self.network
        return {"qf_preds": self.value.expectation(network(to_unit(batch[Columns.OBS])))}

    def _forward(self, batch: Mapping[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        outputs = self.compute_q_values(batch)
        return {Columns.ACTIONS: outputs["qf_preds"].argmax(-1), **outputs}


class AgentLearner(TorchLearner):
    """Trains by `Agent.update`, the very code of the plain loop."""

    def build(self) -> None:
        """Build the module, and the agent over its network."""
        super().build()
        module = self.module[DEFAULT_POLICY_ID].unwrapped()
        #: The agent; its networks are the module's.
        self.agent = make_agent(
            module.agent_config,
            shape=module.observation_space.shape,
            num_actions=int(module.action_space.n),
            seed=module.model_config["seed"],
            device=self.device,
            precision=self.config.precision,
            compile=self.config.compile,
            graph=self.config.graph,
            network=module.network,
        )
        module.target = self.agent.target
        #: What the latest update returned.
        self.measured: dict[str, Tensor] = {}

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Do nothing: the agent has its own optimiser."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:
        """Not used: loss, gradients and step are the agent's.

        Raises
        ------
        NotImplementedError
            Always.
        """
        raise NotImplementedError("AgentLearner: the loss is computed by Agent.update, with gradients and step")

    def _update(self, batch: Mapping[str, Any], **kwargs: Any) -> tuple[Any, Any, Any]:
        columns = batch[DEFAULT_POLICY_ID]
        self.measured = self.agent.update(Batch(**{name: columns[name] for name in _COLUMNS if name in columns}))
        return {}, {DEFAULT_POLICY_ID: self.measured["loss"]}, {}

    def log_agent(self) -> None:
        """Log what the agent counts, as the learner mixins name it, the distance to the tortoise, and the schedules."""
        agent = self.agent
        counts = {"gradient_steps": agent.updates}
        if agent.tortoise is not None:
            counts |= {UPDATES: agent.tortoise.updates, RESETS: agent.tortoise.resets}
            self.metrics.log_value((DEFAULT_POLICY_ID, DISTANCE), agent.tortoise.distance(), reduce=LAST)
        for name, attribute in _APPLIED.items():
            if (method := getattr(agent, attribute, None)) is not None:
                counts[name] = method.applications
        for name, count in counts.items():
            self.metrics.log_value((DEFAULT_POLICY_ID, name), count, reduce="max")
        sampling = agent.sampling()
        latest = {"n_step": sampling.n_step, "discount": sampling.discount, **self.measured}
        for name in ("n_step", "discount", "target", "spr_loss"):
            if latest.get(name) is not None:
                self.metrics.log_value((DEFAULT_POLICY_ID, name), latest[name], reduce=LAST)

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the learner's state; under `COMPONENT_AGENT` the agent's without the weights that the module has."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_AGENT, components, not_components):
            state[COMPONENT_AGENT] = self.agent.state_dict(weights=False)
        return state

    def set_state(self, state: Any) -> None:
        """Continue from `state`."""
        super().set_state(state)
        if COMPONENT_AGENT not in state:
            return
        if COMPONENT_RL_MODULE in state:
            # RLlib passes over weights that it takes for older than its own.
            self.module.set_state(state[COMPONENT_RL_MODULE])
        self.agent.load_state_dict(state[COMPONENT_AGENT])
