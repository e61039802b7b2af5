"""A node dies at each moment of a driver's start: ``python node_deaths.py DIRECTORY`` says how each study ended."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_trials import spec, study

from ht_ray.sweep import SweepConfig, run_study
from ht_ray.sweep.records.progress import Console

#: What a driver calls, in this order, from its first look at the cluster to its first trials.
MOMENTS = (
    "ht_ray.sweep.driver.cluster:_slots",
    "ht_ray.sweep.driver.run:open_study",
    "ht_ray.sweep.driver.run:create_study",
    "ht_ray.sweep.driver.run:check_shared",
    "ht_ray.sweep.driver.cluster:_nodes_without",
    "ray:wait",  # for the nodes' answers
    "ht_ray.sweep.driver.run:_prepare",
    "ht_ray.sweep.driver.run:_run",
    "ht_ray.sweep.worker.faults:NodeWatch.nodes",
    "ray.tune:run",
    "ht_ray.sweep.driver.recorder:StudyRecorder.on_trial_start",
    "ht_ray.sweep.driver.recorder:StudyRecorder.on_trial_result",
)


def before(patch: pytest.MonkeyPatch, moment: str, what: Callable[[], None]) -> None:
    """Have `what` called once, before the function that `moment` names is."""
    module, _, path = moment.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function = owner.__dict__[name]
    due = [what]

    def called(*arguments: Any, **options: Any) -> Any:
        if due:
            due.pop()()
        return (function.fget if isinstance(function, property) else function)(*arguments, **options)

    patch.setattr(owner, name, property(called) if isinstance(function, property) else called)


def main(root: Path) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    what = study(*(spec(f"trial-{seed}", seed=seed, sleep=0.1) for seed in (1, 2)))
    for number, moment in enumerate(MOMENTS):
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        killed: list[str] = []

        def kill(node: Any = node, killed: list[str] = killed) -> None:
            killed.append(node.node_id)
            # No goodbye: the cluster finds out by itself.
            cluster.remove_node(node, allow_graceful=False)

        stream = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            before(patch, moment, kill)
            config = SweepConfig(results_dir=str(root / str(number)), tensorboard="none")
            result = run_study(what, config, console=Console(stream))
        assert killed, moment
        print(f"{moment} {result.finished} {result.exit_code}", flush=True)
        if result.exit_code:
            print(stream.getvalue(), file=sys.stderr)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
