#!/usr/bin/env bash
# Package: lightning 2.6.6 (EMAWeightAveraging), with torch 2.13.0
# Expected: EMAWeightAveraging(update_starting_at_epoch=3) leaves the average alone until epoch 3, as
# update_starting_at_step=... does until that step.
# Observed: It delays nothing. update_every_n_steps is 1 by default, and its updates do not look at the epoch: the
# average is updated after each step from the first one. From epoch 3 on there is one more update at the end of each
# epoch. update_every_n_steps=0 is needed for the delay; then there is no update per step in later epochs, either.
# An average that is updated each step from an epoch on needs that epoch's first step as a number.
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
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, index):
        return (self.layer(batch[0]) - 1).square().mean()


class Count(Callback):
    """Number of updates of the average so far, at the end of each epoch."""

    def __init__(self, average):
        self.average, self.counts = average, []

    def on_train_epoch_end(self, trainer, module):
        self.counts.append(int(self.average._average_model.n_averaged))


def counts(**settings):
    average = EMAWeightAveraging(decay=0.5, **settings)
    count = Count(average)
    trainer = lightning.Trainer(
        max_epochs=5,
        accelerator="cpu",
        callbacks=[average, count],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1))))
    return count.counts


found = {}
for settings in (
    dict(),
    dict(update_starting_at_step=12),
    dict(update_starting_at_epoch=3),
    dict(update_starting_at_epoch=3, update_every_n_steps=0),
):
    text = ", ".join(f"{name}={value}" for name, value in settings.items()) or "no start given"
    found[text] = counts(**settings)
    print(f"five epochs of four steps, {text}: updates of the average by the end of each epoch: {found[text]}")
plain, by_step, by_epoch, without_steps = found.values()
if plain != [4, 8, 12, 16, 20] or by_step != [0, 0, 0, 4, 8]:
    sys.exit("not as described: other counts without update_starting_at_epoch")
if by_epoch != [4, 8, 12, 17, 22] or without_steps != [0, 0, 0, 1, 2]:
    sys.exit("changed: the starting epoch delays the updates")
EOF
