"""A ticket in a text classifier: a bag of embeddings, or a small Transformer. Padding is token 0.

python docs/examples/text.py
python docs/examples/text.py transformer
"""

import sys

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, random_split

import lth

GOOD, BAD = ["good", "fine", "great", "lovely"], ["bad", "poor", "awful", "boring"]
OTHER = ["a", "the", "film", "was", "plot", "actor", "and", "very", "so", "story", "with", "it"]
WORDS = {word: number for number, word in enumerate(["<pad>", *GOOD, *BAD, *OTHER])}
LENGTH = 12


def reviews(count: int) -> TensorDataset:
    """Made-up reviews as tokens (N, LENGTH), and whether they are good. Yours: any tokenizer's input_ids."""
    draw = torch.Generator().manual_seed(0)
    tokens, labels = torch.zeros(count, LENGTH, dtype=torch.long), torch.arange(count) % 2
    for row, label in zip(tokens, labels, strict=True):
        size = int(torch.randint(6, LENGTH + 1, (1,), generator=draw))
        row[:size] = torch.randint(len(WORDS) - len(OTHER), len(WORDS), (size,), generator=draw)
        said = int(torch.randint(1, 5, (1,), generator=draw)) + (0 if label else 4)
        row[int(torch.randint(0, size, (1,), generator=draw))] = said
    return TensorDataset(tokens, labels)


class Bag(nn.Module):
    """The mean of the words' embeddings, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 32, padding_idx=0)
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, tokens: Tensor) -> Tensor:
        words = (tokens != 0).unsqueeze(2)
        return self.layers((self.embedding(tokens) * words).sum(1) / words.sum(1))


class Transformer(nn.Module):
    """Embeddings with positions, one encoder layer, the mean over words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), 32, padding_idx=0)
        self.positions = nn.Embedding(LENGTH, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.output = nn.Linear(32, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        words = tokens != 0
        x = self.embedding(tokens) + self.positions.weight
        return self.output(
            (self.encoder(x, src_key_padding_mask=~words) * words.unsqueeze(2)).sum(1) / words.sum(1, True)
        )


def main(kind: str = "bag", iterations: int = 200, rounds: int = 5, count: int = 1200) -> list[dict[str, float]]:
    torch.manual_seed(0)
    net = Transformer() if kind == "transformer" else Bag()
    parts = random_split(reviews(count), [0.6, 0.2, 0.2])
    data = dict(zip(("train", "validation", "test"), parts, strict=True))
    # Embeddings are left alone, as everywhere; prune_embeddings=True lets the rule see them.
    net, history = lth.iterative_pruning(net, data, iterations, rounds, lth.prune.magnitude(0.3), batch_size=30)
    return history


if __name__ == "__main__":
    for row in main(*sys.argv[1:]):
        print(f"{row['remaining']:5.1f}% of the weights, {row['test']:.1f}% test accuracy")
