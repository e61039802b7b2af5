"""Pack: many runs of one architecture, trained as one program on stacked tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ht_ray.cuda_graph import Captured, GraphMode, use_graph
from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.mechanisms.weights.spectral_norm import spectral_layers
from ht_ray.mechanisms.weights.structure import Structure
from ht_ray.mechanisms.weights.transfer import upload
from ht_ray.methods import Composition, Method
from ht_ray.methods.packed import PackedMethod, by_row, pack_obstacle
from ht_ray.vision.data.augment import crop_flip_places
from ht_ray.vision.data.loader import EpochDraws
from ht_ray.vision.training.evaluate import Evaluation
from ht_ray.vision.training.objective import explained
from ht_ray.vision.training.optimizer import TrainingConfig, set_learning_rate, warmup_factor
from ht_ray.vision.training.run import TrainingRun
from ht_ray.vision.training.stacked import StackedNetwork, empty_rows, stacked_obstacle

__all__ = ["Pack", "obstacle_to_packing", "pack_key"]

# Samples of a batch of an evaluation. The same for packs of all sizes: products of other sizes have other last bits.
_TESTED_AT_ONCE = 256

_REPLACED = (
    "{}: a method has replaced tensors of its network, or changed the network's structure, which a pack cannot follow: "
    "let it change tensors in place, or train it alone (--pack off)."
)


def obstacle_to_packing(model: nn.Module, method: Composition, training: TrainingConfig) -> str:
    """Return why a run of this network, method and training cannot be part of a `Pack`; nothing if it can."""
    if training.precision != "fp32":
        return f"precision is {training.precision}"
    if training.objective.own:
        return "its loss or measure is a user's own"
    if training.channels_last:
        return "convolutions run as channels_last"
    if any(not parameter.requires_grad for parameter in model.parameters()):
        return "the network has frozen parameters"
    if {tensor.dtype for tensor in model.parameters()} - {torch.float32, torch.float64}:
        return "the network has parameters of 16 bits"
    if spectral_layers(model):
        return "the network has spectral norm"
    if method.tortoise is not None and method.tortoise.weights.target is not None:
        return "the tortoise is a module of its own"
    if method.tortoise is not None and len(method.tortoise.copies) > 1:
        return "several tortoises are validated one after the other"
    reasons = [reason for part in method.methods if (reason := pack_obstacle(part))]
    return stacked_obstacle(model) or next(iter(reasons), "")


def _obstacle_of_run(run: TrainingRun) -> str:
    if run.accuracy_matrix:
        return "it has an accuracy matrix"
    for phase in run.stream:
        if phase.test_indices is not None:
            return "a phase of its stream has a test set of its own"
        if phase.outputs is not None or phase.reset_head:
            return "a phase of its stream has a head of its own"
        if phase.relabel is not None and bool((phase.relabel < 0).any()):
            return "a phase of its stream is tested on some of the classes"
    return ""


def pack_key(run: TrainingRun) -> tuple[Any, ...]:
    """Return what runs of one pack must have in common: network, data, sizes of batches, phases and epochs."""
    tensors = [(name, tensor.dtype) for name, tensor in run.model.state_dict().items()]
    config = run.config
    phases = tuple((len(phase), phase.epochs, phase.tested_on) for phase in run.stream)
    return (
        repr(run.model),
        tensors,
        _form(run.model),
        id(run.data),
        config.batch_size,
        config.augment,
        phases,
        str(run.device),
    )


class Pack:
    """Trains runs together, as `ht_ray.vision.fit` trains each alone, up to the rounding of batched products.

    Each keeps its own seed, order, labels, learning rate, method and intervals, and draws what it draws alone. Their
    parameters, running statistics, moments and tortoises lie stacked on a first axis: a step is one program for all
    of them. Between steps each is a run of its own, whose tensors are views of the stacked ones: resets, recycling,
    phases, indicators and checkpoints are those of `TrainingRun`.

    A run's result does not depend on the others, bit for bit, on a CPU; a run that has diverged, or is dropped, leaves
    the pack.

    Parameters
    ----------
    runs : sequence of TrainingRun
        Those with one `pack_key`, at whatever epoch each is.
    graph : {"auto", "on", "off"}, default "auto"
        Whether steps are captured as a CUDA graph, as in `ht_ray.vision.fit`.

    Raises
    ------
    SettingError
        If a run cannot be packed, or not with the others.

    Examples
    --------
    >>> from ht_ray.vision import ContinualConfig, DataConfig, MethodConfig, ModelConfig, TrainingConfig
    >>> from ht_ray.vision import load_data, make_model, make_stream
    >>> data, runs = load_data(DataConfig("digits")), []
    >>> for seed in range(3):
    ...     model = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=data.num_classes, seed=seed)
    ...     stream = make_stream(data.train_labels, 10, ContinualConfig(phases=2, epochs=3), seed=seed)
    ...     method = MethodConfig("hare_tortoise", momentum=0.9, reset_interval=1)
    ...     training = TrainingConfig(batch_size=64)
    ...     runs.append(TrainingRun(model, data, stream, method=method, training=training, seed=seed))
    >>> pack = Pack(runs)
    >>> while pack.runs:
    ...     ended = pack.train_phase()
    >>> [len(run.rows) for run in runs], min(run.rows[-1]["test_accuracy"] for run in runs) > 0.5
    ([6, 6, 6], True)
    """

    def __init__(self, runs: Sequence[TrainingRun], *, graph: GraphMode = "auto") -> None:
        if not runs:
            raise SettingError("Pack: runs = []: accepted is at least one.")
        for number, run in enumerate(runs):
            if reason := obstacle_to_packing(run.model, run.method, run.config) or _obstacle_of_run(run):
                raise SettingError(f"Pack: run {number} cannot be packed: {reason}.")
            if pack_key(run) != pack_key(runs[0]):
                raise SettingError(
                    f"Pack: run {number} differs from run 0 in its network, data, batch size, augmentation or phases: "
                    "accepted are runs that have these in common."
                )
        #: Those that are not done.
        self.runs = [run for run in runs if not run.done]
        self._form = _form(runs[0].model)
        hosted = sorted({name for run in runs for name in run.method.not_capturable})
        obstacle = f"{' and '.join(hosted)} decides or draws on the host within a step" if hosted else ""
        self._graph = graph
        self._capturing = use_graph("Pack: graph", graph, runs[0].device, obstacle=obstacle)
        self._begun: set[int] = set()
        self._stack: _Stack | None = None

    def drop(self, run: TrainingRun) -> None:
        """Train a run no more."""
        self.runs = [other for other in self.runs if other is not run]
        self._stack = None

    def train_phase(self, stop: Callable[[], bool] | None = None) -> list[tuple[TrainingRun, Diverged | None]]:
        """Train the runs that are furthest behind to the end of their phase.

        Parameters
        ----------
        stop : callable, optional
            Asked between two epochs, once one has been trained in this call; when it returns true, all runs stand
            between two epochs and `Interrupted` is raised.

        Returns
        -------
        list of tuple
            Those that were trained, with how they diverged if they did; these are dropped, as are those that are done.
        """
        behind = min(run.phase for run in self.runs)
        trained = [run for run in self.runs if run.phase == behind]
        ended: dict[int, Diverged | None] = {}
        asked = False
        while left := [run for run in trained if id(run) not in ended]:
            if asked and stop is not None and stop():
                raise Interrupted(f"in phase {behind + 1}")
            asked = True
            # Those of one phase that were saved at different epochs catch up first.
            lowest = min(run.epoch for run in left)
            group = [run for run in left if run.epoch == lowest]
            for run in group:
                if id(run) not in self._begun:
                    self._begun.add(id(run))
                    run.begin_phase()
                    self._stack = None
            if self._stack is None or self._stack.runs != group:
                self._stack = _Stack(group, self._form, graph=self._capturing, optional=self._graph == "auto")
            for run, diverged in self._stack.train_epoch():
                if diverged is not None or run.epoch == run.epochs:
                    ended[id(run)] = diverged
                    self._begun.discard(id(run))
                if diverged is not None:
                    self.drop(run)
        for run in trained:
            if ended[id(run)] is None:
                run.end_phase()
        self.runs = [run for run in self.runs if not run.done]
        self._stack = None
        return [(run, ended[id(run)]) for run in trained]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape on a first axis; matrices begin where products want them to."""
    if tensors[0].dim() < 2:
        return torch.stack(list(tensors))
    stacked = empty_rows(len(tensors), tensors[0].shape, tensors[0])
    torch._foreach_copy_(list(stacked.unbind(0)), list(tensors))
    return stacked


def _losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return each sample's loss of each member's ``(T, B, K)``, as `task_loss` has it."""
    if labels.is_floating_point():
        return (outputs[..., 0] - labels.to(outputs.dtype)).square()
    return functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none")


def _right(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return how many of each member's ``(T, B, K)`` are right; of equal logits the first counts, as for `argmax`."""
    return (outputs.transpose(1, 2).max(1).indices == labels).sum(1)


def _form(model: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, tensor.shape) for name, tensor in model.state_dict().items()]


def _places_in_memory(model: nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]


class _Rows:
    """The members of a stack from one place to another (see `PackRows`)."""

    def __init__(self, stack: _Stack, rows: slice) -> None:
        self._stack = stack
        self._rows = rows
        self.weights = {name: weight.detach()[rows] for name, weight in stack.weights.items()}

    @property
    def gradients(self) -> Mapping[str, Tensor]:
        return {name: gradient[self._rows] for name, gradient in self._stack.gradients.items()}

    @property
    def rates(self) -> Tensor:
        rates: Tensor = self._stack.rates[self._rows]
        return rates

    @property
    def decays(self) -> Tensor:
        return self._stack.decays[self._rows]

    def predict(self, inputs: Tensor) -> Tensor:
        tortoises = {name: tensor[self._rows] for name, tensor in self._stack.tortoises.items()}
        return self._stack.forward(tortoises, inputs, training=False)


class _Stack:
    """The tensors of runs at one epoch, stacked, and their steps."""

    def __init__(
        self, runs: list[TrainingRun], form: list[tuple[str, torch.Size]], *, graph: bool = False, optional: bool = True
    ) -> None:
        self.runs = runs
        # Neighbours: those with tortoises first, and of these and the others those of the same methods.
        self.members = sorted(runs, key=lambda run: (run.method.tortoise is None, run.method.name))
        first = self.members[0]
        # One network alone would be computed by other kernels: it gets a companion, which nobody reads.
        self._places = len(self.members) if len(self.members) > 1 else 2
        self._network = StackedNetwork(first.model)
        self._following = sum(run.method.tortoise is not None for run in self.members)
        for run in self.members:
            if _form(run.model) != form:
                raise RuntimeError(_REPLACED.format(run.method.name))
        parameters = [dict(run.model.named_parameters()) for run in self.members]
        self.weights: dict[str, Tensor] = {}
        for name in parameters[0]:
            self.weights[name] = self._bound([held[name] for held in parameters]).requires_grad_()
        buffers = [dict(run.model.named_buffers()) for run in self.members]
        self.buffers = {name: self._bound([held[name] for held in buffers]) for name in buffers[0]}
        self._bind_optimizers(parameters)
        self._bind_tortoises()
        self._methods = list(self._packed())
        self.gradients: dict[str, Tensor] = {}
        self.rates = self.decays
        configs = [run.config for run in self.members]
        self._clips = self._per_member([torch.inf if config.clip is None else config.clip for config in configs])
        self._structures = [Structure(run.model) for run in self.members]
        self._memory = [_places_in_memory(run.model) for run in self.members]
        self._losses = self._per_member([0.0] * len(self.members))
        self._correct = torch.zeros(self._places, dtype=torch.int64, device=self._losses.device)
        self._draws: EpochDraws | None = None
        # On a GPU a step reads its learning rates and its samples from the device, captured or not: both compute alike.
        self._on_device = first.device.type == "cuda"
        if self._on_device:
            self._rates_on_device()
        self._graph, self._optional = graph, optional
        self._captured: dict[int, Captured] = {}

    def _rates_on_device(self) -> None:
        """Write the learning rates of each step of the phase, for each kind of optimiser, to the device."""
        first = self.members[0]
        steps = range(len(first.loader) * first.epochs)
        rates = [[key[0] * warmup_factor(step, len(steps), key[4]) for step in steps] for key, _, _ in self._kinds]
        self._rates = torch.tensor(rates, device=first.device)
        kinds = [0] * self._places
        for kind, (_, members, _) in enumerate(self._kinds):
            for number in members:
                kinds[number] = kind
        kinds[len(self.members) :] = [kinds[0]] * (self._places - len(self.members))
        self._kind_of = torch.tensor(kinds, device=first.device)
        self._present = torch.tensor([len(first.loader) * first.epoch], device=first.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=first.device)

    def _per_member(self, values: Sequence[float]) -> Tensor:
        """One number for each place, the companion's included."""
        some = next(iter(self.weights.values()))
        padded = [*values, *[values[0]] * (self._places - len(values))]
        return torch.tensor(padded, dtype=some.dtype, device=some.device)

    def _bound(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return `tensors` stacked; from now on each is a view of its row."""
        held = [tensor.detach() for tensor in tensors]
        stacked = _stacked([*held, *[held[0]] * (self._places - len(held))])
        for tensor, row in zip(tensors, stacked.unbind(0), strict=False):
            tensor.data = row
        return stacked

    def _bind_optimizers(self, parameters: Sequence[Mapping[str, Tensor]]) -> None:
        optimizers = [run.optimizer for run in self.members]
        # By layer, then by member: the parameters, and what the optimisers know of them.
        self._parameters: list[list[Tensor]] = []
        self._states: list[list[dict[str, Any]]] = []
        moments: list[list[Tensor]] = [[], [], []]
        steps = []
        for name in self.weights:
            states = []
            for held, optimizer in zip(parameters, optimizers, strict=True):
                parameter = held[name]
                state = optimizer.state[parameter]
                if not state:  # as the optimiser itself makes it at its first step
                    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                states.append(state)
            self._parameters.append([held[name] for held in parameters])
            self._states.append(states)
            stacked = [self._bound([state[kind] for state in states]) for kind in ("exp_avg", "exp_avg_sq", "step")]
            steps.append(stacked[2])
            for kept, tensor in zip(moments, stacked, strict=True):
                kept.extend(tensor.unbind(0)[: len(self.members)])
        self._steps = steps
        self._moments = moments
        # What is read as the gradient lies as its weight does: fused optimisers on a CPU walk both in memory order and
        # pair other entries otherwise, without a word (torch 2.15: Adam, AdamW, SGD).
        self._clipped = {
            name: empty_rows(len(weight), weight.shape[1:], weight) for name, weight in self.weights.items()
        }
        self._targets, self._rows = (
            [row for tensor in held.values() for row in tensor.detach().unbind(0)[: len(self.members)]]
            for held in (self.weights, self._clipped)
        )
        groups = [optimizer.param_groups[0] for optimizer in optimizers]
        self.decays = self._per_member([group["weight_decay"] for group in groups])
        # Those that one call of the optimiser's kernel can serve.
        kinds: dict[tuple[Any, ...], list[int]] = {}
        for number, (run, group) in enumerate(zip(self.members, groups, strict=True)):
            rate = group.setdefault("initial_lr", group["lr"])
            key = (float(rate), group["betas"], group["eps"], group["weight_decay"], run.config.warmup_ratio)
            kinds.setdefault(key, []).append(number)
        count = len(self.members)
        self._kinds = [
            (key, members, [layer * count + number for layer in range(len(self.weights)) for number in members])
            for key, members in kinds.items()
        ]

    def _bind_tortoises(self) -> None:
        held = [run.method.tortoise for run in self.members[: self._following]]
        self.tortoises: dict[str, Tensor] = {}
        self._average: list[tuple[Tensor, Tensor]] = []
        self._warming = False
        self._copy: list[tuple[Tensor, Tensor]] = []
        if not held:
            return
        averaged = {id(t) for tortoise in held if tortoise for t in tortoise.weights.averaged(tortoise.hare)}
        live = {name: tensor.detach()[: len(held)] for name, tensor in {**self.weights, **self.buffers}.items()}
        for name, tensor in live.items():
            own = [tortoise.weights[name] for tortoise in held if tortoise is not None]
            stacked = _stacked([one.detach() for one in own])
            for one, row in zip(own, stacked.unbind(0), strict=True):
                one.data = row
            self.tortoises[name] = stacked
            (self._average if id(own[0]) in averaged else self._copy).append((stacked, tensor))
        self._followers = [tortoise for tortoise in held if tortoise is not None]
        self._warming = any(tortoise.settings.momentum_warmup for tortoise in self._followers)
        self._towards = self._steps_of_averages()

    def _steps_of_averages(self) -> Tensor:
        """How far each tortoise goes towards its hare in the next step, ``(k,)``."""
        some = next(iter(self.weights.values()))
        steps = [1.0 - tortoise.next_momentum for tortoise in self._followers]
        return upload(torch.tensor(steps, dtype=some.dtype), some.device)

    def _packed(self) -> Iterator[tuple[slice, PackedMethod]]:
        """Yield what the members' methods do within steps, in their order, for each run of neighbours."""
        found: list[tuple[float, slice, type[PackedMethod], list[Method]]] = []
        for name in dict.fromkeys(name for run in self.members for name in run.method.by_name):
            own = [(place, run.method.by_name.get(name)) for place, run in enumerate(self.members)]
            for _, neighbours in groupby(own, key=lambda one: one[1] is None):
                held = [(place, method) for place, method in neighbours if method is not None]
                if held and (kind := held[0][1].packed) is not None:
                    rows = slice(held[0][0], held[-1][0] + 1)
                    found.append((held[0][1].rank, rows, kind, [method for _, method in held]))
        for _, rows, kind, methods in sorted(found, key=lambda one: one[0]):
            yield rows, kind(methods, _Rows(self, rows))

    def forward(self, tensors: Mapping[str, Tensor], inputs: Tensor, *, training: bool) -> Tensor:
        """Return logits ``(k, B, K)`` of networks with these tensors, of which there may be one."""
        if len(inputs) > 1:
            return self._network(tensors, inputs, training=training)
        twice = {name: torch.cat([tensor, tensor]) for name, tensor in tensors.items()}
        return self._network(twice, torch.cat([inputs, inputs]), training=training)[:1]

    def train_epoch(self) -> list[tuple[TrainingRun, Diverged | None]]:
        """Train each run for an epoch, and return how those have diverged that have."""
        losses, correct, seen, step = self.train_steps()
        for run, structure, memory in zip(self.members, self._structures, self._memory, strict=True):
            if not structure.holds() or _places_in_memory(run.model) != memory:
                raise RuntimeError(_REPLACED.format(run.method.name))
        total = len(self.members[0].loader) * self.members[0].epochs
        ended: list[tuple[TrainingRun, Diverged | None]] = []
        due = []
        for number, (run, loss) in enumerate(zip(self.members, losses.tolist(), strict=False)):
            # As it is found in a checkpoint of a run alone.
            set_learning_rate(run.optimizer, warmup_factor(step - 1, total, run.config.warmup_ratio))
            try:
                tested = run.end_epoch(loss, seen)
            except Diverged as error:
                ended.append((run, error))
                continue
            ended.append((run, None))
            if tested:
                due.append(number)
        self._follow_changes()
        if due:
            evaluations = self._evaluate()
            for number, right in zip(due, correct[due].tolist(), strict=True):
                self.members[number].record(right / seen, *(tested[number] for tested in evaluations))
        return ended

    def train_steps(self) -> tuple[Tensor, Tensor, int, int]:
        """Make the steps of an epoch; return each one's sum of losses and how many were right, of how many, and the
        number of the next step of the phase."""
        first = self.members[0]
        for run in self.members:
            run.model.train()
        self._draw()
        self._losses.zero_()
        self._correct.zero_()
        total, step = len(first.loader) * first.epochs, len(first.loader) * first.epoch
        seen = 0
        for start, size in first.loader.batches():
            if self._on_device:
                captured = self._captured.get(size) or self._captured.setdefault(size, self._capture())
                inputs = captured(size)["inputs"]
            else:
                inputs = self._step(size, start, step, total)["inputs"]
            changed = False
            for run, own in zip(self.members, inputs.unbind(0), strict=False):
                changed |= run.method.after_update(run.optimizer, own)
            if changed and any(len(run.optimizer.state) < len(self.weights) for run in self.members):
                self._follow_changes()
            seen += size
            step += 1
        return self._losses, self._correct, seen, step

    def _draw(self) -> None:
        """Draw the next epoch of each member, stacked; on the device where the last one lies."""
        draws = [run.loader.draw_epoch() for run in self.members]
        draws += [draws[0]] * (self._places - len(draws))
        places = [draw.places for draw in draws if draw.places is not None]
        stacked = EpochDraws(
            torch.stack([draw.indices for draw in draws]),
            torch.stack([draw.labels for draw in draws]),
            torch.stack(places) if places else None,
        )
        if self._draws is None or not self._on_device:
            self._draws = stacked
        else:
            self._draws.copy_(stacked)
        if self._on_device:
            self._position.zero_()

    def _capture(self) -> Captured:
        device = self._losses.device
        return Captured(self._step, on=self._graph, device=device, optional=self._optional)

    def _batch(self, start: int, size: int) -> tuple[Tensor, Tensor]:
        """Return each member's next batch ``(T, B, C, H, W)`` and its labels ``(T, B)``."""
        assert self._draws is not None
        first = self.members[0]
        if self._on_device:
            rows = torch.arange(size, device=self._losses.device) + self._position
            self._position += size
            some = [None if draw is None else draw.index_select(1, rows) for draw in self._draws]
        else:
            some = [None if draw is None else draw[:, start : start + size] for draw in self._draws]
        indices, labels, places = some
        assert indices is not None
        assert labels is not None
        images = first.images.index_select(0, indices.reshape(-1))
        if places is not None:
            images = crop_flip_places(images, places.reshape(-1), flip=first.config.augment == "crop_flip")
        inputs = first.normalise.in_two_steps(images).view(self._places, size, *images.shape[1:])
        for run, own in zip(self.members, inputs, strict=False):
            if run.loader.transform is not None:
                own.copy_(run.loader.transform(own))
        return inputs.to(self._losses.dtype), labels

    def _step(self, size: int, start: int = 0, step: int = 0, total: int = 0) -> dict[str, Tensor]:
        """Launch one step of all, and return its batches. Nothing in here may wait for a GPU.

        On the device `start` and `step` are not looked at: they are counted there.
        """
        rates: Sequence[float | Tensor]
        if self._on_device:
            present = self._rates.index_select(1, self._present).squeeze(1)
            self._present += 1
            self.rates = present.index_select(0, self._kind_of)
            rates = present.unbind(0)
        else:
            rates = [key[0] * warmup_factor(step, total, key[4]) for key, _, _ in self._kinds]
            each = [0.0] * len(self.members)
            for rate, (_, numbers, _) in zip(rates, self._kinds, strict=True):
                for number in numbers:
                    each[number] = float(rate)
            self.rates = self._per_member(each)
        inputs, labels = self._batch(start, size)
        for rows, method in self._methods:
            method.before_forward(inputs[rows])
        outputs = self._network({**self.weights, **self.buffers}, inputs, training=True)
        # As the network left them: classes, then samples.
        loss = _losses(outputs, labels).mean(1)
        objective = loss.sum()
        for rows, method in self._methods:
            if (term := method.loss(outputs[rows])) is not None:
                objective = objective + term.sum()
        gradients = torch.autograd.grad(objective, list(self.weights.values()))
        with torch.no_grad():
            self.gradients = dict(zip(self.weights, gradients, strict=True))
            for _, method in self._methods:
                method.add_gradients()
            self._clip()
            for _, method in self._methods:
                method.before_step()
            self._update(rates)
            for _, method in self._methods:
                method.after_step()
            if self._warming:
                self._towards = self._steps_of_averages()
            for average, live in self._average:
                average.lerp_(live, by_row(self._towards, live))
            for copy, live in self._copy:
                copy.copy_(live)
            self._losses += loss.detach() * size
            self._correct += _right(outputs.detach(), labels)
        return {"inputs": inputs.detach()}

    def _clip(self) -> None:
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in self.gradients.values()])
        total = torch.linalg.vector_norm(norms, dim=0)
        kept = (self._clips / (total + 1e-6)).clamp(max=1.0)
        for name, gradient in self.gradients.items():
            torch.mul(gradient, by_row(kept, gradient), out=self._clipped[name])
        self.gradients = self._clipped

    def _update(self, rates: Sequence[float | Tensor]) -> None:
        """Make the step of each member's AdamW, with the learning rate of each kind."""
        count = len(self.members)
        torch._foreach_add_(self._steps, 1)
        averages, squares, steps = self._moments
        for ((_, betas, eps, decay, _), numbers, chosen), rate in zip(self._kinds, rates, strict=True):
            every = len(numbers) == count

            def of(tensors: list[Tensor], every: bool = every, chosen: list[int] = chosen) -> list[Tensor]:
                return tensors if every else [tensors[number] for number in chosen]

            # What `torch.optim.AdamW(fused=True)` calls.
            torch._fused_adamw_(
                of(self._targets),
                of(self._rows),
                of(averages),
                of(squares),
                [],
                of(steps),
                amsgrad=False,
                lr=rate,  # type: ignore[arg-type, unused-ignore]
                beta1=betas[0],
                beta2=betas[1],
                weight_decay=decay,
                eps=eps,
                maximize=False,
            )

    def _follow_changes(self) -> None:
        """Give members' optimisers the state again that they have lost, as a reset clears it: zeros."""
        for parameters, states in zip(self._parameters, self._states, strict=True):
            for run, parameter, state in zip(self.members, parameters, states, strict=True):
                if run.optimizer.state.get(parameter) is not state:
                    for tensor in state.values():
                        tensor.zero_()
                    run.optimizer.state[parameter] = state

    def _evaluate(self) -> list[list[Evaluation]]:
        """Test the network that predicts of each member on the test set, and on the validation part if there is one."""
        tensors = {name: tensor.detach() for name, tensor in {**self.weights, **self.buffers}.items()}
        for name, tortoise in self.tortoises.items():
            tensors[name] = _stacked([*tortoise, *tensors[name][self._following :]])
        alike = all(run.stream[run.phase].plain for run in self.members)
        return [self._evaluate_on(tensors, number, alike) for number in range(len(self.members[0].tests))]

    def _evaluate_on(self, tensors: Mapping[str, Tensor], number: int, alike: bool) -> list[Evaluation]:
        """Test on one of the members' sets; `alike` says that all are tested on the same."""
        first = self.members[0]
        count = len(first.tests[number].images)
        losses = torch.zeros(self._places, dtype=torch.float64, device=first.device)
        correct = torch.zeros(self._places, dtype=torch.int64, device=first.device)
        with torch.no_grad():
            for start in range(0, count, _TESTED_AT_ONCE):
                some = slice(start, start + _TESTED_AT_ONCE)
                if alike:
                    batch = self._test_batch(first, number, some)
                    labels = first.tests[number].labels[some].expand(self._places, -1)
                    batch = batch.expand(self._places, *batch.shape)
                else:
                    tested = [*self.members, *[first] * (self._places - len(self.members))]
                    batch = torch.stack([self._test_batch(run, number, some) for run in tested])
                    labels = torch.stack([run.tests[number].labels[some] for run in tested])
                outputs = self._network(tensors, batch, training=False)
                losses += _losses(outputs, labels).sum(1)
                correct += _right(outputs, labels)
        means = [loss / count for loss in losses.tolist()]
        if first.tests[number].labels.is_floating_point():
            tests = [run.tests[number].labels for run in self.members]
            return [Evaluation(mean, explained(mean, own)) for mean, own in zip(means, tests, strict=False)]
        return [Evaluation(mean, right / count) for mean, right in zip(means, correct.tolist(), strict=True)]

    def _test_batch(self, run: TrainingRun, number: int, some: slice) -> Tensor:
        test = run.tests[number]
        batch = run.normalise.in_two_steps(test.images[some]).to(self.rates.dtype)
        return batch if test.transform is None else test.transform(batch)
