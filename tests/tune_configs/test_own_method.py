"""A method of a user's own, one file outside the repository, in every host: saved, left, and gone on with."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from study_files import all_reports, table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CHECKOUT = Path(__file__).parents[2]
METHOD = '''
"""Moves every weight towards zero by the same amount before each step."""

from dataclasses import dataclass

import torch

from ht_ray.methods import Method, MethodSettings, register, setting


@register
class Toy(Method):
    """Moves every weight towards zero by the same amount before each step, the more the longer it trains."""

    name, title, rank = "toy", "Toy", -6

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        amount: float = setting(1e-5, "How far each weight moves.", low=0)

    steps = 0

    @torch.no_grad()
    def before_step(self, optimizer):
        self.steps += 1
        for weight in self.module.parameters():
            if weight.grad is not None:
                weight -= self.settings.amount * self.steps * weight.sign()

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = int(state["steps"])
'''
#: Each prints "same" after it has trained once through, and once with a stop in the middle.
HOSTS = {
    "plain loop": """
        from ht_ray.errors import Interrupted
        from ht_ray.vision import *

        data = load_data(DataConfig("digits", train_limit=200, test_limit=50))
        stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=3), seed=0)

        def run(method, file, stop=None):
            model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=0)
            training = TrainingConfig(batch_size=32)
            return model, fit(model, data, stream, method=method, training=training, checkpoint=file, stop=stop)

        toy = MethodConfig("toy_package.methods:Toy+hare_tortoise", reset_interval=2)
        whole, rows = run(toy, "whole.pt")
        _, plain = run(MethodConfig("hare_tortoise", reset_interval=2), "plain.pt")
        try:
            run(toy, "left.pt", lambda: True)
        except Interrupted:
            left, again = run(toy, "left.pt")
        assert again == rows != plain
        """,
    "Avalanche": """
        import torch
        from avalanche.training import Naive
        from strategies import HareTortoisePlugin, MethodPlugin, load_strategy, save_strategy, stream_benchmark
        from toy_package.methods import Toy
        from ht_ray.vision import *

        data = load_data(DataConfig("digits", train_limit=200, test_limit=50))
        stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=3), seed=0)
        experiences = stream_benchmark(data, stream).train_stream

        def strategy(*plugins):
            model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=0)
            return Naive(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), train_mb_size=32,
                         plugins=[*plugins], evaluator=None)

        def trained(saved=False):
            one = strategy(HareTortoisePlugin(reset_interval=2), MethodPlugin(Toy, amount=1e-4))
            torch.manual_seed(1)
            one.train(experiences[0])
            if saved:
                save_strategy(one, "strategy.pt")
                one, number = load_strategy(strategy(), "strategy.pt")
                assert number == 1
            torch.manual_seed(2)
            one.train(experiences[1])
            assert one.plugins[1].method.steps == 2 * one.plugins[0].tortoise.updates // 2
            return one.model

        left, whole = trained(True), trained()
        """,
    "DrQ": """
        from ht_ray.agents import DrQConfig
        from ht_ray.agents.training.train import TrainingRun

        small = {"learning_starts": 20, "n_step": 3, "hidden": 16, "momentum": 0.9, "reset_interval": 10}

        def run(steps, file=None):
            toy = {"methods": "toy_package.methods:Toy", "method_settings": {"toy_amount": 1e-4}}
            one = TrainingRun("Pong", DrQConfig(**small, **toy))
            if file is not None:
                one.load(Path(file))
            one.advance(steps)
            return one

        whole = run(60)
        run(40).save(Path("run.bin"))
        left = run(60, "run.bin")
        assert left.agent.method.by_name["toy"].steps == left.agent.updates > 0
        whole, left = whole.agent.network, left.agent.network
        """,
    "HTDQN": """
        from ht_ray.rllib import HTDQNConfig

        config = HTDQNConfig().training(methods="toy_package.methods:Toy", toy_amount=1e-4, reset_interval=5,
                                        train_batch_size=8, num_steps_sampled_before_learning_starts=16)
        """,
    "PPO": """
        from ray.rllib.algorithms.ppo import PPOConfig
        from ht_ray.rllib import with_methods

        config = with_methods(PPOConfig)().training(methods="toy_package.methods:Toy", toy_amount=1e-4,
                                                    train_batch_size=64, minibatch_size=32, num_epochs=2)
        """,
}
ALGORITHM = """
        import ray
        config.environment("CartPole-v1").env_runners(num_env_runners=0).debugging(seed=0)

        def learner_of(algorithm):
            return algorithm.learner_group._learner

        algorithm = config.build_algo()
        for _ in range(3):
            algorithm.train()
        saved = algorithm.save(str(Path("saved").resolve()))
        again = config.copy(copy_frozen=False).build_algo()
        again.restore(saved)
        whole, left = (learner_of(one).module["default_policy"] for one in (algorithm, again))
        counts = [learner_of(one)._methods["default_policy"].composition.by_name["toy"].steps
                  for one in (algorithm, again)]
        assert counts[0] == counts[1] > 0, counts
        """


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "toy_package").mkdir()
    (tmp_path / "toy_package" / "__init__.py").touch()
    (tmp_path / "toy_package" / "methods.py").write_text(METHOD)
    return tmp_path


@pytest.mark.parametrize("host", HOSTS)
def test_a_method_of_ones_own_in_every_host(host: str, package: Path) -> None:
    code = textwrap.dedent(HOSTS[host]) + (textwrap.dedent(ALGORITHM) if host in ("HTDQN", "PPO") else "")
    code = f"from pathlib import Path\nimport torch\n{code}\n" + textwrap.dedent(
        """
        held = left.state_dict()
        assert all(torch.equal(value, held[name]) for name, value in whole.state_dict().items())
        print("same")
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(CHECKOUT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=package, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "same"


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A cluster of two nodes that can be killed."""
    sys.path.insert(0, str(CHECKOUT / "tests" / "chaos"))
    from simulated_cluster import SimulatedCluster

    cluster = SimulatedCluster(2)
    yield cluster
    cluster.close()


def test_a_method_of_ones_own_in_a_study_that_is_killed(nodes: Any, package: Path) -> None:
    study = shlex.split(
        "--methods plain toy_package.methods:Toy toy_package.methods:Toy:toy_amount=1e-4 --access full --seeds 1 "
        "--phases 3 --epochs 15 --train-limit 400"
    )
    script = [sys.executable, str(CHECKOUT / "tune_configs" / "continual.py"), "--address", nodes.address]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*script, *study, "--results-dir", "whole"], cwd=package, env=environment, check=True, timeout=400)
    killed = subprocess.Popen([*script, *study, "--results-dir", "killed"], cwd=package, env=environment)
    end = time.monotonic() + 300
    while not list((package / "killed").glob("trials/*/results.jsonl")):
        assert killed.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    draw = random.Random(0)
    nodes.kill_worker(draw)
    nodes.kill_node(draw)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    subprocess.run([*script, "--resume", "killed"], cwd=package, env=environment, check=True, timeout=400)
    whole, again = package / "whole", package / "killed"
    assert all_reports(again) == all_reports(whole)
    assert table(again) == table(whole)
    reports = all_reports(whole)
    assert len({str(report) for report in reports.values()}) == len(reports) == 3
