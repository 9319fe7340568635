"""A ticket in a small network for a table of numbers (here scikit-learn's wine, if it is installed, or made-up ones).

python docs/examples/table.py
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset, random_split

import lth


def table() -> TensorDataset:
    """178 rows of 13 standardised measurements, and their class. Yours: torch.tensor(frame.to_numpy())."""
    try:
        from sklearn.datasets import load_wine

        x, y = (torch.tensor(part) for part in load_wine(return_X_y=True))
    except ImportError:
        y = torch.arange(178) % 3
        x = torch.randn(178, 13, generator=torch.Generator().manual_seed(0)) + 2 * nn.functional.one_hot(y, 13)
    return TensorDataset(((x - x.mean(0)) / x.std(0)).float(), y.long())


def main(iterations: int = 300, rounds: int = 6, trials: int = 3) -> list[dict[str, float]]:
    torch.manual_seed(0)
    train, validation, test = random_split(table(), [98, 40, 40])
    data = {"train": train, "validation": validation, "test": test}
    net = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, 3))
    rule = lth.prune.magnitude(0.3)
    net, history = lth.iterative_pruning(net, data, iterations, rounds, rule, trials=trials, batch_size=20)
    return history


if __name__ == "__main__":
    for row in main():
        print(f"trial {row['trial']}: {row['remaining']:5.1f}% of the weights, {row['test']:.1f}% test accuracy")
