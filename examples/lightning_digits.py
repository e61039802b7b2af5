"""Hare & Tortoise as a callback of Lightning (extra: ht-ray[lightning]). Run: python examples/lightning_digits.py"""

import sys

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from ht_ray.integrations.lightning import HareTortoiseCallback


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def training_step(self, batch, index):
        return cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch, index):  # with the tortoise's weights
        self.log("val_accuracy", (self.network(batch[0]).argmax(1) == batch[1]).float().mean())


def main(epochs: int) -> float:
    pl.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
    train, val = random_split(data, [0.8, 0.2])
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[HareTortoiseCallback(momentum=0.98, reset_interval=2)],  # in epochs
        enable_checkpointing=False,
        enable_progress_bar=False,
        logger=False,
    )
    model = Digits()
    trainer.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(val, len(val)))
    (result,) = trainer.validate(model, DataLoader(val, len(val)), verbose=False)
    print(f"validation accuracy of the tortoise: {result['val_accuracy']:.3f}")
    return result["val_accuracy"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
