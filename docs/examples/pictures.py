"""Tickets in a network of torchvision or timm for pictures in folders.

python docs/examples/pictures.py data/flowers resnet18      # torchvision's
python docs/examples/pictures.py data/flowers timm:resnet10t
"""

import sys
from pathlib import Path

from torch import nn
from torch.utils.data import random_split
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

import lth


def network(name: str, classes: int) -> nn.Module:
    """A model of torchvision, or of timm, with random weights; weights="DEFAULT" or pretrained=True begin elsewhere."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), pretrained=False, num_classes=classes)
    return models.get_model(name, weights=None, num_classes=classes)


def main(
    folder: str | Path, name: str = "resnet18", size: int = 64, iterations: int = 2000, rounds: int = 8
) -> list[dict[str, float]]:
    scaled = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()])
    pictures, test = (ImageFolder(str(Path(folder) / half), scaled) for half in ("train", "test"))
    train, validation = random_split(pictures, [0.9, 0.1])
    data = {"train": train, "validation": validation, "test": test}
    net = network(name, len(pictures.classes))
    net, history = lth.iterative_pruning(
        net, data, iterations, rounds, lth.prune.magnitude(0.2, "global"), batch_size=32
    )
    return history


if __name__ == "__main__":
    for row in main(*sys.argv[1:]):
        print(f"{row['remaining']:5.1f}% of the weights, {row['test']:.1f}% test accuracy")
