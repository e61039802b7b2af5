"""The plain loop: train a network on a stream with a method, in torch alone.

It is what the Avalanche strategies are compared with, bit for bit, and what a machine without Avalanche runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray._files import atomic_path
from ht_ray.cuda_graph import GraphMode, use_graph
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.methods import Composition, Method, MethodConfig
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.streams import Stream
from ht_ray.vision.training.optimizer import TrainingConfig
from ht_ray.vision.training.run import Row, TrainingRun
from ht_ray.vision.training.training_step import TrainingStep, obstacle

__all__ = [
    "Diverged",
    "Row",
    "fit",
    "load_checkpoint",
    "plasticity",
    "save_checkpoint",
    "summarise",
    "train_phase",
    "transfer",
]


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain data to `path` at once: to a temporary name, then renamed."""
    try:
        # Given a path, PyTorch does not say why it could not write: that a disk was full, say, and may have room again.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(_compact(dict(state)), file)
    except RuntimeError as error:
        # PyTorch's own complaint, as it closes its archive, hides the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _compact(state: Any) -> Any:
    """Return `state` with copies of tensors that are a part of larger ones, with all of which they would be saved."""
    if isinstance(state, Tensor):
        whole = state.untyped_storage().nbytes()
        return state.clone() if whole > state.numel() * state.element_size() else state
    if isinstance(state, dict):
        return {name: _compact(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_compact, state))
    return state


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing but tensors and plain data is accepted."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def summarise(rows: list[Row]) -> dict[str, float]:
    """Return a run's measures (fractions) from the rows of its epochs.

    ``average_accuracy`` is the mean over phases of the test accuracy at each phase's end, ``final_accuracy`` the last
    of them and ``first_accuracy`` the first, ``online_accuracy`` the mean over all rows (what figure 6 of
    arXiv 2406.02596 plots). ``final_train_accuracy`` is the training accuracy of the last epoch, on the batches as they
    were trained on. With a validation part there are the same four of it: ``average_val_accuracy`` and so on.
    """
    summary: dict[str, float] = {}
    for split, part in (("test", ""), ("val", "val_")):
        name = f"{split}_accuracy"
        if name not in rows[-1]:
            continue
        ends = {row["phase"]: row[name] for row in rows}
        summary |= {
            f"average_{part}accuracy": math.fsum(ends.values()) / len(ends),
            f"final_{part}accuracy": rows[-1][name],
            f"online_{part}accuracy": math.fsum(row[name] for row in rows) / len(rows),
            f"first_{part}accuracy": next(iter(ends.values())),
        }
    return {**summary, "final_train_accuracy": rows[-1]["train_accuracy"]}


def plasticity(rows: list[Row]) -> dict[str, float]:
    """Return what a stream of tasks tells of plasticity, from the rows of a run's epochs.

    ``average_online_accuracy`` is the mean over tasks of the accuracy on each batch before it is trained on (Kumar et
    al. 2023, section 4.1), over those epochs that have a row. ``plasticity_slope`` is the slope of a line through the
    tasks' values, per task, by least squares: below 0 plasticity is lost, if tasks are equally difficult. It is NaN for
    one task.

    Examples
    --------
    >>> plasticity([{"phase": 1, "train_accuracy": 0.9}, {"phase": 2, "train_accuracy": 0.7}])
    {'average_online_accuracy': 0.8, 'plasticity_slope': -0.2}
    """
    tasks: dict[float, list[float]] = {}
    for row in rows:
        tasks.setdefault(row["phase"], []).append(row["train_accuracy"])
    values = [math.fsum(own) / len(own) for own in tasks.values()]
    mean, middle = math.fsum(values) / len(values), math.fsum(tasks) / len(tasks)
    spread = math.fsum((place - middle) ** 2 for place in tasks)
    along = math.fsum((place - middle) * (value - mean) for place, value in zip(tasks, values, strict=True))
    slope = along / spread if spread else math.nan
    return {"average_online_accuracy": round(mean, 12), "plasticity_slope": round(slope, 12)}


def transfer(rows: list[Row]) -> dict[str, float]:
    """Return what the accuracy matrix of a run tells, from its rows, with Avalanche's definitions.

    R(i, j) is the accuracy on task j after task i, R(0, j) that of the untrained network, and t the last task that was
    trained. ``stream_accuracy`` is the accuracy after t on the test samples of all tasks together (Avalanche's
    ``Top1_Acc_Stream``); ``task_forgetting`` the mean over the tasks before t of R(j, j) - R(t, j), and
    ``backward_transfer`` its negative; ``forward_transfer`` the mean over the tasks from the second to the one after t,
    as far as there is one, of R(j - 1, j) - R(0, j). Means of nothing are left out.

    Examples
    --------
    >>> first = {"phase": 1, "test_accuracy_on_1": 0.9, "test_accuracy_on_2": 0.3, "test_stream_accuracy": 0.6}
    >>> first |= {"test_accuracy_untrained_on_1": 0.1, "test_accuracy_untrained_on_2": 0.1}
    >>> last = {"phase": 2, "test_accuracy_on_1": 0.5, "test_accuracy_on_2": 0.8, "test_stream_accuracy": 0.65}
    >>> found = transfer([first, last])
    >>> [(name, round(value, 6)) for name, value in found.items()]  # doctest: +NORMALIZE_WHITESPACE
    [('stream_accuracy', 0.65), ('task_forgetting', 0.4), ('backward_transfer', -0.4), ('forward_transfer', 0.2)]
    """
    ends = [row for row in rows if "test_stream_accuracy" in row]
    if not ends:
        return {}
    found = {"stream_accuracy": ends[-1]["test_stream_accuracy"]}
    on = [f"test_accuracy_on_{number}" for number in range(1, len(ends) + 2)]
    lost = [row[task] - ends[-1][task] for row, task in zip(ends[:-1], on, strict=False)]
    if lost:
        found["task_forgetting"] = math.fsum(lost) / len(lost)
        found["backward_transfer"] = -found["task_forgetting"]
    untrained = [ends[0].get(task.replace("accuracy", "accuracy_untrained")) for task in on]
    ahead = [
        row[task] - before
        for row, task, before in zip(ends, on[1:], untrained[1:], strict=True)
        if before is not None and task in row
    ]
    if ahead:
        found["forward_transfer"] = math.fsum(ahead) / len(ahead)
    return found


def train_phase(
    run: TrainingRun,
    *,
    forward: Callable[[Tensor], Tensor] | None = None,
    graph: bool = False,
    optional: bool = False,
    on_epoch: Callable[[Row], None] | None = None,
    between: Callable[[], None] | None = None,
) -> int:
    """Train the next phase of `run`, or what is left of it, and return how many samples it saw.

    Parameters
    ----------
    run
        The run, which is not done.
    forward, on_epoch
        As in `fit`.
    graph, optional
        As in `ht_ray.vision.training.training_step.TrainingStep`.
    between
        Called between two epochs, once one has been trained in this call; it may raise `Interrupted`.
    """
    first, samples = run.epoch, 0
    run.begin_phase()
    step = TrainingStep(
        run.model,
        run.loader,
        run.optimizer,
        run.method,
        run.config,
        epochs=run.epochs,
        forward=forward,
        graph=graph,
        outputs=run.tested.outputs,
        optional=optional,
    )
    while run.epoch < run.epochs:
        if between is not None and run.epoch > first:
            between()
        run.model.train()
        step.begin_epoch()
        with isolated_rng(derive_seed(run.seed, "dropout", run.phase, run.epoch + 1)):
            step.run()
        samples += step.seen
        if run.end_epoch(step.loss_sum.item(), step.seen):
            row = run.record(step.measured(), *run.evaluate())
            if on_epoch is not None:
                on_epoch(row)
    run.end_phase()
    return samples


def _stop_between(run: TrainingRun, stop: Callable[[], bool], path: Path) -> None:
    if stop():
        save_checkpoint(run.state_dict(), path)
        raise Interrupted(f"after epoch {run.epoch} of phase {run.phase + 1}")


def fit(
    model: nn.Module,
    data: ImageData,
    stream: Stream,
    *,
    method: MethodConfig | Composition | Method | None = None,
    training: TrainingConfig | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    forward: Callable[[Tensor], Tensor] | None = None,
    graph: GraphMode = "auto",
    indicators: IndicatorConfig | None = None,
    evaluate_every: int = 1,
    accuracy_matrix: bool = False,
    checkpoint: str | Path | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Row]:
    """Train `model` on the phases of `stream` and test it after epochs.

    Parameters
    ----------
    model
        The network, trained in place.
    data, stream
        The images, and which of them come when; the stream was made over ``data.train_labels``.
    method
        What is done against loss of plasticity: its settings, or a `Method` over `model`, or several that were combined
        with ``+``, which are at hand afterwards. Default: nothing.
    training
        Optimiser, batches, precision.
    seed
        Of every draw: order, augmentation, dropout, the method's. Not of the model and the stream, which are given.
    device
        Where to train; `model` and images are moved there.
    forward
        Called in place of `model` in training, e.g. ``torch.compile(model)``.
    graph : {"auto", "on", "off"}
        Whether steps are captured as a CUDA graph and replayed (see `TrainingStep`). ``"auto"`` (default): on a CUDA
        device, where the method can be captured and `forward` is not given; ``"on"`` refuses where it is not possible.
    indicators
        Which plasticity indicators of `model` (the hare) are measured, and how often; none by default. They leave no
        trace.
    evaluate_every
        Test after every so many epochs of a phase and after its last, and where indicators are due; training is the
        same whatever it is. Default 1.
    accuracy_matrix : bool, default False
        Whether the tests of all tasks are made as each task ends, and before the first: the row of a task's last epoch
        has ``test_accuracy_on_1`` and so on, and ``test_stream_accuracy``, that of all their samples; the first task's
        also ``test_accuracy_untrained_on_1`` and so on. `transfer` sums them up. Training is the same.
    checkpoint
        A file to write after every phase, and to continue from when it exists.
    on_epoch
        Called with each row as it is measured.
    stop
        Asked between two epochs of a phase, once one has been trained in this call. When it returns true, `checkpoint`
        is written there, inside the phase, and training ends with `Interrupted`; called again, `fit` goes on with the
        next epoch.

    Returns
    -------
    list of dict
        A row for each epoch with a test: ``phase``, ``epoch``, ``step``, ``train_loss`` (cross-entropy in nats, without
        what a method adds to it) and ``train_accuracy`` on the batches of that epoch as they were trained on,
        ``test_loss`` and ``test_accuracy`` with the network that predicts, and ``val_loss`` and ``val_accuracy`` if
        `data` has a validation part; and the indicators in those epochs where they were measured.

    Raises
    ------
    Diverged
        If the training loss is NaN or infinite at the end of an epoch.
    Interrupted
        Where `stop` said so.
    SettingError
        If `evaluate_every` is not a positive whole number, `accuracy_matrix` is asked for of a stream whose tasks have
        no tests of their own, `graph` is ``"on"`` where there can be none, or
        `stop` is given without a `checkpoint` to go on from.
    ValueError
        If `checkpoint` is that of a run with other settings, seed or stream.

    Examples
    --------
    >>> from ht_ray.vision import ContinualConfig, DataConfig, ModelConfig, load_data, make_model, make_stream
    >>> data = load_data(DataConfig("digits"))
    >>> stream = make_stream(data.train_labels, data.num_classes, ContinualConfig(phases=2, epochs=3), seed=0)
    >>> model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=data.num_classes, seed=0)
    >>> method = MethodConfig("hare_tortoise", momentum=0.9, reset_interval=1)
    >>> rows = fit(model, data, stream, method=method, training=TrainingConfig(batch_size=64))
    >>> len(rows), rows[-1]["phase"], rows[-1]["test_accuracy"] > 0.5
    (6, 2, True)
    """
    if stop is not None and checkpoint is None:
        raise SettingError("fit: stop is given and checkpoint is None: accepted is a file to go on from.")
    run = TrainingRun(
        model,
        data,
        stream,
        method=method,
        training=training,
        seed=seed,
        device=device,
        indicators=indicators,
        evaluate_every=evaluate_every,
        accuracy_matrix=accuracy_matrix,
    )
    captured = use_graph("fit: graph", graph, run.device, obstacle=obstacle(run.method, forward, run.config))
    path = Path(checkpoint) if checkpoint is not None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)  # now, not when the first phase has been trained
        if path.exists():
            run.load_state_dict(load_checkpoint(path), path)
    while not run.done:
        before = None if stop is None or path is None else partial(_stop_between, run, stop, path)
        train_phase(run, forward=forward, graph=captured, optional=graph == "auto", on_epoch=on_epoch, between=before)
        if path is not None:
            save_checkpoint(run.state_dict(), path)
    return run.rows
