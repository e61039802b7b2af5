"""Agents on Atari-100k that share one GPU, each in a process of its own: how fast each is, and what they score.

Run, on a machine with a GPU, torch, ale-py and gymnasium::

    python benchmarks/atari_together.py --games RoadRunner --variants drq drq+ht --seeds 0 1 --out records

Every run writes its record (`ht_ray.agents.training.train.TrainingRecord`) to ``records/GAME-VARIANT-SEED.json``; runs
whose record is there already are left out. A run that has not ended after ``--minutes`` is ended, and the same command
goes on with it from its last checkpoint, at most 10,000 steps back, in ``records/checkpoints/GAME-VARIANT-SEED``.
A few steps without evaluation (``--steps 3000 --episodes 0``) tell how many runs the device carries.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Start all runs, wait for them, and print how long each took; return 1 if one failed or was ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", required=True)
    parser.add_argument("--variants", nargs="+", default=["drq", "drq+ht"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=100, help="games of the evaluation at the end")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}

    def kept(name: str) -> Path:
        return chosen.out / "checkpoints" / name

    began = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    for game, variant, seed in itertools.product(chosen.games, chosen.variants, chosen.seeds):
        name = f"{game}-{variant}-{seed}"
        if (chosen.out / f"{name}.json").exists():
            continue
        command = [sys.executable, "-m", "ht_ray.agents.train", "--game", game, "--variant", variant]
        command += ["--seed", str(seed), "--steps", str(chosen.steps), "--evaluation-episodes", str(chosen.episodes)]
        command += ["--device", chosen.device, "--precision", chosen.precision]
        command += ["--record", str(chosen.out / f"{name}.json"), "--checkpoint-dir", str(kept(name))]
        running[name] = subprocess.Popen(command, env=environment)
    failed = False
    while running:
        time.sleep(0.2)
        late = time.monotonic() - began > 60 * chosen.minutes
        for name, process in list(running.items()):
            if late:
                process.terminate()
            if (status := process.poll() if not late else process.wait()) is not None:
                seconds = time.monotonic() - began
                ended = "ended, as the time was over" if late else f"exit status {status}"
                print(f"{name}: {seconds:.1f} s with its start, {ended}", flush=True)
                failed |= late or status != 0
                if status == 0 and not late:
                    shutil.rmtree(kept(name))
                del running[name]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
