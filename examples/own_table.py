"""A network of your own on a Parquet table of your own, rows arriving in stages. Run: python examples/own_table.py"""

import tempfile
from pathlib import Path

import pandas as pd
from sklearn.datasets import load_wine
from torch import nn

from ht_ray import Study


def make_network(shape, num_classes):  # of a table: (features,)
    return nn.Sequential(nn.Linear(shape[0], 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, num_classes))


def write_table(path: Path) -> Path:
    """Write a table with a column of labels; yours takes its place."""
    wine = load_wine(as_frame=True)
    names = pd.Series(wine.target_names)[wine.target].to_numpy()
    wine.data.assign(kind=names).to_parquet(path)
    return path


if __name__ == "__main__":
    table = write_table(Path(tempfile.mkdtemp()) / "wine.parquet")
    study = Study(
        model="own_table:make_network",
        data=table,
        label="kind",
        stream="growing",
        tasks=3,
        task_epochs=5,
        methods=["plain", "hare_tortoise"],
        momentum=0.9,
        reset_interval=1,
        batch_size=16,
        seeds=2,
    )
    results = study.run()
    print(results.table()[["label", "average_accuracy_mean", "final_accuracy_mean"]])
