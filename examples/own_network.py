"""A network of your own in a study: Hare & Tortoise against plain training. Run: python examples/own_network.py"""

from torch import nn

from ht_ray import Study


class MyNetwork(nn.Module):
    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(features, 32), nn.LayerNorm(32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)  # the name tells methods such as Head Reset what the head is

    def forward(self, x):
        return self.head(self.backbone(x.flatten(1)))


def make_network(shape, num_classes):  # of the data: (1, 8, 8) and 10
    return MyNetwork(shape[0] * shape[1] * shape[2], num_classes)


if __name__ == "__main__":
    study = Study(
        # By its name: workers import this file.
        model="own_network:make_network",
        data="digits",
        methods=["plain", "hare_tortoise"],
        momentum=0.9,
        reset_interval=1,
        phases=3,
        epochs=2,
        access="full",
        seeds=2,
    )
    results = study.run()
    print(results.table()[["label", "average_accuracy_mean", "average_accuracy_sd"]])
