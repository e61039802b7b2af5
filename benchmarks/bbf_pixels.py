"""BBF with and without Hare & Tortoise on Catch, a game in small pixels: narrow networks, minutes on a CPU.

    python benchmarks/bbf_pixels.py [--seeds 0 1 2] [--steps 4000] [--jobs 2] [--out bbf_pixels]

writes ``OUT.csv`` (variant, seed, steps, gradient steps, mean score of 20 games) and ``OUT.png``. An earlier
``OUT.csv`` is added to: runs that it has are not made again. A game is worth -3 to 3: three balls, missed or caught.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import statistics
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.envs.catch import CatchConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import TrainingRun

Row = tuple[str, int, int, int, float]
GAME = CatchConfig(cells=8, pixels=2, balls=3)
EVERY = 250
COLOURS = {"bbf-spr0": "#777777", "bbf-spr0+ht": "#0072b2", "bbf": "#d55e00"}


def config(variant: str, steps: int) -> BBFConfig:
    """Return the variant, narrow, with everything that takes its time brought closer."""
    intervals = {"restart_interval": 3000, "cycle_updates": 1000}
    if agent_variant(variant).reset_interval is not None:
        intervals["reset_interval"] = 2000
    return agent_variant(
        variant,
        width=0.5,
        hidden=128,
        learning_rate=5e-4,
        learning_starts=200,
        epsilon_decay_steps=200,
        shift=1,  # a cell is 2 pixels: more would push the paddle out of sight
        replay_capacity=5000,
        training_steps=steps,
        restart_optimizer_state="keep",  # in all variants, so that they differ in what their names say
        **intervals,
    )


def train(variant: str, seed: int, steps: int) -> list[Row]:
    """Return one run's rows."""
    torch.set_num_threads(1)
    run = TrainingRun("Catch", config(variant, steps), seed=seed, env=GAME)
    rows: list[Row] = []
    while run.record.steps < steps:
        step = run.advance(steps, EVERY)
        rows.append((variant, seed, step, run.record.updates, run.evaluate(20).score))
    return rows


def draw(rows: list[Row], steps: int, path: Path) -> None:
    """Draw the mean over seeds of each variant, a band from the least to the greatest, and where restarts are."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for variant in dict.fromkeys(row[0] for row in rows):
        at: dict[int, list[float]] = defaultdict(list)
        for name, _, step, _, score in rows:
            if name == variant:
                at[step].append(score)
        seeds = len({row[1] for row in rows if row[0] == variant})
        points, colour = sorted(at), COLOURS[variant]
        axes.fill_between(
            points, [min(at[p]) for p in points], [max(at[p]) for p in points], color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(points, [statistics.fmean(at[p]) for p in points], color=colour, label=f"{variant} ({seeds} seeds)")
    settings = config("bbf", steps)
    for updates in range(settings.total_updates):
        if settings.restart_is_due(updates):
            step = settings.learning_starts + updates / settings.updates_per_step
            axes.axvline(step, color="black", linewidth=0.8, linestyle=":")
    axes.set(xlabel="Steps (dotted: restarts)", ylabel="Mean score of 20 games", ylim=(-3.1, 3.1))
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4000, help="of the agent, in a run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--variants", nargs="+", choices=sorted(COLOURS), default=["bbf-spr0", "bbf-spr0+ht"])
    parser.add_argument("--out", type=Path, default=Path("bbf_pixels"))
    arguments = parser.parse_args()
    table, rows = arguments.out.with_suffix(".csv"), list[Row]()
    if table.exists():
        with table.open(newline="") as file:
            rows = [(v, int(s), int(n), int(u), float(r)) for v, s, n, u, r in list(csv.reader(file))[1:]]
    made = {row[:2] for row in rows}
    wanted = [(v, seed) for seed in arguments.seeds for v in arguments.variants if (v, seed) not in made]
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(train, v, seed, arguments.steps) for v, seed in wanted]):
            run = done.result()
            rows += run
            print(f"{run[0][0]:11} seed {run[0][1]}: last scores {[row[4] for row in run[-4:]]}", flush=True)
            with table.open("w", newline="") as file:
                header = ("variant", "seed", "steps", "updates", "score")
                csv.writer(file, lineterminator="\n").writerows([header, *sorted(rows)])
    draw(rows, arguments.steps, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
