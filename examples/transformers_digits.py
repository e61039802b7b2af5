"""Hare & Tortoise in the Trainer of Hugging Face (ht-ray[transformers]). Run: python examples/transformers_digits.py"""

import sys
import tempfile

from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from ht_ray.integrations.transformers import HareTortoiseCallback


class Digits(nn.Module):  # or any network of transformers
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    def forward(self, pixels, labels):
        logits = self.layers(pixels)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def accuracy(predicted):
    return {"accuracy": (predicted.predictions.argmax(1) == predicted.label_ids).mean()}


def main(epochs: int) -> float:
    set_seed(0)
    images, labels = load_digits(return_X_y=True)
    samples = [{"pixels": x, "labels": int(y)} for x, y in zip(images.astype("f") / 16, labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        eval_strategy="epoch",
        save_strategy="no",
        use_cpu=True,
        report_to=[],
    )
    trainer = Trainer(
        Digits(), arguments, train_dataset=samples[:1400], eval_dataset=samples[1400:], compute_metrics=accuracy
    )
    # Not by callbacks=[...]: it also makes evaluate and predict use the tortoise.
    HareTortoiseCallback(momentum=0.98, reset_interval=100, reset_unit="steps").attach(trainer)
    trainer.train()
    result = trainer.evaluate()
    print(f"accuracy of the tortoise: {result['eval_accuracy']:.3f}")
    return result["eval_accuracy"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
