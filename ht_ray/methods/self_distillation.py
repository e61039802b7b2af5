"""Self-distillation: the network learns from its own average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ht_ray.mechanisms.modes import evaluation_mode
from ht_ray.mechanisms.weights.spectral_norm import spectral_layers
from ht_ray.methods.method import Inputs, Method, check_logits
from ht_ray.methods.packed import PackedMethod, by_row
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting
from ht_ray.methods.tortoise import Tortoise

__all__ = ["SelfDistillation"]


class _PackedSelfDistillation(PackedMethod):
    def _begin(self) -> None:
        self._temperatures = self.per_row([method.settings.temperature for method in self.methods])
        self._strengths = self.per_row(
            [method.settings.strength * method.settings.temperature**2 for method in self.methods]
        )

    def before_forward(self, inputs: Tensor) -> None:
        self._teachers = self.rows.predict(inputs)

    def loss(self, outputs: Tensor) -> Tensor | None:
        warmth = by_row(self._temperatures, outputs)
        student = functional.log_softmax(outputs / warmth, dim=-1)
        teacher = functional.softmax(self._teachers.to(outputs.dtype) / warmth, dim=-1)
        divergence = functional.kl_div(student, teacher, reduction="none").sum(2).mean(1)
        return self._strengths * divergence


@register
class SelfDistillation(Method):
    """Self-distillation: the tortoise's predictions are soft targets for the network.

    Adds ``strength * T^2 * KL(teacher || student)``, averaged over the batch, between the class distributions of the
    two at temperature ``T``; the square keeps gradients comparable between temperatures (Hinton et al.). The teacher
    is the tortoise (a mean teacher, Tarvainen & Valpola; compared with in arXiv 2406.02596), in evaluation mode, on the
    very inputs of the student and with no gradient. Nothing of the network changes in its pass: modes, BatchNorm
    statistics, gradients and random state.

    Parameters
    ----------
    module
        The network.
    settings, seed, **changes
        As in `Method`.

    Raises
    ------
    SettingError
        If a setting is out of its range.

    References
    ----------
    Tarvainen & Valpola (2017). Mean teachers are better role models. arXiv:1703.01780.
    Hinton et al. (2015). Distilling the knowledge in a neural network. arXiv:1503.02531.
    Allen-Zhu & Li (2020). Towards understanding ensemble, knowledge distillation and self-distillation in deep
    learning. arXiv:2012.09816.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Linear(2, 3)
    >>> tortoise, method, inputs = Tortoise(net), SelfDistillation(net), torch.randn(4, 2)
    >>> method.before_forward(inputs, tortoise)
    >>> abs(method.loss(net(inputs)).item()) < 1e-6
    True
    """

    name = "self_distillation"
    title = "Self-Distillation"
    rank = -7
    tried = grid(strength=(0.1, 0.3, 1.0, 3.0))
    capturable = True
    packed = _PackedSelfDistillation
    brings = "ema"
    not_for_agents = "it compares distributions over classes, and an agent's outputs are values"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are ours."""

        strength: float = setting(
            1.0,
            "Factor of the divergence from the teacher's prediction; 0 is off: the teacher does not compute.",
            was="distillation_strength",
            low=0,
        )
        temperature: float = setting(
            1.0,
            "Temperature of teacher and student.",
            was="distillation_temperature",
            low=0,
            low_open=True,
        )

    settings: Settings

    def _begin(self) -> None:
        self._teacher: Tensor | None = None

    @torch.no_grad()
    def before_forward(self, inputs: Inputs, tortoise: Tortoise | None = None) -> None:
        """Compute the teacher's logits.

        Raises
        ------
        RuntimeError
            Without a tortoise, or while it predicts: its values are in the hare then.
        """
        if not self.settings.strength:
            return
        if tortoise is None:
            raise RuntimeError("SelfDistillation needs a tortoise: it is the teacher")
        if tortoise.predicting:
            raise RuntimeError("SelfDistillation while the tortoise predicts: stop predicting first")
        with evaluation_mode(self.module):
            self._teacher = self._predicted(inputs, tortoise)

    def _predicted(self, inputs: Inputs, tortoise: Tortoise) -> Any:
        if spectral_layers(self.module):  # whose vectors are made for the tortoise's weights at a prediction only
            with tortoise.predict() as teacher:
                return teacher(*inputs) if isinstance(inputs, tuple) else teacher(inputs)
        tortoise.weights.sync(self.module)
        tortoise.weights.copy_own_from(self.module)
        live = dict([*self.module.named_parameters(), *self.module.named_buffers()])
        weights = {name: value.to(live[name].dtype) for name, value in tortoise.weights.tensors.items()}
        return functional_call(self.module, weights, inputs)

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return the divergence of the student's logits ``(B, K)`` from the teacher's.

        Raises
        ------
        RuntimeError
            Without a `before_forward` for this batch.
        """
        if not self.settings.strength:
            return None
        if self._teacher is None:
            raise RuntimeError("SelfDistillation.loss without before_forward: call that for each batch")
        check_logits(self.title, outputs)
        teacher, self._teacher = self._teacher, None
        dtype = torch.promote_types(outputs.dtype, torch.float32)
        divergence = functional.kl_div(
            functional.log_softmax(outputs.to(dtype) / self.settings.temperature, dim=-1),
            functional.softmax(teacher.to(dtype) / self.settings.temperature, dim=-1),
            reduction="batchmean",
        )
        return self.settings.strength * self.settings.temperature**2 * divergence
