#!/usr/bin/env bash
# Package: lightning 2.6.6 (EMAWeightAveraging), with torch 2.13.0
# Expected: update_every_n_steps=2 updates the average after each second batch, and fit ends with the average of the
# weights that were trained.
# Observed: The callback looks once per batch at the trainer's global step less one, which counts the steps of all
# optimizers. With two of them (a GAN, or an actor and a critic) it is odd at each batch and never divisible by two: the
# average is never updated, and fit ends with the weights of before the training. Nothing is said. The weights that were
# trained are gone, and each validation has looked at the first ones.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet lightning==2.6.6 torch==2.13.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import logging
import sys

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

logging.disable()


class Module(lightning.LightningModule):
    def __init__(self, optimizers):
        super().__init__()
        self.automatic_optimization = False
        self.number = optimizers
        self.actor, self.critic = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.actor, self.critic)][: self.number]

    def training_step(self, batch, index):
        optimizers = self.optimizers()
        for optimizer, part in zip(optimizers if self.number > 1 else [optimizers], (self.actor, self.critic)):
            optimizer.zero_grad()
            self.manual_backward((part(batch[0]) - 1).square().mean())
            optimizer.step()


class Last(Callback):
    def on_train_batch_end(self, trainer, module, *rest):
        self.weight = module.actor.weight.item()


def fit(optimizers, every):
    torch.manual_seed(0)
    module, last = Module(optimizers), Last()
    first = module.actor.weight.item()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[EMAWeightAveraging(decay=0.5, update_every_n_steps=every), last],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(20, 1))))
    return first, last.weight, module.actor.weight.item()


for optimizers in (1, 2):
    for every in (1, 2):
        first, trained, given_back = fit(optimizers, every)
        print(
            f"{optimizers} optimizer(s), update_every_n_steps={every}: "
            f"weight {first:.4f} before, {trained:.4f} trained, {given_back:.4f} after fit"
        )
        if abs(trained - first) < 0.1:
            sys.exit("not as described: it did not learn")
        if (optimizers, every) == (2, 2):
            if given_back != first:
                sys.exit("changed: with two optimizers the average is updated")
        elif abs(given_back - trained) > 0.1:
            sys.exit("not as described: the average is not updated in another case, too")
EOF
