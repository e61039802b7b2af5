"""The callback of Lightning trains as a plain loop with a tortoise does, bit for bit, and predicts with it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import SETTINGS, assert_same, train_by_hand
from torch import nn

lightning = pytest.importorskip("lightning.pytorch", reason="needs ht-ray[lightning]")

from ht_ray.errors import SettingError  # noqa: E402
from ht_ray.integrations.lightning import HareTortoiseCallback  # noqa: E402
from ht_ray.methods import Tortoise  # noqa: E402

BATCHES = 6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, generator=draw), torch.randint(3, (8,), generator=draw)) for _ in range(BATCHES)]


def loss_of(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


class Module(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.seen: list[torch.Tensor] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=0.05)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return loss_of(self.network, batch)

    def validation_step(self, batch: Any, index: int) -> None:
        self.seen.append(self.network[0].weight.detach().clone())

    test_step = predict_step = validation_step


class TwoOptimizers(Module):
    """Steps with one optimizer for the first layer, and with another for the rest, at each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        first, rest = self.network[:1].parameters(), self.network[1:].parameters()
        return [torch.optim.Adam(first, lr=0.05), torch.optim.SGD(rest, lr=0.1)], []

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss_of(self.network, batch))
        for optimizer in self.optimizers():
            optimizer.step()


def loader() -> torch.utils.data.DataLoader[Any]:
    return torch.utils.data.DataLoader(batches(), batch_size=None)


def trainer(folder: Path, callback: Any, epochs: int = 3, **settings: Any) -> Any:
    return lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[callback],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def by_hand(*given: Any, **settings: Any) -> tuple[nn.Module, Tortoise]:
    return train_by_hand(network(), batches(), loss_of, *given, **settings)


@pytest.mark.parametrize(
    ("of_lightning", "of_the_loop"),
    [
        ({}, {}),
        ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
        ({"gradient_clip_val": 0.1}, {"clip": 0.1}),
        ({"precision": "bf16-mixed"}, {"autocast": True}),
    ],
)
def test_trains_as_a_plain_loop(tmp_path: Path, of_lightning: dict[str, Any], of_the_loop: dict[str, Any]) -> None:
    module, callback = Module(), HareTortoiseCallback("network", **SETTINGS)
    trainer(tmp_path, callback, **of_lightning).fit(module, loader(), loader())
    expected = by_hand(**of_the_loop)
    assert expected[1].resets > 0
    assert_same(callback, module.network, expected)


def test_resets_in_epochs(tmp_path: Path) -> None:
    module, callback = Module(), HareTortoiseCallback("network", momentum=0.8, reset_interval=2)
    trainer(tmp_path, callback, epochs=5).fit(module, loader())
    expected = by_hand(5, reset_interval=2, reset_unit="epochs", optimizer_state="keep")
    assert_same(callback, module.network, expected)


def test_follows_once_where_several_optimizers_step(tmp_path: Path) -> None:
    module, callback = TwoOptimizers(), HareTortoiseCallback(**SETTINGS)
    trainer(tmp_path, callback, epochs=2).fit(module, loader())
    assert callback.tortoise is not None and callback.tortoise.updates == 2 * BATCHES
    model = network()
    both = [torch.optim.Adam(model[:1].parameters(), lr=0.05), torch.optim.SGD(model[1:].parameters(), lr=0.1)]
    tortoise = Tortoise(model, **SETTINGS)
    for batch in 2 * batches():
        for optimizer in both:
            optimizer.zero_grad()
        loss_of(model, batch).backward()
        for optimizer in both:
            optimizer.step()
        tortoise.step(both)
    for name, value in model.state_dict().items():
        assert torch.equal(module.network.state_dict()[name], value), name
        assert torch.equal(callback.tortoise.weights[f"network.{name}"], tortoise.weights[name]), name


def test_evaluation_is_the_tortoises_and_leaves_no_trace(tmp_path: Path) -> None:
    module, callback = Module(), HareTortoiseCallback("network", momentum=0.8)
    one = trainer(tmp_path, callback, num_sanity_val_steps=0)
    one.fit(module, loader(), loader())
    _, expected = by_hand(reset_interval=None, optimizer_state="keep")
    hare = copy.deepcopy(module.network.state_dict())
    for evaluate in (one.validate, one.test, one.predict):
        evaluate(module, loader())
        assert torch.equal(module.seen[-1], expected.weights["0.weight"])
        assert not torch.equal(module.seen[-1], hare["0.weight"])
        assert all(torch.equal(value, hare[name]) for name, value in module.network.state_dict().items())
    # In training, after each epoch: another tortoise each time.
    assert len({tuple(weight.flatten().tolist()) for weight in module.seen}) == 3


def test_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    saved = lightning.callbacks.ModelCheckpoint(tmp_path, save_top_k=-1)
    first = trainer(tmp_path, HareTortoiseCallback("network", **SETTINGS), epochs=2)
    first.callbacks.append(saved)
    first.fit(Module(), loader())
    file = tmp_path / f"epoch=0-step={BATCHES}.ckpt"
    module, callback = Module(), HareTortoiseCallback("network", **SETTINGS)
    trainer(tmp_path, callback, epochs=3).fit(module, loader(), ckpt_path=file)
    assert_same(callback, module.network, by_hand())
    # Another process predicts with the tortoise of a checkpoint.
    module, callback = Module(), HareTortoiseCallback("network", **SETTINGS)
    trainer(tmp_path, callback).predict(module, loader(), ckpt_path=file)
    assert torch.equal(module.seen[-1], by_hand(1)[1].weights["0.weight"])


def test_the_hare_is_back_after_an_error_in_validation(tmp_path: Path) -> None:
    class Failing(Module):
        def validation_step(self, batch: Any, index: int) -> None:
            raise ValueError("made to fail")

    module, callback = Failing(), HareTortoiseCallback("network", momentum=0.8)
    with pytest.raises(ValueError, match="made to fail"):
        trainer(tmp_path, callback, epochs=1, num_sanity_val_steps=0).fit(module, loader(), loader())
    assert callback.tortoise is not None and not callback.tortoise.predicting
    hare, _ = by_hand(1, reset_interval=None, optimizer_state="keep")
    assert torch.equal(module.network[0].weight, hare[0].weight)


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"momentum = 1.5"):
        HareTortoiseCallback(momentum=1.5)
    with pytest.raises(SettingError, match="Did you mean 'momentum'"):
        HareTortoiseCallback(momentm=0.9)
    with pytest.raises(SettingError, match=r"momenta = .*leave it out"):
        HareTortoiseCallback(momenta=(0.9, 0.99))
    with pytest.raises(SettingError, match=r"part = 'backbone'.*accepted are network"):
        trainer(tmp_path, HareTortoiseCallback("backbone")).fit(Module(), loader())
    one = trainer(tmp_path, HareTortoiseCallback("network"))
    one.strategy.__class__ = type("FSDPStrategy", (lightning.strategies.ParallelStrategy,), {})
    with pytest.raises(SettingError, match=r"strategy = 'FSDPStrategy'.*accepted are a single device and DDP"):
        one.callbacks[0].on_fit_start(one, Module())
