"""Hare & Tortoise in Hugging Face's Trainer: a small BERT, drawn at random, reads the pixels of a digit as words.

Run: pip install 'ht-ray[transformers]'; python examples/transformers_digits.py
"""

import sys
import tempfile

from sklearn.datasets import load_digits
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from ht_ray.integrations.transformers import HareTortoiseCallback


def accuracy(predictions):
    return {"accuracy": (predictions.predictions.argmax(1) == predictions.label_ids).mean()}


def main(epochs: float) -> float:
    set_seed(0)
    images, labels = load_digits(return_X_y=True)
    samples = [{"input_ids": x.astype(int), "labels": int(y)} for x, y in zip(images, labels, strict=True)]
    config = BertConfig(
        vocab_size=17, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=10
    )
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        eval_strategy="epoch",
        use_cpu=True,
        report_to=[],
    )
    trainer = Trainer(
        BertForSequenceClassification(config),
        arguments,
        train_dataset=samples[:1400],
        eval_dataset=samples[1400:],
        compute_metrics=accuracy,
    )
    # Not by callbacks=[...]: it also makes evaluate and predict use the tortoise.
    HareTortoiseCallback(momentum=0.98, reset_interval=100, reset_unit="steps").attach(trainer)
    trainer.train()
    result = trainer.evaluate()
    print(f"accuracy of the tortoise: {result['eval_accuracy']:.3f}")
    return result["eval_accuracy"]


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5)
