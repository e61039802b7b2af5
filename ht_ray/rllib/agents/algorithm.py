"""Agents on Atari-100k as algorithms of RLlib: the plain loop's agent, replay and game, step for step."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, ClassVar, Literal

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS, LEARNER_RESULTS
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from torch import Tensor

from ht_ray._checks import check_choice, check_number, did_you_mean
from ht_ray._deprecated import old_names
from ht_ray.agents.base_config import PRECISIONS, AgentConfig, Precision, changed_variant
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.envs.games import game_name
from ht_ray.agents.registry import AGENTS
from ht_ray.agents.replay import Batch
from ht_ray.agents.training.evaluate import evaluate
from ht_ray.agents.training.indicators import AgentIndicators
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed
from ht_ray.rllib.agents.env_runner import AgentEnvRunner, log_game
from ht_ray.rllib.agents.learner import AgentLearner, AgentModule, as_learner_batch
from ht_ray.rllib.last_value import LAST
from ht_ray.rllib.provided import set_provided

__all__ = ["AgentAlgorithm", "AgentAlgorithmConfig"]

# What RLlib's other algorithms call settings of an agent.
_SYNONYMS = {
    "gamma": "discount",
    "lr": "learning_rate",
    "train_batch_size": "batch_size",
    "train_batch_size_per_learner": "batch_size",
}


class AgentAlgorithmConfig(AlgorithmConfig):
    """What `DrQAlgorithmConfig` and `BBFAlgorithmConfig` share: a game of Atari-100k, and an agent at it.

    An iteration is 1000 steps of the agent, an evaluation 100 whole games with epsilon 0.001. Agent, game and replay
    live in the algorithm's process: ``num_env_runners`` and ``num_learners`` are 0. With
    ``.learners(num_gpus_per_learner=...)``, a fraction too, networks and replay are on the GPU.
    """

    #: Which of `AGENTS` it is.
    kind: ClassVar[str]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        #: The agent's variant, and what is changed of it.
        self.variant: str = next(iter(AGENTS[self.kind].variants))
        self.agent_settings: dict[str, Any] = {}
        self.precision: Precision = "auto"
        self.compile: bool = False
        self.graph: Literal["auto", "on", "off"] = "auto"
        self.indicators_interval: int | None = None
        self.env_runner_cls = AgentEnvRunner
        self.num_env_runners = 0
        self.num_learners = 0
        self.rollout_fragment_length = 100
        self.min_sample_timesteps_per_iteration = 1000
        self.evaluation_duration = 100
        self.custom_evaluation_function = play_games

    def training(
        self,
        *,
        variant: str = NotProvided,
        precision: Precision = NotProvided,
        compile: bool = NotProvided,
        graph: Literal["auto", "on", "off"] = NotProvided,
        indicators_interval: int | None = NotProvided,
        **settings: Any,
    ) -> Any:
        """Set the agent.

        Parameters
        ----------
        variant
            One of the agent's: see `AGENTS`. Default: the first.
        precision, compile, graph
            See `ht_ray.agents.base.Agent`.
        indicators_interval
            Gradient steps from one measurement of plasticity indicators to the next; see
            `ht_ray.agents.training.indicators.AgentIndicators`. Default: None, which measures nothing.
        **settings
            What is changed of the variant: fields of `DrQConfig` or `BBFConfig`; ``gamma`` and
            ``train_batch_size(_per_learner)`` are understood.

        Raises
        ------
        SettingError
            If there is no such setting. Values are checked by `validate`, so that they may be Ray Tune's.
        """
        # Of RLlib's old stack, without effect here: `update_from_dict` passes them on from every config's dict.
        super().training(**{name: settings.pop(name) for name in ("model", "optimizer") if name in settings})
        own = [field.name for field in fields(AGENTS[self.kind].config)]
        renamed = old_names(AGENTS[self.kind].config)
        for name, value in settings.items():
            setting = _SYNONYMS.get(name, name)
            if setting not in own and setting not in renamed:
                known = [*own, "variant", "precision", "compile", "graph", "indicators_interval"]
                raise SettingError(
                    f"{type(self).__name__}.training has no setting {name!r}.{did_you_mean(name, known)}"
                )
            if value is not NotProvided:
                self.agent_settings = {**self.agent_settings, setting: value}
        set_provided(
            self,
            variant=variant,
            precision=precision,
            compile=compile,
            graph=graph,
            indicators_interval=indicators_interval,
        )
        return self

    @property
    def agent_config(self) -> AgentConfig:
        """The agent's settings."""
        config: AgentConfig = changed_variant(AGENTS[self.kind].variants, self.variant, self.agent_settings)
        return config

    @property
    def agent_seed(self) -> int:
        """The seed of every draw: ``debugging(seed=...)``, by default 0."""
        return 0 if self.seed is None else int(self.seed)

    @property
    def atari_config(self) -> AtariConfig:
        """The protocol: ``environment(env_config=...)`` over `AtariConfig`'s defaults."""
        known = [field.name for field in fields(AtariConfig)]
        for name in self.env_config:
            if name not in known:
                raise SettingError(f"env_config: AtariConfig has no setting {name!r}.{did_you_mean(name, known)}")
        return AtariConfig(**self.env_config)

    def validate(self) -> None:
        """Check the settings, before anything is built.

        Raises
        ------
        SettingError
            If there is no such game or variant, or a setting is not accepted.
        """
        where = type(self).__name__
        if self.env is None:
            raise SettingError(f"{where}: no game is set: accepted is .environment('Pong'), or another of Atari-100k.")
        game_name(self.env)
        check_choice(f"{where}.variant", self.variant, AGENTS[self.kind].variants)
        check_choice(f"{where}.precision", self.precision, PRECISIONS)
        check_choice(f"{where}.graph", self.graph, ["auto", "on", "off"])
        _ = self.agent_config, self.atari_config
        for name in ("num_env_runners", "num_learners", "evaluation_num_env_runners"):
            if getattr(self, name) != 0:
                raise SettingError(
                    f"{where}.{name} = {getattr(self, name)!r}: accepted is 0: each step is followed by its updates, "
                    "in one process. Run several seeds or games as trials of Ray Tune."
                )
        if self.num_envs_per_env_runner != 1:
            raise SettingError(f"{where}.num_envs_per_env_runner = {self.num_envs_per_env_runner!r}: accepted is 1.")
        if self.indicators_interval is not None:
            check_number(f"{where}.indicators_interval", self.indicators_interval, low=1, integer=True)
        check_number(f"{where}.rollout_fragment_length", self.rollout_fragment_length, low=1, integer=True)
        old_stack = not self.enable_rl_module_and_learner or self.framework_str != "torch"
        own_networks = self._model_config or self._rl_module_spec is not None
        for is_set, what in (
            (old_stack, "RLlib's new API stack with torch"),
            (self.is_multi_agent, "one agent; multi_agent(...) was set"),
            (own_networks, "no rl_module(...): training(...) sets the networks"),
            (self.torch_compile_learner, "training(compile=True) in place of torch_compile_learner"),
            (not self.explore and not self.in_evaluation, "training(epsilon=0) in place of explore=False"),
        ):
            if is_set:
                raise SettingError(f"{where}: accepted is {what}.")
        if self.evaluation_duration_unit != "episodes" or self.evaluation_parallel_to_training:
            raise SettingError(f"{where}: evaluation counts in episodes, and is not parallel to training.")
        super().validate()

    def get_default_learner_class(self) -> type[AgentLearner]:
        """Return `AgentLearner`."""
        return AgentLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of `AgentModule`."""
        return RLModuleSpec(
            module_class=AgentModule, model_config={"agent": asdict(self.agent_config), "seed": self.agent_seed}
        )


class AgentAlgorithm(Algorithm):
    """An agent of `ht_ray.agents` at one game; its config is an `AgentAlgorithmConfig`.

    With the same seed it makes the steps and the updates of `ht_ray.agents.train`, to the bit on a CPU. A
    checkpoint holds all that it needs to continue in the middle of an episode: agent, replay, emulator, wrappers and
    counters.
    """

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: Any) -> bool:
        return False  # games are played by `play_games`

    def setup(self, config: Any) -> None:
        """Build the algorithm, and lend the env runner the learner's agent."""
        super().setup(config)
        agent = self.agent_learner.agent
        self.env_runner.act = agent.act
        self._indicators = None
        if self.config.indicators_interval is not None:
            replay = self.env_runner.collector.replay
            self._indicators = AgentIndicators(agent, replay, self.config.indicators_interval)

    @property
    def agent_learner(self) -> AgentLearner:
        """The learner, in this process."""
        return self.learner_group._learner

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> Any:
        """Return the module that is trained; the env runner has none of its own."""
        return self.agent_learner.module.get(module_id)

    def training_step(self) -> None:
        """Make ``rollout_fragment_length`` steps of the agent, each followed by its updates."""
        config, runner, learner = self.config.agent_config, self.env_runner, self.agent_learner
        for _ in range(self.config.rollout_fragment_length):
            runner.sample()
            runner.collector.learn(config, learner.agent.sampling, self._update)
        learner.log_agent()
        self.metrics.aggregate([runner.get_metrics()], key=ENV_RUNNER_RESULTS)
        self.metrics.aggregate([learner.metrics.reduce()], key=LEARNER_RESULTS)

    def _update(self, batch: Batch) -> Tensor:
        if self._indicators is not None and self._indicators.due:
            self.agent_learner.metrics.log_dict(self._indicators.measure(), key=DEFAULT_MODULE_ID, reduce=LAST)
        self.learner_group.update(
            batch=as_learner_batch(batch),
            timesteps={"num_env_steps_sampled_lifetime": self.env_runner.collector.steps},
            # Reducing reads values back from the device, so it is done once for all.
            _no_metrics_reduce=True,
        )
        return self.agent_learner.measured["losses"]


def play_games(algorithm: AgentAlgorithm, eval_env_runner_group: Any) -> tuple[dict[str, Any], int, int]:
    """Play ``evaluation_duration`` whole games with the agent as it is: RLlib's ``custom_evaluation_function``.

    Returns
    -------
    tuple
        The results, and the agent's steps, twice.
    """
    config, steps = algorithm.config, algorithm.env_runner.collector.steps
    played = evaluate(
        algorithm.agent_learner.agent.act,
        config.env,
        episodes=config.evaluation_duration,
        epsilon=config.agent_config.evaluation_epsilon,
        seed=derive_seed(config.agent_seed, "evaluation", steps),
        config=config.atari_config,
    )
    metrics = MetricsLogger(root=False)
    for score, length in zip(played.scores.tolist(), played.lengths.tolist(), strict=True):
        log_game(metrics, {"step": steps, "score": score, "steps": length}, window=len(played.scores))
    algorithm.metrics.aggregate([metrics.reduce()], key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
    total = int(played.lengths.sum())
    return algorithm.metrics.peek((EVALUATION_RESULTS, ENV_RUNNER_RESULTS)), total, total
