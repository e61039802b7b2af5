"""The callback of Transformers trains as a plain loop with a tortoise does, bit for bit, and predicts with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import SETTINGS, assert_same, train_by_hand
from torch import nn

transformers = pytest.importorskip("transformers", reason="needs ht-ray[transformers]")

from ht_ray.errors import SettingError  # noqa: E402
from ht_ray.integrations.transformers import HareTortoiseCallback  # noqa: E402
from ht_ray.methods import Tortoise  # noqa: E402

BATCH, BATCHES = 8, 6


@pytest.fixture(autouse=True)
def own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the precision of the test before: Transformers 4 leaves it in the environment, for all later trainers."""
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)


class Network(nn.Module):
    """Returns its loss first, as networks of Transformers do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.training:
            self.seen.append(self.layers[0].weight.detach().clone())
        logits = self.layers(x)
        return nn.functional.cross_entropy(logits, labels), logits


def samples() -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    x, labels = torch.randn(BATCH * BATCHES, 4, generator=draw), torch.randint(3, (BATCH * BATCHES,), generator=draw)
    return [{"x": one, "labels": label} for one, label in zip(x, labels, strict=True)]


class InOrder(transformers.Trainer):
    """Takes the samples as they come, so that a plain loop can too."""

    def _get_train_sampler(self, *arguments: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder: Path, callback: HareTortoiseCallback, epochs: int = 3, **settings: Any) -> Any:
    model = Network()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", **settings},
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    made = InOrder(model, arguments, train_dataset=samples(), eval_dataset=samples(), optimizers=(optimizer, None))
    return callback.attach(made)


def by_hand(*given: Any, **settings: Any) -> tuple[nn.Module, Tortoise]:
    every = torch.utils.data.DataLoader(samples(), batch_size=BATCH)
    return train_by_hand(Network(), every, lambda model, batch: model(**batch)[0], *given, **settings)


@pytest.mark.parametrize(
    ("of_the_trainer", "of_the_loop"),
    [
        ({}, {}),
        ({"gradient_accumulation_steps": 2}, {"accumulate": 2}),
        ({"max_grad_norm": 0.1}, {"clip": 0.1}),
        ({"bf16": True}, {"autocast": True}),
    ],
)
def test_trains_as_a_plain_loop(tmp_path: Path, of_the_trainer: dict[str, Any], of_the_loop: dict[str, Any]) -> None:
    callback = HareTortoiseCallback(**SETTINGS)
    one = trainer(tmp_path, callback, eval_strategy="epoch", **of_the_trainer)
    one.train()
    expected = by_hand(**of_the_loop)
    assert expected[1].resets > 0
    assert_same(callback, one.model, expected)


def test_resets_in_epochs(tmp_path: Path) -> None:
    callback = HareTortoiseCallback(momentum=0.8, reset_interval=2)
    one = trainer(tmp_path, callback, epochs=5)
    one.train()
    assert_same(callback, one.model, by_hand(5, reset_interval=2, reset_unit="epochs", optimizer_state="keep"))


def test_evaluation_is_the_tortoises_and_leaves_no_trace(tmp_path: Path) -> None:
    callback = HareTortoiseCallback(momentum=0.8)
    one = trainer(tmp_path, callback, eval_strategy="epoch")
    one.train()
    assert len({tuple(weight.flatten().tolist()) for weight in one.model.seen}) == 3
    hare, expected = by_hand(reset_interval=None, optimizer_state="keep")
    assert torch.equal(one.model.seen[-1], expected.weights["layers.0.weight"])
    one.model.seen.clear()
    one.evaluate()
    one.predict(samples())
    assert len(one.model.seen) == 2 * BATCHES
    assert all(torch.equal(weight, expected.weights["layers.0.weight"]) for weight in one.model.seen)
    assert_same(callback, one.model, (hare, expected))


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    trainer(tmp_path, HareTortoiseCallback(**SETTINGS), epochs=2, save_strategy="epoch").train()
    first = tmp_path / f"checkpoint-{BATCHES}"
    callback = HareTortoiseCallback(**SETTINGS)
    one = trainer(tmp_path, callback, save_strategy="epoch")
    one.train(resume_from_checkpoint=str(first))
    assert_same(callback, one.model, by_hand())
    # From another folder, of which a callback is not told.
    callback = HareTortoiseCallback(resume_from=first, **SETTINGS)
    one = trainer(tmp_path / "other", callback)
    one.train(resume_from_checkpoint=str(first))
    assert_same(callback, one.model, by_hand())
    with pytest.raises(SettingError, match=r"resume_from = .*there is no tortoise\.pt"):
        trainer(tmp_path / "third", HareTortoiseCallback(**SETTINGS)).train(resume_from_checkpoint=str(first))


def test_best_model_is_that_of_hare_and_tortoise(tmp_path: Path) -> None:
    callback = HareTortoiseCallback(momentum=0.8)
    settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
    # The first is best: the loss is to be large.
    one = trainer(tmp_path, callback, metric_for_best_model="loss", greater_is_better=True, **settings)
    one.train()
    assert one.state.best_model_checkpoint.endswith(f"checkpoint-{BATCHES}")
    assert_same(callback, one.model, by_hand(1, reset_interval=None, optimizer_state="keep"))


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"momentum = 1.5"):
        HareTortoiseCallback(momentum=1.5)
    with pytest.raises(SettingError, match=r"momenta = .*leave it out"):
        HareTortoiseCallback(momenta=(0.9, 0.99))
    with pytest.raises(SettingError, match="bf16_full_eval = True"):
        trainer(tmp_path, HareTortoiseCallback(), bf16_full_eval=True)
    one = trainer(tmp_path, HareTortoiseCallback())
    one.is_fsdp_enabled = True
    with pytest.raises(SettingError, match=r"is_fsdp_enabled = True.*DDP and DataParallel"):
        HareTortoiseCallback().attach(one)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    alone = transformers.Trainer(Network(), arguments, train_dataset=samples(), callbacks=[HareTortoiseCallback()])
    with pytest.raises(SettingError, match=r"callback\.attach\(trainer\)"):
        alone.train()
