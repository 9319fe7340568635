"""The baseline: training with masks as most public scripts write it.

A torchvision data set of PIL images, ToTensor and Normalize for each image, a DataLoader without workers, model(x),
loss.backward(), the gradients of pruned weights set to 0 by a round trip through NumPy, loss.item() at each step.
Pruned weights stay at 0 by that alone, so nothing is done to the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from engine import LR, MOMENTUM, Problem, add_problem_flags
from PIL import Image
from timing import Spread, about, elapsed, head, in_turns, parser, show, steps_for, synchronise, write_json
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lth.models.building import load_state

TEST_BATCH = 1000  # as in PyTorch's own MNIST example


class PilImages(Dataset):
    """As torchvision.datasets.MNIST and CIFAR10 are: arrays of bytes, each image a PIL image and then a tensor."""

    def __init__(self, data: Tensor, targets: Tensor, transform: Callable[[Image.Image], Tensor]) -> None:
        self.data = data.permute(0, 2, 3, 1).squeeze(-1).contiguous().numpy()  # height x width (x channels)
        self.targets, self.transform = targets.tolist(), transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.data[index])
        return self.transform(image), self.targets[index]


class Textbook:
    """The training of a problem, half pruned, by the textbook. Precision is PyTorch's default."""

    def __init__(
        self,
        problem: Problem,
        batch_size: int = 60,
        optimizer: str = "adam",
        device: str = "cpu",
        threads: int = 1,
    ) -> None:
        self.device, self.threads = torch.device(device), threads
        images, state = problem.images, problem.state(0)
        channels = images.shape[0]
        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((0.1307,) * channels, (0.3081,) * channels)]
        )
        train, test = (
            PilImages(x, y, transform)
            for x, y in ((images.train, images.train_labels), (images.test, images.test_labels))
        )
        self.train_loader = DataLoader(train, batch_size, shuffle=True, drop_last=True)
        self.test_loader = DataLoader(test, TEST_BATCH)
        self.model = load_state(problem.make(), state)
        self.mask = {name: mask.numpy() for name, mask in problem.masks(state).items()}
        for name, parameter in self.model.named_parameters():
            if name in self.mask:
                parameter.data = torch.from_numpy(np.where(self.mask[name], parameter.data.numpy(), 0))
        self.model.to(self.device)
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(self.model.parameters(), lr=LR)
            if optimizer == "adam"
            else torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM)
        )
        self._batches = self._epochs()

    def _epochs(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.train_loader

    def run(self, steps: int) -> float:
        """Train; gives the last loss."""
        torch.set_num_threads(self.threads)
        self.model.train()
        loss = 0.0
        for _ in range(steps):
            images, targets = next(self._batches)
            images, targets = images.to(self.device), targets.to(self.device)
            self.optimizer.zero_grad()
            output = self.model(images)
            train_loss = self.criterion(output, targets)
            train_loss.backward()
            for name, parameter in self.model.named_parameters():
                if name in self.mask and parameter.grad is not None:
                    gradient = parameter.grad.data.cpu().numpy()
                    gradient = np.where(self.mask[name], gradient, 0)
                    parameter.grad.data = torch.from_numpy(gradient).to(self.device)
            self.optimizer.step()
            loss = train_loss.item()
        synchronise(self.device)
        return loss

    def evaluate(self) -> float:
        """The accuracy on the test images, in percent."""
        torch.set_num_threads(self.threads)
        self.model.eval()
        test_loss, correct = 0.0, 0
        with torch.no_grad():
            for images, targets in self.test_loader:
                images, targets = images.to(self.device), targets.to(self.device)
                output = self.model(images)
                test_loss += nn.functional.cross_entropy(output, targets, reduction="sum").item()
                prediction = output.data.max(1, keepdim=True)[1]
                correct += prediction.eq(targets.data.view_as(prediction)).sum().item()
        return 100 * correct / len(self.test_loader.dataset)  # type: ignore[arg-type]


def main(argv: Sequence[str] | None = None) -> None:
    """Time the baseline alone."""
    made = parser(__doc__, seconds=2.0, repeats=5)
    add_problem_flags(made, ["fc1/mnist"])
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    args = made.parse_args(argv)
    torch.set_num_threads(args.threads)
    facts = about()
    head(facts)
    results = []
    for name in args.models:
        problem = Problem.of(name, args.data)
        textbook = Textbook(problem, args.batch_size, args.optimizer, args.device, args.threads)
        steps = steps_for(args.seconds, textbook.run)
        seconds = in_turns({"textbook": partial(textbook.run, steps)}, args.repeats)["textbook"]
        step = Spread.of(seconds, 1e6 / steps)
        evaluation = elapsed(textbook.evaluate)
        rows = [
            ["", "median", "min-max"],
            ["µs a step", *step.cells()],
            ["images/s", f"{args.batch_size * 1e6 / step.median:,.0f}", ""],
            [f"evaluation of {len(problem.images.test):,} images, ms", f"{1000 * evaluation:,.0f}", ""],
        ]
        setting = f"batch {args.batch_size}, {args.optimizer}, {args.threads} thread(s)"
        show(f"textbook, {name}, {args.device}, {setting}{problem.remark}", rows)
        results.append({"model": name, "steps": steps, "seconds": seconds, "evaluation_seconds": evaluation})
    write_json(args.json, facts, results)


if __name__ == "__main__":
    main()
