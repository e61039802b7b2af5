"""A hundred kills at random moments of one study, and whether its results are those of an undisturbed run.

    python tests/chaos/soak.py [--seed 0] [--kills 100] [--minutes 40]

runs a real study (the ablation on the embedded digits) on a simulated cluster of three nodes, and kills workers (70 %),
the driver (20 %) and whole nodes (10 %) with SIGKILL until the kills are done; a driver is started again with the same
command. Exit code 0 when every report, table and event file equals that of the same study run in peace. Bounded: it
gives up, and ends all that it started, after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(CHECKOUT)]

from same_results import differences, journal  # noqa: E402
from simulated_cluster import SimulatedCluster  # noqa: E402

STUDY = "--momenta 0.5 0.9 --reset-intervals 1 2 --baselines plain ema shrink_perturb --phases 8 --max-failures 20"
# The kills are to be over when so much of the study is done.
_SHARE = 0.85


class Soak:
    """One study, its driver and its cluster."""

    def __init__(self, directory: Path, flags: list[str], cluster: SimulatedCluster, log: Path) -> None:
        self.directory = directory
        self._flags = flags
        self.cluster = cluster
        self._log = log
        self.start_driver()

    def start_driver(self) -> None:
        with self._log.open("ab") as log:
            self.driver = subprocess.Popen(
                [*command(self._flags), "--resume-or-start", str(self.directory), "--address", self.cluster.address],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill_driver(self) -> None:
        os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait()

    def progress(self, planned: int) -> float:
        """The share of the study's reports that are there."""
        lines = sum(path.read_bytes().count(b"\n") for path in self.directory.glob("trials/*/results.jsonl"))
        return lines / planned


def command(flags: list[str]) -> list[str]:
    return [sys.executable, str(CHECKOUT / "tune_configs" / "ablation.py"), *flags]


def kinds(kills: int, draw: random.Random) -> list[str]:
    """What is killed, in order: 70, 20 and 10 % of the kills."""
    drivers, nodes = round(kills * 0.2), round(kills * 0.1)
    drawn = ["worker"] * (kills - drivers - nodes) + ["driver"] * drivers + ["node"] * nodes
    draw.shuffle(drawn)
    return drawn


def disturb(soak: Soak, plan: list[str], planned: int, draw: random.Random, end: float) -> Counter[str]:
    """Kill what `plan` says at random moments, spread over the study; return what was killed."""
    killed: Counter[str] = Counter()
    for number, kind in enumerate(plan):
        # Moments: not before the study has got as far as this share of the kills, then at random.
        while soak.progress(planned) < _SHARE * number / len(plan) and soak.driver.poll() is None:
            if time.monotonic() > end:
                return killed
            time.sleep(0.1)
        time.sleep(draw.uniform(0, 2))
        while kind == "worker" and not soak.cluster.kill_worker(draw):
            if soak.driver.poll() is not None or time.monotonic() > end:
                return killed
            time.sleep(0.1)
        if kind == "driver":
            # Not one that has not begun: a driver that is killed while it imports was never there.
            wait_for_workers(soak, end)
            soak.kill_driver()
            soak.start_driver()
        elif kind == "node":
            soak.cluster.kill_node(draw)
        killed[kind] += 1
        say(f"{number + 1:3d} of {len(plan)}: {kind:6s} killed, {soak.progress(planned):.1%} of the reports are there")
    return killed


def wait_for_workers(soak: Soak, end: float) -> None:
    while not soak.cluster.workers and soak.driver.poll() is None and time.monotonic() < end:
        time.sleep(0.1)


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=40.0, help="for all of it")
    parser.add_argument("--trial-seeds", type=int, default=10, help="the study has eight trials for each")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keep", help="a directory for what is written; by default it goes")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    draw = random.Random(given.seed)
    flags = [*shlex.split(STUDY), "--seeds", str(given.trial_seeds), "--epochs", str(given.epochs)]
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        root = Path(given.keep or scratch)
        root.mkdir(parents=True, exist_ok=True)
        reference, directory = root / "undisturbed", root / "disturbed"
        began = time.monotonic()
        if not (reference / "table.csv").exists():
            alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            subprocess.run(
                [*command(flags), "--results-dir", str(reference)],
                env={**alone, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
            )
            say(f"undisturbed: {time.monotonic() - began:.0f} s")
        planned = sum(path.read_bytes().count(b"\n") for path in reference.glob("trials/*/results.jsonl"))
        cluster = SimulatedCluster(3)
        began = time.monotonic()
        soak = Soak(directory, flags, cluster, root / "drivers.log")
        try:
            killed = disturb(soak, kinds(given.kills, draw), planned, draw, end)
            code = soak.driver.wait(timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            say("the time is up")
            return 1
        finally:
            if soak.driver.poll() is None:
                soak.kill_driver()
            cluster.close()
        say(f"disturbed: {time.monotonic() - began:.0f} s; killed: {dict(killed)}; the driver's exit code: {code}")
        found = differences(directory, reference)
        events = journal(directory)
        say(f"journal: {dict(Counter(entry['event'] for entry in events))}")
        say(f"faults: {dict(Counter(entry['kind'] for entry in events if entry['event'] == 'fault'))}")
        for difference in found:
            say(difference)
        report = {"seed": given.seed, "killed": dict(killed), "differences": found, "exit": code, "reports": planned}
        say(json.dumps(report))
        return int(bool(found) or code != 0 or sum(killed.values()) != given.kills)


if __name__ == "__main__":
    sys.exit(main())
