"""Trials that tell where they run and where their data is; run as a script, a study on a cluster of several nodes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ht_ray.sweep import Report, Study, SweepConfig, TrialSpec, run_study
from ht_ray.sweep.driver.local_ray import start_ray


class Placed:
    """Notes the node that it runs on, and waits until as many trials run at the same time as its config says."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self.config = config
        self.shared = shared

    def advance(self) -> Report:
        import ray

        folder = Path(self.config["folder"])
        (folder / str(os.getpid())).write_text(ray.get_runtime_context().get_node_id())
        end = time.monotonic() + 60
        while len(list(folder.iterdir())) < self.config["together"] and time.monotonic() < end:
            time.sleep(0.05)
        summary = {"process": os.getpid()}
        if self.shared is not None:
            inode, offset = mapping(self.shared)
            summary |= {"inode": inode, "offset": offset, "writeable": int(self.shared.flags.writeable)}
            summary["sum"] = int(self.shared.sum())
        return Report({}, summary, 1.0)

    def save(self, directory: Path) -> None:
        pass

    def load(self, directory: Path) -> None:
        pass


def mapping(array: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return which file an array is in, and where in it."""
    address = array.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, inode = line.split()[:5]
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return int(inode), int(offset, 16) + address - low
    raise AssertionError("the array is nowhere")


def placed(folder: Path, trials: int, *, together: int = 1, shared: Any = None) -> Study:
    folder.mkdir(parents=True)
    config = {"folder": str(folder), "together": together}
    specs = tuple(TrialSpec(f"trial-{number}", "Placed", {"seed": number}, config) for number in range(trials))
    return Study("placed", "placement_trials:Placed", specs, "process", shared=shared)


def main(root: Path) -> None:
    """Say for three studies on three nodes on which of them their trials ran."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = start_ray(lambda: Cluster(initialize_head=True, head_node_args=head))
    fast = start_ray(lambda: cluster.add_node(num_cpus=2, resources={"fast": 1}, labels={"kind": "a100"}))
    slow = start_ray(lambda: cluster.add_node(num_cpus=2, labels={"kind": "t4"}))
    ray.init(address=cluster.address, log_to_driver=False)
    called = {cluster.head_node.node_id: "head", fast.node_id: "fast", slow.node_id: "slow"}
    for name, config in {
        "labels": {"node_labels": ("kind=t4",)},
        "resources": {"resources": ("fast=0.5",)},
        "both": {"resources": ("fast=1",), "node_labels": ("kind=a100",)},
    }.items():
        study = placed(root / f"{name}-seen", 2, together=1 if name == "both" else 2)
        result = run_study(study, SweepConfig(results_dir=str(root / name), tensorboard="none", **config))
        seen = {called[path.read_text()] for path in (root / f"{name}-seen").iterdir()}
        print(name, result.finished, sorted(seen))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
