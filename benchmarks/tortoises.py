"""Options of Hare & Tortoise, measured: on the continual stream, and the warm-up of the momentum in the first phase.

``python benchmarks/tortoises.py stream [--data digits] [--seeds 10]`` trains the options on ten phases of 20 epochs
with the paper's label noise and the studies' settings for the data set, a tenth of the training data held out for what
is chosen. It prints the average over phases and the final test accuracy, and the difference of the former to Hare &
Tortoise over the same seeds, with 95% t intervals. Post-hoc averages have one relative length per seed for the whole
run, chosen by the mean validation accuracy at the phases' ends.

``python benchmarks/tortoises.py first_phase [--data digits mnist] [--seeds 10] [--epochs 10]`` trains on one phase
without label noise, and prints what the tortoise and the plain network reach after an epoch, mean and standard
deviation over seeds. MNIST is small: the first of ten phases, 6000 images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings

import torch
from torch import nn

from ht_ray.errors import SettingWarning
from ht_ray.methods import Composition, PosthocEMA
from ht_ray.report.data.statistics import mean_interval, paired_difference
from ht_ray.vision import (
    ContinualConfig,
    DataConfig,
    ImageData,
    MethodConfig,
    ModelConfig,
    TrainingConfig,
    hold_out,
    load_data,
    make_model,
    make_stream,
    obstacle_to_packing,
    summarise,
)
from ht_ray.vision.training.evaluate import evaluate
from ht_ray.vision.training.fit import train_phase
from ht_ray.vision.training.pack import Pack
from ht_ray.vision.training.run import TrainingRun
from tune_configs.settings import PRESETS

FIRST_PHASE = {
    "plain": MethodConfig("plain"),
    **{
        f"hare_tortoise m={momentum} warmup={warmup:.3g}": MethodConfig(
            "hare_tortoise", momentum=momentum, reset_interval=5, momentum_warmup=warmup
        )
        for momentum in (0.99, 0.999)
        for warmup in (0.0, 2 / 3, 1.0)
    },
}

_PAIR = {"momentum": 0.99, "reset_interval": 5}
_SEVERAL = (0.9, 0.97, 0.99, 0.997)
COMPARED = "`hare_tortoise`"
STREAM = {
    "`plain`": MethodConfig("plain"),
    "`ema`": MethodConfig("ema", momentum=0.99),
    COMPARED: MethodConfig("hare_tortoise", **_PAIR),
    "`momentum_warmup=2/3`": MethodConfig("hare_tortoise", momentum_warmup=2 / 3, **_PAIR),
    '`reset_only=("backbone",)`': MethodConfig("hare_tortoise", reset_only=("backbone",), **_PAIR),
    '`reset_only=("head",)`': MethodConfig("hare_tortoise", reset_only=("head",), **_PAIR),
    "`reset_schedule=(2, 3, 5)`": MethodConfig("hare_tortoise", reset_schedule=(2, 3, 5), **_PAIR),
    "`reset_schedule=(10, 5)`": MethodConfig("hare_tortoise", reset_schedule=(10, 5), **_PAIR),
    f"`tortoise_momenta={_SEVERAL}`": MethodConfig("hare_tortoise", tortoise_momenta=_SEVERAL, reset_interval=5),
}
#: Its name in the table, and what else is done while it keeps its snapshots.
POSTHOC = {"`plain`, post-hoc average": "`plain`", "`hare_tortoise`, post-hoc average": COMPARED}
LENGTHS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stream", "first_phase"])
    parser.add_argument("--data", nargs="+", default=None)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--phases", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", SettingWarning)  # of half-lives longer than a phase, which is the point here
    for name in given.data or (["digits"] if given.what == "stream" else ["digits", "mnist"]):
        data = load_data(DataConfig(name, root=os.environ.get("HT_RAY_DATA")))
        began = time.process_time()
        if given.what == "stream":
            stream(name, hold_out(data, 0.1)[0], given.seeds, given.phases, given.epochs or 20)
        else:
            first_phase(data, given.seeds, given.epochs or 10)
        print(f"{name}: {given.seeds} seeds, {time.process_time() - began:.0f} s of processor time\n")


def stream(name: str, data: ImageData, seeds: int, phases: int, epochs: int) -> None:
    """Train the options on the continual stream, and print a table."""
    preset = PRESETS[name]
    training = TrainingConfig(
        **{one: preset[one] for one in ("learning_rate", "weight_decay", "batch_size", "augment")}
    )
    runs: dict[str, list[TrainingRun]] = {method: [] for method in (*STREAM, *POSTHOC)}
    for seed in range(seeds):
        config = ContinualConfig(phases=phases, epochs=epochs)
        tasks = make_stream(data.train_labels, data.num_classes, config, seed=seed)
        for method, own in runs.items():
            model = make_model(ModelConfig(preset["model"]), shape=data.shape, num_classes=data.num_classes, seed=seed)
            made = STREAM[POSTHOC.get(method, method)].build(model, seed=seed)
            if method in POSTHOC:
                made = Composition(model, [*made.methods, PosthocEMA(model, interval=5)])
            own.append(TrainingRun(model, data, tasks, method=made, training=training, seed=seed))
    header = ["", "average accuracy (%)", "final accuracy (%)", "average, less that of `hare_tortoise`"]
    print(f"| {' | '.join(header)} |\n| --- |{' ---: |' * 3}", flush=True)
    alone = {method for method, (run, *_) in runs.items() if obstacle_to_packing(run.model, run.method, run.config)}
    pack = Pack([run for method, own in runs.items() if method not in alone for run in own])
    while pack.runs:
        pack.train_phase()
    compared = dict(enumerate(100 * summarise(run.rows)["average_accuracy"] for run in runs[COMPARED]))
    for method in sorted(runs, key=lambda method: method in alone):
        for run in runs[method]:
            while not run.done:
                train_phase(run)
        if method in POSTHOC:
            measured, lengths = zip(*map(posthoc, runs[method]), strict=True)
            method += f" (relative lengths {', '.join(f'{one:g}' for one in sorted(set(lengths)))})"
        else:
            summaries = [summarise(run.rows) for run in runs[method]]
            measured = tuple((one["average_accuracy"], one["final_accuracy"]) for one in summaries)
        cells = [interval([100 * one[place] for one in measured]) for place in (0, 1)]
        difference = paired_difference(dict(enumerate(100 * average for average, _ in measured)), compared)
        cells.append("" if method == COMPARED else f"{difference.mean:+.2f} ± {difference.half_width:.2f}")
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def interval(values: list[float]) -> str:
    """Return mean and half the width of the interval."""
    low, high = mean_interval(values)
    return f"{statistics.mean(values):.2f} ± {(high - low) / 2:.2f}"


def posthoc(run: TrainingRun) -> tuple[tuple[float, float], float]:
    """Return average and final test accuracy of the relative length that is best on validation data, and the length."""
    kept = run.method.by_name["posthoc_ema"]
    assert isinstance(kept, PosthocEMA) and run.validation is not None
    # Of each phase as many snapshots, the last at its end.
    steps = list(kept.averages.snapshots)
    each = len(steps) // len(run.stream)
    ends = steps[each - 1 :: each]

    def accuracies(network: nn.Module) -> tuple[float, float]:
        sets = (run.validation, (run.test_images, run.test_labels))
        return tuple(evaluate(network, *each, run.normalise).accuracy for each in sets)  # type: ignore[return-value,misc]

    found = []
    for sigma_rel in LENGTHS:
        at_ends = [accuracies(kept.network(sigma_rel, end)) for end in ends]
        found.append((statistics.mean(one for one, _ in at_ends), [test for _, test in at_ends], sigma_rel))
    _, tested, chosen = max(found)
    return (statistics.mean(tested), tested[-1]), chosen


def first_phase(data: ImageData, seeds: int, epochs: int) -> None:
    """Train in the first phase with and without the warm-up, and print a table."""
    labels = data.train_labels
    share = min(1.0, 6000 / len(labels))
    phases = max(1, round(1 / share))  # the first of so many has about 6000 images
    runs: dict[str, list[TrainingRun]] = {method: [] for method in FIRST_PHASE}
    for seed in range(seeds):
        for method, config in FIRST_PHASE.items():
            model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=data.num_classes, seed=seed)
            tasks = make_stream(labels, 10, ContinualConfig(phases=phases, epochs=epochs, noise="none"), seed=seed)[:1]
            training = TrainingConfig(batch_size=64)
            runs[method].append(TrainingRun(model, data, tasks, method=config, training=training, seed=seed))
    pack = Pack([run for of_method in runs.values() for run in of_method])
    while pack.runs:
        pack.train_phase()
    shown = sorted({one for one in (1, 2, 5, epochs) if one <= epochs})
    print(f"| test accuracy (%) after epoch | {' | '.join(map(str, shown))} |\n| --- |{' ---: |' * len(shown)}")
    for method, of_method in runs.items():
        cells = []
        for epoch in shown:
            reached = [100 * run.rows[epoch - 1]["test_accuracy"] for run in of_method]
            cells.append(f"{statistics.mean(reached):.1f} ± {statistics.stdev(reached):.1f}")
        print(f"| {method} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
