"""Run of one network on a stream: its state between the steps, phase by phase and epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray._checks import check_number, refused
from ht_ray._device import check_device
from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import Diverged, SettingError
from ht_ray.mechanisms import clear_optimizer_state, find_head, load_optimizer_state
from ht_ray.methods import Composition, Method, MethodConfig, Phase
from ht_ray.vision.data.dataset import ImageData
from ht_ray.vision.data.loader import InMemoryLoader, Normalise
from ht_ray.vision.data.streams import Phase as Task
from ht_ray.vision.data.streams import Stream
from ht_ray.vision.data.transforms import InputTransform
from ht_ray.vision.training.evaluate import Evaluation, evaluate
from ht_ray.vision.training.indicators import make_indicators
from ht_ray.vision.training.objective import counted, explained
from ht_ray.vision.training.optimizer import TrainingConfig, fitting, make_optimizer
from ht_ray.vision.training.precision import autocast

__all__ = ["Row", "TrainingRun", "check_accuracy_matrix", "is_of_matrix"]

Row = dict[str, float]
"""What one epoch measured: ``phase`` and ``epoch`` (from 1), ``step`` (epochs so far, all phases), and the metrics."""

#: Beyond, a matrix takes more tests than training, and nobody reads it.
_MOST_TASKS = 200


def check_accuracy_matrix(stream: Stream) -> None:
    """Refuse an accuracy matrix of a stream whose tasks have no tests of their own, or of too many tasks.

    Raises
    ------
    SettingError
        If so.
    """
    count = f"{len(stream)} task{'s' * (len(stream) != 1)}"
    why = "" if 2 <= len(stream) <= _MOST_TASKS else f" has {count}: accepted are 2 to {_MOST_TASKS}"
    if stream.plain:
        why = " is one of phases, which are tested on the same test set: accepted are tasks with tests of their own"
    if why:
        reason = f": the stream {stream.name!r}{why}."
        raise SettingError(owner="VisionSettings", field="accuracy_matrix", value=True, reason=reason)


def is_of_matrix(column: str) -> bool:
    """Whether a row's column is one of the accuracy matrix."""
    return column.startswith(("test_accuracy_on_", "test_accuracy_untrained_on_", "test_stream_accuracy"))


def _sizes(stream: Stream) -> list[list[Any]]:
    # What tells one stream from another: plain data, and short.
    def sizes(phase: Task) -> list[Any]:
        task: list[Any] = []
        if not phase.plain:
            places = torch.arange(1, len(phase) + 1, dtype=torch.float64)
            task = [float(phase.labels.double() @ places), phase.tested_on, phase.reset_head]
            task += [None if part is None else part.tolist() for part in (phase.relabel, phase.outputs)]
            if phase.transform is not None:
                task += [type(phase.transform).__name__, *phase.transform.checksum()]
            if phase.test_indices is not None and phase.test_labels is not None:
                task += [len(phase.test_indices), int(phase.test_indices.sum()), int(phase.test_labels.sum())]
        return [len(phase), phase.epochs, int(phase.indices.sum()), int(phase.labels.sum()), *task]

    return [sizes(phase) for phase in stream]


class TaskTest(NamedTuple):
    """What a phase's task is tested on: images, their labels, what becomes of the inputs, the outputs that count."""

    images: Tensor
    labels: Tensor
    transform: InputTransform | None
    outputs: Tensor | None


class TrainingRun:
    """All of a network's training but the steps: the moments between them, what was measured, and what is saved.

    `ht_ray.vision.fit` makes the steps of one run, a `Pack` those of many at once. Both call, for each phase,
    `begin_phase`; for each epoch the steps, `end_epoch` and, where that says so, `record`; and `end_phase`.

    Parameters
    ----------
    model, data, stream, method, training, seed, device, indicators, evaluate_every, accuracy_matrix
        As in `ht_ray.vision.fit`.

    Attributes
    ----------
    model, method, optimizer, config
        What is trained, and how.
    rows : list of dict
        What was measured so far.
    phase : int
        How many phases are done; the next, or present, has this number.
    epoch : int
        How many epochs of the present phase are done.
    loader : InMemoryLoader
        Of the present phase.
    """

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        stream: Stream,
        *,
        method: MethodConfig | Composition | Method | None = None,
        training: TrainingConfig | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        indicators: IndicatorConfig | None = None,
        evaluate_every: int = 1,
        accuracy_matrix: bool = False,
    ) -> None:
        check_number("fit: evaluate_every", evaluate_every, low=1, integer=True)
        if accuracy_matrix:
            check_accuracy_matrix(stream)
        if data.val_images is not None and any(phase.test_indices is not None for phase in stream):
            raise SettingError(
                f"fit: data: the tasks of {stream.name!r} have test sets of their own, which a validation part has "
                "not: accepted is a data set without one."
            )
        self.device = check_device("fit: device", device)
        given = Composition(model, [method]) if isinstance(method, Method) else method or MethodConfig("plain")
        if not isinstance(given, (Composition, MethodConfig)):
            accepted = "a MethodConfig, a Method over the model, or several joined by +"
            raise refused("fit: method", method, accepted=accepted)
        if isinstance(given, Composition) and given.module is not model:
            raise SettingError(
                "fit: method: it is over another network than model: make it over the one that is trained."
            )
        self.config = fitting(given.training(training or TrainingConfig(), data.shape), data.shape)
        memory_format = torch.channels_last if self.config.channels_last else torch.contiguous_format
        model.to(device=self.device, memory_format=memory_format)  # type: ignore[call-overload]
        self.model = model
        self.method = given.build(model, seed=seed) if isinstance(given, MethodConfig) else given
        self.data = data
        self.stream = stream
        self.seed = seed
        self.evaluate_every = evaluate_every
        self.settings = {
            "method": self.method.describe(),
            "training": self.config.described(),
            "seed": seed,
            "phases": _sizes(stream),
            "evaluate_every": evaluate_every,
        }
        if indicators is not None:
            self.settings["indicators"] = asdict(indicators)
        #: Whether every task is tested as each ends.
        self.accuracy_matrix = accuracy_matrix
        if accuracy_matrix:
            self.settings["accuracy_matrix"] = True
        self._untrained: list[float] = []
        self._held = held = data.on(self.device)  # which other runs on the device share
        self.images, self.test_images, self.test_labels = held.train_images, held.test_images, held.test_labels
        #: Images and labels of the validation part, if there is one.
        self.validation: tuple[Tensor, Tensor] | None = None
        if held.val_images is not None and held.val_labels is not None:
            self.validation = held.val_images, held.val_labels
            self.method.validate = self._validated
        self.normalise = Normalise(data.mean, data.std, self.device, table=data.is_table)
        self.optimizer = self._make_optimizer()
        self.measuring = make_indicators(
            indicators, model, data, training=self.config, normalise=self.normalise, seed=seed, device=self.device
        )
        self.rows: list[Row] = []
        self.phase = self.epoch = 0
        self._epochs = 0  # of all phases
        self._train_loss = math.nan
        self._indicated = False
        self.loader: InMemoryLoader

    def _make_optimizer(self) -> Optimizer:
        return self.method.configure_optimizer(make_optimizer(self.model.parameters(), self.config))

    @property
    def done(self) -> bool:
        """Whether all phases are done."""
        return self.phase == len(self.stream)

    @property
    def epochs(self) -> int:
        """How many epochs the present phase has."""
        return self.stream[self.phase].epochs

    @property
    def progress(self) -> float:
        """The share of the stream's epochs that is done."""
        return self._epochs / self.stream.epochs

    def begin_phase(self) -> None:
        """Begin the next phase, or go on with one that was saved within."""
        phase = self.stream[self.phase]
        self.loader = InMemoryLoader(
            self.images,
            phase.indices,
            phase.labels,
            normalise=self.normalise,
            batch_size=self.config.batch_size,
            augment=self.config.augment,
            seed=self.seed,
            phase=phase.index,
            channels_last=self.config.channels_last,
            transform=phase.transform,
        )
        self.tested = self._task_test(phase, self.test_images, self.test_labels, own=phase.tested_on == "own")
        #: What the present phase is tested on: the test set, and the validation part if there is one.
        self.tests = [self.tested]
        if self.validation is not None:
            self.tests.append(self._task_test(phase, *self.validation, own=False))
        if self.accuracy_matrix and not self._epochs:
            self._untrained = [tested.accuracy for tested, _ in self._test_all()]
        if self.epoch:
            self.method.resume(lambda count: [images for images, _ in self.loader.before(self.epoch + 1, count)])
        else:
            if self.config.fresh_optimizer:
                self.optimizer = self._make_optimizer()
            if phase.reset_head:
                self._reset_head()
            begun = Phase(phase.index, phase.epochs, len(self.loader), losses=self._losses)
            self.method.before_phase(begun, self.optimizer)
        self.loader.epoch = self.epoch + 1

    def _losses(self, network: nn.Module) -> Iterator[Tensor]:
        """Yield the losses of an epoch before the first of the present phase, which is drawn for this alone."""
        self.loader.epoch = 0
        for batch, labels in self.loader:
            with autocast(self.device, self.config.autocast):
                logits = network(batch)
            outputs = logits.to(torch.promote_types(logits.dtype, torch.float32))
            yield self.config.objective.loss_of(counted(outputs, self.tested.outputs), labels)

    def _task_test(self, phase: Task, images: Tensor, labels: Tensor, *, own: bool) -> TaskTest:
        """Return what the phase's task makes of images to test on; with `own`, the phase's samples in their place."""
        if own:
            images = self.images.index_select(0, phase.indices.to(self.device))
            labels = phase.labels.to(self.device)
        elif phase.test_indices is not None and phase.test_labels is not None:
            images = images.index_select(0, phase.test_indices.to(self.device))
            labels = phase.test_labels.to(self.device)
        elif phase.relabel is not None:
            labels = phase.relabel.to(self.device)[labels]
            if (labels < 0).any():
                images, labels = images[labels >= 0], labels[labels >= 0]
        outputs = None if phase.outputs is None else phase.outputs.to(self.device)
        transform = None if phase.transform is None else phase.transform.prepared(self.images.shape[1:], self.device)
        return TaskTest(images, labels, transform, outputs)

    def _test_all(self) -> list[tuple[Evaluation, int]]:
        """Test the network that predicts on each task of the stream; each with its number of samples."""
        found = []
        with self.method.predict():
            for phase in self.stream:
                test = self._task_test(phase, self.test_images, self.test_labels, own=phase.tested_on == "own")
                found.append((self._test(test), len(test.labels)))
        return found

    @torch.no_grad()
    def _reset_head(self) -> None:
        head = self.model.get_submodule(find_head(self.model))
        last = [part for part in head.modules() if isinstance(part, nn.Linear)][-1]
        names = {id(tensor): name for name, tensor in self.model.named_parameters()}
        tortoise = self.method.tortoise
        for parameter in last.parameters():
            parameter.zero_()
            for copy in tortoise.copies if tortoise is not None else ():
                copy[names[id(parameter)]].zero_()
        if tortoise is not None:
            tortoise.weights_were_set()
        clear_optimizer_state(self.optimizer, list(last.parameters()))

    def end_epoch(self, loss_sum: float, seen: int) -> bool:
        """End an epoch with this sum of losses over so many samples, and return whether it is to be tested.

        Raises
        ------
        Diverged
            If the loss is NaN or infinite.
        """
        self._train_loss = loss_sum / seen
        if not math.isfinite(self._train_loss):
            raise Diverged(f"training loss {self._train_loss} in phase {self.phase + 1}, epoch {self.epoch + 1}")
        self.epoch += 1
        self._epochs += 1
        last = self.epoch == self.epochs
        self.method.end_epoch(self.optimizer, last=last)
        self._indicated = self.measuring is not None and self.measuring.due(self.epoch, last=last)
        return last or self._indicated or self.epoch % self.evaluate_every == 0

    def evaluate(self) -> tuple[Evaluation, ...]:
        """Test the network that predicts on the test set, and on the validation part if there is one."""
        with self.method.predict():
            return tuple(map(self._test, self.tests))

    def _validated(self) -> tuple[float, float]:
        tested = self._test(self.tests[-1])
        return tested.accuracy, -tested.loss

    def _test(self, test: TaskTest) -> Evaluation:
        return evaluate(
            self.model,
            test.images,
            test.labels,
            self.normalise,
            autocast=self.config.autocast,
            channels_last=self.config.channels_last,
            transform=test.transform,
            outputs=test.outputs,
            objective=self.config.objective,
        )

    def record(self, accuracy: float, tested: Evaluation, validated: Evaluation | None = None) -> Row:
        """Return the epoch's row, with this accuracy on its batches as they were trained on, and keep it.

        Parameters
        ----------
        accuracy : float
            In training, or a user's own measure; in a regression R2 is put in its place, which the loss tells.
        tested, validated : Evaluation
            On the test set, and on the validation part if there is one.
        """
        if self.loader.labels.is_floating_point() and not self.config.objective.own:
            accuracy = explained(self._train_loss, self.loader.labels)
        row: Row = {
            "step": self._epochs,
            "phase": self.phase + 1,
            "epoch": self.epoch,
            "train_loss": self._train_loss,
            "train_accuracy": accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
        }
        if validated is not None:
            row |= {"val_loss": validated.loss, "val_accuracy": validated.accuracy}
        if self.accuracy_matrix and self.epoch == self.epochs:
            row |= self._row_of_matrix()
        if self.measuring is not None and self._indicated:
            row.update(self.measuring.measure())
        self.rows.append(row)
        return row

    def _row_of_matrix(self) -> Row:
        tests = self._test_all()
        row = {f"test_accuracy_on_{number}": tested.accuracy for number, (tested, _) in enumerate(tests, start=1)}
        total = math.fsum(tested.accuracy * samples for tested, samples in tests)
        row["test_stream_accuracy"] = total / sum(samples for _, samples in tests)
        if self.phase == 0:
            row |= {f"test_accuracy_untrained_on_{k}": value for k, value in enumerate(self._untrained, start=1)}
        return row

    def end_phase(self) -> None:
        """End the phase, after its last epoch."""
        self.method.end_phase()
        self.phase += 1
        self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain data to continue from, between two epochs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "indicators": self.measuring.state_dict() if self.measuring is not None else {},
            "settings": self.settings,
            "rows": self.rows,
            "phases": self.phase,
            "epochs": self.epoch,
            **({"untrained": self._untrained} if self.accuracy_matrix else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any], where: object, *, copied: bool = False) -> None:
        """Continue from `state`, which was found at `where`.

        Parameters
        ----------
        copied : bool, default False
            Whether it may be of a run whose method or training has other settings: this run's hold from here on.

        Raises
        ------
        ValueError
            If it is of a run with another seed, stream or method, or with other settings.
        """
        free = ("method", "training") if copied else ()
        names = [name for name in {**self.settings, **state["settings"]} if name not in free]
        if differing := [name for name in names if state["settings"].get(name) != self.settings.get(name)]:
            raise ValueError(f"{where} is the checkpoint of a run with another {' and '.join(differing)}")
        self.method.rebuild(state["method"])
        self.model.load_state_dict(state["model"])
        self.optimizer = self._make_optimizer()
        optimizer = state["optimizer"]
        if state["settings"]["training"] != self.settings["training"]:
            optimizer = {**optimizer, "param_groups": self.optimizer.state_dict()["param_groups"]}
        load_optimizer_state(self.optimizer, optimizer)
        self.method.load_state_dict(state["method"])
        if self.measuring is not None:
            self.measuring.load_state_dict(state["indicators"])
        self.rows, self.phase, self.epoch = list(state["rows"]), state["phases"], state.get("epochs", 0)
        self._untrained = state.get("untrained", [])
        self._epochs = sum(phase.epochs for phase in self.stream.phases[: self.phase]) + self.epoch
