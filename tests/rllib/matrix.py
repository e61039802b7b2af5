"""Features of RLlib against our mixins and the stock algorithms: ``python tests/rllib/matrix.py``, with real Ray.

Prints the table of docs/rllib.md. A cell is "works" if an algorithm with the mixins trains with the feature and resets
happen; else what it is refused with, or what fails, and whether the stock algorithm fails, too. ``--only`` takes parts
of names, ``--record`` a file of JSON lines that is gone on with.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import TorchCompileWhatToCompile
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo.ppo import PPOConfig
from ray.rllib.algorithms.sac.sac import SACConfig
from ray.rllib.connectors.env_to_module.mean_std_filter import MeanStdFilter
from ray.tune.schedulers import PopulationBasedTraining

from ht_ray.rllib import HTDQNConfig, HTSACConfig, SettingError, with_methods
from ht_ray.sweep.driver.local_ray import start_ray

MODULE = "default_policy"
NET = {"fcnet_hiddens": [16], "fcnet_activation": "relu", "head_fcnet_hiddens": [16], "head_fcnet_activation": "relu"}
RESETS = {"shrink_perturb_interval": 4, "head_reset_interval": 6}
#: The stock config, ours, what is set of ours, and the metric of its resets.
ALGORITHMS: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "DQN": (DQNConfig, HTDQNConfig, {"momentum": 0.9, "reset_interval": 5}, "tortoise_resets"),
    "SAC": (SACConfig, HTSACConfig, {"momentum": 0.9, "reset_interval": 5}, "tortoise_resets"),
    "PPO, resets": (PPOConfig, with_methods(PPOConfig), RESETS, "head_resets"),
    "APPO, resets": (APPOConfig, with_methods(APPOConfig), RESETS, "head_resets"),
    "IMPALA, resets": (IMPALAConfig, with_methods(IMPALAConfig), RESETS, "head_resets"),
}
#: The only feature that is tried with the last two.
ALONE = "alone"


class CPUScaler(torch.amp.GradScaler):
    """A scaler of gradients that scales on the CPU."""

    def __init__(self) -> None:
        super().__init__("cpu", init_scale=256.0)


def base(kind: str, *, ours: bool) -> Any:
    stock, own, settings, _ = ALGORITHMS[kind]
    config = (
        (own if ours else stock)()
        .environment("Pendulum-v1" if kind == "SAC" else "CartPole-v1")
        .env_runners(num_env_runners=0, num_cpus_per_env_runner=0.25)
        .learners(num_learners=0, num_cpus_per_learner=0.25)
        .resources(num_cpus_for_main_process=0.25)
        .rl_module(model_config=dict(NET))
        .debugging(seed=0, log_level="ERROR")
    )
    if kind == "PPO, resets":
        config.training(train_batch_size_per_learner=64, minibatch_size=16, num_epochs=2)
    elif "resets" in kind:
        config.env_runners(rollout_fragment_length=16).training(train_batch_size_per_learner=32)
        config.reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=400)
    else:
        config.training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=16)
        config.reporting(min_sample_timesteps_per_iteration=60)
    return config.training(**settings) if ours else config


def check(kind: str, result: Any, *, ours: bool) -> None:
    """Raise unless it learned, and with ours resets happened."""
    learned = result["learners"][MODULE]
    if ours:
        assert learned[ALGORITHMS[kind][3]] > 0, "no reset happened"
        if "resets" not in kind:
            assert math.isfinite(learned["hare_tortoise_distance"]), "the distance is not finite"
    assert math.isfinite(learned["total_loss"]), "the loss is not finite"


def train(kind: str, config: Any, *, ours: bool, iterations: int = 2) -> Any:
    """Train, check, and return the algorithm, which is running."""
    algorithm = config.build_algo()
    for _ in range(iterations):
        result = algorithm.train()
    check(kind, result, ours=ours)
    return algorithm


def with_change(change: Callable[[Any], object]) -> Callable[..., None]:
    """Return a cell that trains with a changed config."""

    def run(kind: str, *, ours: bool) -> None:
        config = base(kind, ours=ours)
        change(config)
        train(kind, config, ours=ours).stop()

    return run


def restore(kind: str, *, ours: bool) -> None:
    algorithm = train(kind, base(kind, ours=ours).learners(num_learners=2), ours=ours)
    with tempfile.TemporaryDirectory() as folder:
        algorithm.save_to_path(folder)
        algorithm.stop()
        restored = Algorithm.from_checkpoint(folder)
        check(kind, restored.train(), ours=ours)
        restored.stop()


def evaluation(kind: str, *, ours: bool) -> None:
    config = base(kind, ours=ours)
    config.evaluation(evaluation_interval=1, evaluation_num_env_runners=1, evaluation_duration=1)
    algorithm = train(kind, config, ours=ours)
    assert algorithm.train()["evaluation"]["env_runners"]["num_episodes"] >= 1
    algorithm.stop()


def tuned(**options: Any) -> Callable[..., None]:
    """Return a cell that runs under Ray Tune."""

    def run(kind: str, *, ours: bool) -> None:
        config = base(kind, ours=ours)
        config.validate()
        space = config.to_dict() | {"lr": tune.grid_search([1e-3, 2e-3])}
        if kind == "SAC":
            space = config.to_dict() | {"critic_lr": tune.grid_search([1e-3, 2e-3])}
        key = "critic_lr" if kind == "SAC" else "lr"
        if options:
            scheduler = PopulationBasedTraining(
                time_attr="training_iteration",
                perturbation_interval=1,
                hyperparam_mutations={key: [1e-3, 2e-3]},
                metric="training_iteration",
                mode="max",
            )
        with tempfile.TemporaryDirectory() as folder:
            found = tune.Tuner(
                config.algo_class,
                param_space=space,
                tune_config=tune.TuneConfig(scheduler=scheduler if options else None, max_concurrent_trials=2),
                run_config=tune.RunConfig(stop={"training_iteration": 3}, storage_path=folder, verbose=0),
            ).fit()
            assert not found.errors, found.errors
            for one in found:
                check(kind, one.metrics, ours=ours)

    return run


def offline(kind: str, *, ours: bool) -> None:
    """Batches that were recorded before: a learner of its own learns from episodes, without an environment."""
    config = base(kind, ours=ours)
    algorithm = config.build_algo()
    learner = algorithm.learner_group._learner
    if kind == "PPO, resets":
        recorded = [algorithm.env_runner.sample(num_timesteps=64, random_actions=False) for _ in range(3)]
    else:
        for _ in range(2):
            algorithm.train()
        buffer = algorithm.local_replay_buffer
        recorded = [buffer.sample(num_items=16, n_step=1, gamma=0.99, beta=0.4, sample_episodes=True) for _ in range(8)]
    fresh = config.copy(copy_frozen=False).build_learner(env=algorithm.env_runner.env)
    for episodes in recorded:
        fresh.update(episodes=episodes, timesteps={"num_env_steps_sampled_lifetime": 1000}, minibatch_size=16)
    if ours:
        assert fresh._methods[MODULE].steps > 6, "it did not learn"
    assert learner is not fresh
    algorithm.stop()


FEATURES: dict[str, Callable[..., None]] = {
    ALONE: with_change(lambda config: None),
    "connectors": with_change(
        lambda config: config.env_runners(env_to_module_connector=lambda env, spaces, device: MeanStdFilter())
    ),
    "offline batches": offline,
    "GradScaler": with_change(lambda config: config.experimental(_torch_grad_scaler_class=CPUScaler)),
    "LSTM module": with_change(
        lambda config: config.rl_module(model_config={**NET, "use_lstm": True, "lstm_cell_size": 8, "max_seq_len": 4})
    ),
    "torch_compile": with_change(
        lambda config: config.framework(
            torch_compile_learner=True,
            torch_compile_learner_what_to_compile=TorchCompileWhatToCompile.FORWARD_TRAIN,
            torch_compile_learner_dynamo_backend="aot_eager",
        )
    ),
    "two learners": with_change(lambda config: config.learners(num_learners=2)),
    "remote env runners": with_change(lambda config: config.env_runners(num_env_runners=2)),
    "restore with two learners": restore,
    "evaluation workers": evaluation,
    "Tune grid": tuned(),
    "PBT": tuned(population=True),
}


def outcome(feature: str, kind: str, *, ours: bool) -> str:
    try:
        FEATURES[feature](kind, ours=ours)
    except SettingError as error:
        return f"refused: {error}"
    except Exception as error:
        cause = getattr(error, "cause", None) or error
        line = next((text for text in reversed(str(cause).splitlines()) if text.strip()), "")
        return f"fails: {type(cause).__name__}: {line.strip()[:200]}"
    return "works"


def cell(feature: str, kind: str) -> dict[str, str]:
    """Return what was seen of ours, and where it does not work, of the stock algorithm."""
    ours = outcome(feature, kind, ours=True)
    stock = "" if ours == "works" else outcome(feature, kind, ours=False)
    return {"feature": feature, "algorithm": kind, "ours": ours, "stock": stock}


def word(row: dict[str, str]) -> str:
    """Return a cell of the table."""
    if row["ours"] == "works":
        return "works"
    if row["stock"] != "works":
        return "stock fails"
    return row["ours"].partition(":")[0]


def table(rows: list[dict[str, str]]) -> str:
    """Return the table as Markdown."""
    kinds = [kind for kind in ALGORITHMS if any(row["algorithm"] == kind for row in rows)]
    lines = ["| | " + " | ".join(kinds) + " |", "| --- |" + " --- |" * len(kinds)]
    for feature in [name for name in FEATURES if any(row["feature"] == name for row in rows)]:
        own = {row["algorithm"]: word(row) for row in rows if row["feature"] == feature}
        lines.append(f"| {feature} | " + " | ".join(own.get(kind, "") for kind in kinds) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a feature's or an algorithm's name")
    parser.add_argument("--record", type=Path, help="a file of JSON lines, gone on with if it exists")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    if given.record is not None and given.record.exists():
        rows = [json.loads(line) for line in given.record.read_text().splitlines()]
    done = {(row["feature"], row["algorithm"]) for row in rows}
    settings = {"num_cpus": 4, "num_gpus": 0, "include_dashboard": False, "log_to_driver": False}
    start_ray(lambda: ray.init(address="local", logging_level="ERROR", **settings), loopback=True, workers=1)
    for feature in FEATURES:
        for kind in ALGORITHMS:
            if (feature, kind) in done or given.only not in f"{feature} {kind}":
                continue
            if kind.startswith(("APPO", "IMPALA")) and feature != ALONE:
                continue
            row = cell(feature, kind)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
            if given.record is not None:
                with given.record.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    ray.shutdown()
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
