"""The plain loop: train a network on a stream with a method, in torch alone.

It is what the Avalanche strategies are compared with, bit for bit, and what a machine without Avalanche runs.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray._checks import check_number
from ht_ray._files import atomic_path
from ht_ray.cuda_graph import GraphMode, use_graph
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.mechanisms import derive_seed, isolated_rng, load_optimizer_state
from ht_ray.methods import Composition, Method, MethodConfig, Phase
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.loader import InMemoryLoader, Normalise
from ht_ray.vision.data.streams import Stream
from ht_ray.vision.training.evaluate import evaluate
from ht_ray.vision.training.indicators import make_indicators
from ht_ray.vision.training.optimizer import TrainingConfig, make_optimizer
from ht_ray.vision.training.training_step import TrainingStep, obstacle

__all__ = ["Diverged", "Row", "fit", "load_checkpoint", "save_checkpoint", "summarise"]

#: What one epoch measured: ``phase`` and ``epoch`` (from 1), ``step`` (epochs so far, all phases), and the metrics.
Row = dict[str, float]


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write tensors and plain data to `path` at once: to a temporary name, then renamed."""
    try:
        # Given a path, PyTorch does not say why it could not write: that a disk was full, say, and may have room again.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(state), file)
    except RuntimeError as error:
        # PyTorch's own complaint, as it closes its archive, hides the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; nothing but tensors and plain data is accepted."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def summarise(rows: list[Row]) -> dict[str, float]:
    """Return a run's measures (fractions) from the rows of its epochs.

    ``average_accuracy`` is the mean over phases of the test accuracy at each phase's end, ``final_accuracy`` the last
    of them and ``first_accuracy`` the first, ``online_accuracy`` the mean over all rows (what figure 6 of
    arXiv 2406.02596 plots). ``final_train_accuracy`` is the training accuracy of the last epoch, on the batches as they
    were trained on.
    """
    ends = {row["phase"]: row["test_accuracy"] for row in rows}
    return {
        "average_accuracy": math.fsum(ends.values()) / len(ends),
        "final_accuracy": rows[-1]["test_accuracy"],
        "online_accuracy": math.fsum(row["test_accuracy"] for row in rows) / len(rows),
        "first_accuracy": next(iter(ends.values())),
        "final_train_accuracy": rows[-1]["train_accuracy"],
    }


def _sizes(stream: Stream) -> list[list[int]]:
    # What tells one stream from another: plain data, and short.
    return [[len(phase), phase.epochs, int(phase.indices.sum()), int(phase.labels.sum())] for phase in stream]


def _last_inputs(loader: InMemoryLoader, epoch: int, count: int) -> list[Tensor]:
    """Return the inputs of the last `count` batches before `epoch` of the loader's phase."""
    inputs: deque[Tensor] = deque(maxlen=count)
    # Every epoch has a batch at least.
    for loader.epoch in range(max(1, epoch - count), epoch):
        inputs.extend(images for images, _ in loader)
    return list(inputs)


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
        ``test_loss`` and ``test_accuracy`` with the network that predicts; and the indicators in those epochs where
        they were measured.

    Raises
    ------
    Diverged
        If the training loss is NaN or infinite at the end of an epoch.
    Interrupted
        Where `stop` said so.
    SettingError
        If `evaluate_every` is not a positive whole number, `graph` is ``"on"`` where there can be none, or
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
    check_number("fit: evaluate_every", evaluate_every, low=1, integer=True)
    if stop is not None and checkpoint is None:
        raise SettingError("fit: stop is given and checkpoint is None: accepted is a file to go on from.")
    device = torch.device(device)
    given = Composition(model, [method]) if isinstance(method, Method) else method or MethodConfig("plain")
    config = given.training(training or TrainingConfig(), data.shape)
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=memory_format)  # type: ignore[call-overload]
    acting = given.build(model, seed=seed) if isinstance(given, MethodConfig) else given
    captured = use_graph("fit: graph", graph, device, obstacle=obstacle(acting, forward))
    settings = {
        "method": acting.describe(),
        "training": asdict(config),
        "seed": seed,
        "phases": _sizes(stream),
        "evaluate_every": evaluate_every,
    }
    if indicators is not None:
        settings["indicators"] = asdict(indicators)
    images = data.train_images.to(device)
    test_images, test_labels = data.test_images.to(device), data.test_labels.to(device)
    normalise = Normalise(data.mean, data.std, device)
    autocast = torch.bfloat16 if config.precision == "bf16" else None
    optimizer = make_optimizer(model.parameters(), config)
    measuring = make_indicators(indicators, model, data, training=config, normalise=normalise, seed=seed, device=device)
    rows: list[Row] = []
    done = begun = 0
    path = Path(checkpoint) if checkpoint is not None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)  # now, not when the first phase has been trained
    if path is not None and path.exists():
        state = load_checkpoint(path)
        if state["settings"] != settings:
            differing = [name for name, value in settings.items() if state["settings"].get(name) != value]
            raise ValueError(f"{path} is the checkpoint of a run with another {' and '.join(differing)}")
        acting.rebuild(state["method"])
        model.load_state_dict(state["model"])
        optimizer = make_optimizer(model.parameters(), config)
        load_optimizer_state(optimizer, state["optimizer"])
        acting.load_state_dict(state["method"])
        if measuring is not None:
            measuring.load_state_dict(state["indicators"])
        rows, done, begun = state["rows"], state["phases"], state.get("epochs", 0)

    def save(phases: int, epochs: int) -> None:
        # So many whole phases, and epochs of the next one.
        if path is None:
            return
        saved = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "method": acting.state_dict(),
            "indicators": measuring.state_dict() if measuring is not None else {},
            "settings": settings,
            "rows": rows,
            "phases": phases,
            "epochs": epochs,
        }
        save_checkpoint(saved, path)

    epochs = sum(phase.epochs for phase in stream.phases[:done]) + begun
    for phase in stream.phases[done:]:
        loader = InMemoryLoader(
            images,
            phase.indices,
            phase.labels,
            normalise=normalise,
            batch_size=config.batch_size,
            augment=config.augment,
            seed=seed,
            phase=phase.index,
            channels_last=config.channels_last,
        )
        first, begun = begun + 1, 0
        if first > 1:
            acting.resume(partial(_last_inputs, loader, first))
        else:
            if config.fresh_optimizer:
                optimizer = make_optimizer(model.parameters(), config)
            acting.before_phase(Phase(phase.index, phase.epochs, len(loader)), optimizer)
        loader.epoch = first
        step = TrainingStep(
            model,
            loader,
            optimizer,
            acting,
            config,
            epochs=phase.epochs,
            forward=forward,
            graph=captured,
            optional=graph == "auto",
        )
        for epoch in range(first, phase.epochs + 1):
            if stop is not None and epoch > first and stop():
                save(phase.index, epoch - 1)
                raise Interrupted(f"after epoch {epoch - 1} of phase {phase.index + 1}")
            model.train()
            step.begin_epoch()
            with isolated_rng(derive_seed(seed, "dropout", phase.index, epoch)):
                step.run()
            train_loss = step.loss_sum.item() / step.seen
            if not math.isfinite(train_loss):
                raise Diverged(f"training loss {train_loss} in phase {phase.index + 1}, epoch {epoch}")
            last = epoch == phase.epochs
            acting.end_epoch(optimizer, last=last)
            epochs += 1
            indicated = measuring is not None and measuring.due(epoch, last=last)
            if not (last or indicated or epoch % evaluate_every == 0):
                continue
            with acting.predict():
                tested = evaluate(
                    model,
                    test_images,
                    test_labels,
                    normalise,
                    autocast=autocast,
                    channels_last=config.channels_last,
                )
            row: Row = {
                "step": epochs,
                "phase": phase.index + 1,
                "epoch": epoch,
                "train_loss": train_loss,
                "train_accuracy": step.correct.item() / step.seen,
                "test_loss": tested.loss,
                "test_accuracy": tested.accuracy,
            }
            if measuring is not None and indicated:
                row.update(measuring.measure())
            rows.append(row)
            if on_epoch is not None:
                on_epoch(row)
        acting.end_phase()
        save(phase.index + 1, 0)
    return rows
