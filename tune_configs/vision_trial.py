"""One trial of a vision study: an Avalanche strategy over the phases of a stream, a phase at a time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ht_ray._device import check_device
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import Interrupted, SettingWarning
from ht_ray.sweep import Report
from ht_ray.vision import (
    ImageData,
    MethodConfig,
    ModelConfig,
    Row,
    Stream,
    StreamConfig,
    TrainingConfig,
    load_checkpoint,
    make_model,
    make_stream,
    plasticity,
    save_checkpoint,
    summarise,
    transfer,
)
from ht_ray.vision.data.benchmark_stream import is_benchmark, with_labels_of
from ht_ray.vision.data.own_stream import stream_settings
from ht_ray.vision.training.fit import train_phase
from ht_ray.vision.training.pack import Pack
from ht_ray.vision.training.run import TrainingRun, is_of_matrix
from tune_configs.trial_numerics import computed_as_set

__all__ = ["TrialConfig", "VisionPack", "VisionTrial", "data_of", "plain_method", "stream_of", "trial_config"]

_STATE = "state.pt"


class TrialConfig(NamedTuple):
    """The parts of a trial's configuration, checked."""

    model: ModelConfig
    stream: StreamConfig
    training: TrainingConfig
    method: MethodConfig
    indicators: IndicatorConfig


def plain_method(method: MethodConfig) -> dict[str, Any]:
    """Return a method as a trial's configuration has it: its name, its settings, and where it is imported from."""
    sources = {"sources": dict(method.sources)} if method.sources else {}
    return {"name": method.name, **method.flat, **sources}


def trial_config(config: dict[str, Any]) -> TrialConfig:
    """Return the configurations in what `tune_configs.settings.VisionSettings.trial_config` made, or JSON of it."""

    def values(name: str) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in config[name].items()}

    stream = values("stream")
    with warnings.catch_warnings():
        # Nobody can change the names in a study that an earlier version planned.
        warnings.simplefilter("ignore", SettingWarning)
        method = MethodConfig(**values("method"))
    return TrialConfig(
        ModelConfig(**values("model")),
        stream_settings(stream.pop("kind"), **stream),
        TrainingConfig(**values("training")),
        method,
        IndicatorConfig(**values("indicators")),
    )


def stream_of(
    config: dict[str, Any], labels: Tensor, num_classes: int, made: Mapping[int, Stream] | None = None
) -> Stream:
    """Return the stream of a trial over a training set with these true labels; of a benchmark the one that is `made`.

    Parameters
    ----------
    made
        The streams of a benchmark, by seed.
    """
    if made:
        return made[config["seed"]]
    return make_stream(labels, num_classes, trial_config(config).stream, seed=config["seed"])


def data_of(config: dict[str, Any], shared: Any) -> ImageData:
    """Return the data of a trial: those that are shared, or what its stream makes with its seed."""
    stream = trial_config(config).stream
    if is_benchmark(config["stream"]["kind"]):
        arrays = {name: value for name, value in shared.items() if name != "streams"}
        return with_labels_of(ImageData.from_arrays(arrays), shared["streams"][config["seed"]])
    return stream.data(seed=config["seed"]) if stream.makes_data else ImageData.from_arrays(shared)  # type: ignore[attr-defined]


def _model_and_settings(config: dict[str, Any], data: ImageData) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network of a trial, and how it is trained."""
    parts, seed = trial_config(config), config["seed"]
    model = make_model(parts.model, shape=data.shape, num_classes=data.num_classes, seed=seed)
    return model, {
        "method": parts.method,
        "training": parts.training,
        "seed": seed,
        "device": config["device"],
        "indicators": parts.indicators,
        "evaluate_every": config["evaluate_every"],
    }


def _report(
    stream: Stream, rows: list[Row], phase: int, samples: int, *, benchmark: bool = False, measure: str | None = None
) -> Report:
    """Return the report of a phase, from 1, that has been trained; of tasks with what they tell of plasticity.

    Of a `benchmark` with one test set for all of its experiences, the accuracy on that is the test stream's.

    What is called accuracy in training is called by its name, where the study's `measure` is another.
    """

    def named(values: Mapping[str, float]) -> dict[str, float]:
        return {name.replace("accuracy", measure or "accuracy"): value for name, value in values.items()}

    new = [row for row in rows if row["phase"] == phase]
    end = {**named(new[-1]), "step": phase}
    over_tasks = {"stream_accuracy": rows[-1]["test_accuracy"]} if benchmark else {}
    over_tasks |= {**transfer(rows), **(plasticity(rows) if _is_tasks(stream) and phase > 1 else {})}
    summary = named({**summarise(rows), **over_tasks})
    # The matrix has a row for each task, not for each epoch.
    epochs = [named({name: value for name, value in row.items() if not is_of_matrix(name)}) for row in new]
    progress = rows[-1]["step"] / stream.epochs if phase < len(stream) else 1.0
    return Report(curves={"epoch": epochs, "phase": [end]}, summary=summary, progress=progress, samples=samples)


def _is_tasks(stream: Stream) -> bool:
    """Whether a stream is one of tasks, of which the slope over them tells something."""
    return not stream.plain and stream.name not in ("continual", "warm_start", "growing")


class VisionPack:
    """Train several networks as one program, each on its stream with its method, and report after every phase.

    Parameters
    ----------
    configs
        By the trials' ids; of what `ht_ray.vision.training.pack.Pack` takes together.
    shared
        The data set, from `ht_ray.vision.ImageData.to_arrays`.
    """

    def __init__(self, configs: Mapping[str, dict[str, Any]], shared: Any) -> None:
        #: Of one of them: what is not said for each is the same for all.
        self.config = next(iter(configs.values()))
        self.runs: dict[str, TrainingRun] = {}
        self._measures = {name: config.get("measure") for name, config in configs.items()}
        # Of one pack all have the same.
        data = data_of(next(iter(configs.values())), shared)
        for name, config in configs.items():
            stream = stream_of(config, data.train_labels, data.num_classes)
            model, settings = _model_and_settings(config, data)
            self.runs[name] = TrainingRun(model, data, stream, **settings)
        self._names = {id(run): name for name, run in self.runs.items()}
        self._pack: Pack | None = None
        self._interrupted = False

    @computed_as_set
    def advance(self) -> dict[str, Report | Exception]:
        """Train those that are furthest behind to the end of their phase.

        Raises
        ------
        ht_ray.errors.Interrupted
            Between two epochs, after `interrupt`.
        """
        if self._pack is None:
            self._pack = Pack(list(self.runs.values()))
        try:
            trained = self._pack.train_phase(lambda: self._interrupted)
        finally:
            self._interrupted = False
        return {self._names[id(run)]: diverged or self._reported(run) for run, diverged in trained}

    def _reported(self, run: TrainingRun) -> Report:
        samples = run.stream[run.phase - 1].epochs * sum(size for _, size in run.loader.batches())
        return _report(run.stream, run.rows, run.phase, samples, measure=self._measures[self._names[id(run)]])

    def interrupt(self) -> None:
        """Ask `advance` to raise `Interrupted` after the epoch that runs, or runs next, unless it is a phase's last."""
        self._interrupted = True

    def save(self, trial: str, directory: Path) -> None:
        """Write tensors and counters of one trial."""
        save_checkpoint(self.runs[trial].state_dict(), directory / _STATE)

    def load(self, trial: str, directory: Path) -> None:
        """Let one trial continue from what `save` wrote of it, or of another of its population."""
        self.runs[trial].load_state_dict(load_checkpoint(directory / _STATE), directory / _STATE, copied=True)

    def drop(self, trial: str) -> None:
        """Train a trial no longer."""
        run = self.runs.pop(trial)
        if self._pack is not None:
            self._pack.drop(run)


class VisionTrial:
    """Train a network on a stream with a method, and report after every phase.

    An Avalanche strategy trains it; where a phase is more than indices and labels, or the loss or the measure is a
    user's own, the plain loop does.

    Parameters
    ----------
    config
        From `tune_configs.settings.VisionSettings.trial_config`.
    shared
        The data set, from `ht_ray.vision.ImageData.to_arrays`.
    """

    #: What trains several of them at once.
    pack = VisionPack

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self.config = config
        self.data = data_of(config, shared)
        self._measure = config.get("measure")
        self._benchmark = is_benchmark(config["stream"]["kind"])
        made = shared["streams"] if self._benchmark else None
        self.stream = stream_of(config, self.data.train_labels, self.data.num_classes, made)
        device = check_device("VisionTrial: device", config["device"])
        model, settings = _model_and_settings({**config, "device": device}, self.data)
        self.run: TrainingRun | None = None
        self._stopped = False
        if not self.stream.plain or settings["training"].objective.own:
            matrix = config.get("accuracy_matrix", False) and not self.stream.plain
            self.run = TrainingRun(model, self.data, self.stream, **settings, accuracy_matrix=matrix)
            return
        from strategies import make_strategy, stream_benchmark  # avalanche takes seconds to import

        self.strategy = make_strategy(model.to(device), self.data, **settings)
        augment = settings["method"].training(settings["training"], self.data.shape).augment
        self.benchmark = stream_benchmark(self.data, self.stream, augment=augment)
        self.phase = 0

    @property
    def rows(self) -> list[Row]:
        """What was measured so far, a row for each epoch that was tested."""
        return self.strategy.measured if self.run is None else self.run.rows

    @computed_as_set
    def advance(self) -> Report:
        """Train the next phase, or what an interruption has left of it.

        Raises
        ------
        ht_ray.errors.Diverged
            If the training loss is no longer finite: that is the trial's result.
        """
        if self.run is not None:
            try:
                samples = train_phase(self.run, between=self._between)
            finally:
                self._stopped = False
            ended = self.run.phase
        else:
            phase = self.stream[self.phase]
            self.strategy.train_epochs = phase.epochs
            self.strategy.train(self.benchmark.train_stream[phase.index], eval_streams=[])
            self.phase += 1
            ended, samples = self.phase, self.strategy.samples
        return _report(self.stream, self.rows, ended, samples, benchmark=self._benchmark, measure=self._measure)

    def interrupt(self) -> None:
        """Ask `advance` to raise `Interrupted` after the epoch that runs, or runs next, unless it is a phase's last."""
        if self.run is None:
            self.strategy.interrupt()
        self._stopped = True

    def _between(self) -> None:
        if self._stopped:
            raise Interrupted("between two epochs")

    def save(self, directory: Path) -> None:
        """Write tensors and counters."""
        if self.run is not None:
            save_checkpoint(self.run.state_dict(), directory / _STATE)
            return
        save_checkpoint({"phase": self.phase, "strategy": self.strategy.training_state()}, directory / _STATE)

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote of this trial, or of another of its population."""
        state = load_checkpoint(directory / _STATE)
        if self.run is not None:
            self.run.load_state_dict(state, directory / _STATE, copied=True)
            return
        self.phase = state["phase"]
        self.strategy.load_training_state(state["strategy"])
