"""Compare all methods on several streams, each with settings tuned on equal terms, and keep the results as records.

On each stream a method's settings are chosen from at most four by a few runs on validation data, and the chosen one is
run with other seeds. What is missing in the records is run; more methods, or more streams, are added to what is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

if __package__ in (None, ""):  # run as a script: the checkout need not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from ht_ray import __version__
from ht_ray._checks import check_choice, check_number
from ht_ray._device import check_device
from ht_ray.errors import Diverged, SettingError, SettingWarning
from ht_ray.methods import METHODS, MethodConfig, parse_method
from ht_ray.methods.registry import tried_settings
from ht_ray.report.data.files import print_line as say
from ht_ray.report.data.selection import validation_metric
from ht_ray.report.leaderboard import read_records, write_page, write_record
from ht_ray.sweep import RayStartError
from ht_ray.vision import STREAMS, load_data
from ht_ray.vision.training.fit import train_phase
from tune_configs.study import Results, Study
from tune_configs.trials import written
from tune_configs.vision_trial import VisionPack

__all__ = ["BOARDS", "Board", "candidates", "main"]

FOLDER = Path("docs") / "leaderboard"
#: Seeds of tuning start here, far from those of the comparison.
TUNING_SEED = 1000
#: Share of the training data that is held out while settings are chosen.
VALIDATION = 0.1


@dataclass(frozen=True)
class Board:
    """One stream of the leaderboard.

    Attributes
    ----------
    title
        Its column.
    settings
        Those of `tune_configs.study.Study`.
    metric
        What methods are compared by.
    """

    name: str
    title: str
    settings: Mapping[str, Any]
    metric: str = "average_accuracy"

    @property
    def validated(self) -> bool:
        """Whether settings are chosen on validation data.

        Where a task is to memorize its samples there is nothing to validate on, and what chooses is the metric itself,
        on other draws of the tasks.
        """
        return not STREAMS[self.settings.get("stream", "continual")].memorized

    @property
    def online(self) -> bool:
        """Whether each task is one epoch, so that intervals count steps."""
        return self.settings.get("stream") in ("permuted", "shuffled_classes")


# Tasks one after the other, as the literature on loss of plasticity has them: ReLU without normalization, and an
# optimiser that keeps its state and its learning rate.
_TASKS = {
    "normalisation": "none",
    "weight_decay": 0.0,
    "warmup_ratio": 0.0,
    "clip": None,
    "fresh_optimizer": False,
    "model": "mlp",
}
_MNIST = {
    "data": "mnist",
    "train_limit": 6000,  # a tenth of them is validated on: of all images that would take longer than training
    "test_limit": 500,
    "batch_size": 16,
    "tasks": 60,
    "task_samples": 500,
    **_TASKS,
}
BOARDS = {
    board.name: board
    for board in (
        Board(
            "continual_digits",
            "data arrive, noisy labels: digits",
            {"data": "digits", "access": "full", "phases": 10, "epochs": 10, "evaluate_every": 10},
        ),
        Board(
            "buffer_mnist",
            "the same with a buffer: MNIST",
            {
                "data": "mnist",
                "train_limit": 4000,
                "test_limit": 2000,
                "batch_size": 64,
                "access": "buffer",
                "buffer_size": 400,
                "phases": 10,
                "epochs": 10,
                "evaluate_every": 10,
            },
        ),
        Board(
            "warm_start_cifar10",
            "warm start: CIFAR-10",
            {
                "data": "cifar10",
                "model": "mlp",
                "train_limit": 2000,
                "test_limit": 2000,
                "batch_size": 64,
                "stream": "warm_start",
                "subset_ratio": 0.2,
                "warm_epochs": 50,
                "epochs": 20,
                "evaluate_every": 20,
            },
            metric="final_accuracy",
        ),
        Board(
            "random_labels_digits",
            "random labels: digits",
            {
                "data": "digits",
                "stream": "random_labels",
                "tasks": 30,
                "task_epochs": 20,
                "task_samples": 200,
                "evaluate_every": 20,
                **_TASKS,
            },
        ),
        Board("permuted_mnist", "permuted pixels: MNIST", {"stream": "permuted", **_MNIST}),
        Board("shuffled_mnist", "shuffled classes: MNIST", {"stream": "shuffled_classes", **_MNIST}),
    )
}

#: Combinations that are compared as methods are; their settings are those of the one that has most to choose.
COMBINED = ("hare_tortoise+shrink_perturb", "hare_tortoise+head_reset", "hare_tortoise+layer_norm")


def candidates(method: str, board: Board) -> tuple[str, ...]:
    """Return the settings of a method that are tried on a board, as the studies take them: at most four."""
    tried = tried_settings(method, online=board.online)
    texts = [",".join(f"{name}={written(value)}" for name, value in one.items()) for one in tried]
    return tuple(f"{method}:{settings}" for settings in texts) or (method,)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


def make_parser() -> argparse.ArgumentParser:
    """Return what reads the command line; it refuses with `SettingError`."""
    add = (parser := _Parser(prog="ht-ray leaderboard", description=__doc__)).add_argument
    add("--streams", nargs="+", default=list(BOARDS), metavar="NAME", help=f"of {', '.join(BOARDS)} (default: all)")
    add("--methods", nargs="+", metavar="NAME", help="methods, or combinations with + (default: all, and three more)")
    add("--seeds", type=int, default=10, help="seeds of the comparison, from 0 (default: 10)")
    add("--tuning-seeds", type=int, default=2, help=f"seeds of tuning, from {TUNING_SEED} (default: 2)")
    add("--out", type=Path, default=FOLDER, help=f"folder of the records and the page (default: {FOLDER})")
    add("--page", action="store_true", help="make the page from the records, run nothing")
    add("--costs", action="store_true", help="measure the costs in the records again, on a quiet machine; run nothing")
    add("--studies", type=Path, help="folder of the studies (default: leaderboard in ~/ht-ray-results)")
    add("--data-root", default=os.environ.get("HT_RAY_DATA"), help="folder of the images (default: $HT_RAY_DATA)")
    add("--device", default="auto", help="auto (its GPU, if a trial has one), cpu, cuda")
    add("--gpus-per-trial", type=float, default=0.0, help="GPUs of one trial or pack (default: 0)")
    add("--max-concurrent", type=int, help="most trials or packs at one time (default: as many as fit)")
    add("--address", help="the Ray cluster to use; see ht-ray continual --help")
    return parser


def main(arguments: Sequence[str] | None = None, program: str = "ht-ray leaderboard") -> int:
    """Run the command line; return 0, 1 if runs are missing, 2 for settings that cannot work, 130 if interrupted."""
    try:
        given = make_parser().parse_args(arguments)
        with warnings.catch_warnings():
            # Of many settings some do not suit a stream: that is what tuning finds.
            warnings.simplefilter("ignore", SettingWarning)
            return _run(given, _command(given))
    except (SettingError, RayStartError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
        return 130


def _command(given: argparse.Namespace) -> str:
    """Return the command that makes the same records, whatever folders it names."""
    methods = ["--methods", *given.methods] if given.methods else []
    numbers = ["--seeds", str(given.seeds), "--tuning-seeds", str(given.tuning_seeds)]
    return shlex.join(["ht-ray", "leaderboard", "--streams", *given.streams, *methods, *numbers])


def _run(given: argparse.Namespace, command: str) -> int:
    methods = tuple(dict.fromkeys(parse_method(text)[0] for text in given.methods or (*METHODS, *COMBINED)))
    for name in given.streams:
        check_choice("--streams", name, BOARDS)
    check_number("--seeds", given.seeds, low=2, high=TUNING_SEED, integer=True)
    check_number("--tuning-seeds", given.tuning_seeds, low=1, integer=True)
    complete = True
    for board in () if given.page else (BOARDS[name] for name in dict.fromkeys(given.streams)):
        there = {record["method"]: record for record in read_records(given.out) if record["board"] == board.name}
        for record in there.values():
            if record["protocol"] != _plain(board.settings) or len(record["values"]) != given.seeds:
                raise SettingError(
                    f"{given.out}: {board.name}, {record['method']}: it was run by another protocol, or with "
                    f"{len(record['values'])} seeds; accepted is what --seeds {given.seeds} runs: take another --out."
                )
        if given.costs:
            texts = [f"{method}:{record['settings']}".rstrip(":") for method, record in there.items()]
            for record, cost in zip(there.values(), _Round("", board, texts, given, 2).costs(), strict=True):
                write_record(given.out, {**record, "cost": cost})
            continue
        missing = [method for method in methods if method not in there]
        if missing:
            say(f"{board.name}: {len(missing)} methods to run")
            complete &= _run_board(board, missing, given, command)
    say(f"wrote {write_page(given.out, {name: board.title for name, board in BOARDS.items()})}")
    return 0 if complete else 1


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(settings)))


def _run_board(board: Board, methods: Sequence[str], given: argparse.Namespace, command: str) -> bool:
    """Tune and compare methods on a board, write their records, and return whether all of them have one."""
    tried = {method: candidates(method, board) for method in methods}
    what = json.dumps([board.name, _plain(board.settings), tried, given.seeds, given.tuning_seeds])
    round_name = f"{board.name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"
    several = [text for texts in tried.values() if len(texts) > 1 for text in texts]
    by = validation_metric(board.metric) if board.validated else board.metric
    means: dict[str, float | None] = {}
    if several:
        tuned = _Round(f"{round_name}-tuning", board, several, given, given.tuning_seeds, first_seed=TUNING_SEED)
        tuned.run()
        for text in several:
            values = [trial.summary[by] for trial in tuned.trials(text) if trial.finished]
            # One that diverged is no choice.
            means[text] = sum(values) / len(values) if len(values) == given.tuning_seeds else None
    best = {
        method: max(texts, key=lambda text: -1.0 if means.get(text) is None else float(means[text] or 0.0))
        for method, texts in tried.items()
    }
    final = _Round(round_name, board, list(best.values()), given, given.seeds)
    results = final.run()
    costs = dict(zip(methods, final.costs(), strict=True))
    device = str(check_device("--device", "cuda" if given.gpus_per_trial else "cpu"))
    complete = True
    for method, text in best.items():
        trials = final.trials(text)
        if any(trial.status not in ("finished", "diverged") for trial in trials):
            say(f"{board.name}, {method}: not all trials ended; see {results.report}")
            complete = False
            continue
        write_record(
            given.out,
            {
                "format": 1,
                "board": board.name,
                "method": method,
                "settings": text.partition(":")[2],
                "tried": [{"settings": one.partition(":")[2], "value": means.get(one)} for one in tried[method]],
                "tuned_by": f"{by} of {given.tuning_seeds} seeds from {TUNING_SEED} on",
                "metric": board.metric,
                # Of a run that diverged there is none.
                "values": [trial.summary[board.metric] if trial.finished else None for trial in trials],
                "first": [trial.summary["first_accuracy"] if trial.finished else None for trial in trials],
                "final": [trial.summary["final_accuracy"] if trial.finished else None for trial in trials],
                "packed": all(trial.packed for trial in trials),
                "cost": costs[method],
                "protocol": _plain(board.settings),
                "made": {
                    "ht_ray": __version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "device": device,
                    "date": date.today().isoformat(),
                    "command": command,
                },
            },
        )
    return complete


class _Round:
    """A study of some methods on a board: its plan, and once it has been run, where each method's trials are in it."""

    def __init__(
        self,
        name: str,
        board: Board,
        texts: Sequence[str],
        given: argparse.Namespace,
        seeds: int,
        first_seed: int = 0,
    ) -> None:
        results = Path(os.environ.get("HT_RAY_RESULTS") or Path.home() / "ht-ray-results")
        settings = dict(board.settings)
        if settings["data"] != "digits":
            settings["data_root"] = given.data_root
        if first_seed and board.validated:
            settings["validation"] = VALIDATION
        running = {"max_concurrent": given.max_concurrent, "address": given.address, "device": given.device}
        self._study = study = Study(
            "continual",
            methods=texts,
            seeds=seeds,
            first_seed=first_seed,
            tensorboard="none",
            keep_checkpoints=False,
            gpus_per_trial=given.gpus_per_trial,
            resume_or_start=str((given.studies or results / "leaderboard") / name),
            **{key: value for key, value in {**settings, **running}.items() if value is not None or key == "clip"},
        )
        self._specs = {text: study.trials[number * seeds : (number + 1) * seeds] for number, text in enumerate(texts)}

    def run(self) -> Results:
        """Run what is missing of the study, and return its results."""
        results = self._study.run(quiet=True)
        self._by_id = {trial.id: trial for trial in results.load().trials}
        return results

    def trials(self, text: str) -> list[Any]:
        """Return what came of a method's trials, by seed."""
        return [self._by_id[spec.id] for spec in self._specs[text]]

    def costs(self) -> Iterator[float | None]:
        """Yield the processor time of each method's first two tasks, alone, as a multiple of plain training's.

        The least of three, plain training's each time next to it; None where a method diverges.
        """
        settings = self._study.settings
        shared = load_data(settings.data_config()).to_arrays()
        plain = settings.trial_config(MethodConfig("plain"), "full", 0)
        _seconds(plain, shared)  # what is done once is done
        for trials in self._specs.values():
            pairs = [(_seconds(trials[0].config, shared), _seconds(plain, shared)) for _ in range(3)]
            least, base = map(min, zip(*pairs, strict=True))
            yield round(least / base, 2) if math.isfinite(least) else None


def _seconds(config: dict[str, Any], shared: Any) -> float:
    """Return the processor time of a trial's first two phases; infinity where it diverges."""
    run = VisionPack({"": {**config, "device": "cpu"}}, shared).runs[""]
    started = time.process_time()
    try:
        for _ in range(2):
            train_phase(run)
    except Diverged:
        return math.inf
    return time.process_time() - started


if __name__ == "__main__":
    sys.exit(main())
