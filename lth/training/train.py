"""One training of T trials: steps, evaluations, early stop. Gives curves and weights; knows no rounds and no files."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lth import rng
from lth.data.images import Feed
from lth.models.building import State
from lth.pruning import Masks
from lth.training.cuda_graph import captured
from lth.training.hardware import Beat
from lth.training.network import Network
from lth.training.optimizers import Optimizer, gradients
from lth.training.schedule import Plan
from lth.training.updates import Goals, update

ChooseSparse = Callable[[Sequence[Masks]], Sequence[str]]  # masks of each trial -> names of weights
OPTIMIZER = "optimizer/"  # the prefix of the optimiser's tensors in Trained.extra


class Stopped(Exception):
    """The training was asked to stop; its checkpoint has been written."""


class TrialError(Exception):
    """One trial cannot continue; others can."""


@dataclass(frozen=True)
class Evaluation:
    """One line of evals.csv. Losses are means per image; `val` and `test` are accuracies in percent, `test` NaN if not
    evaluated."""

    iteration: int
    train_loss: float
    val_loss: float
    val: float
    test: float


@dataclass
class Trained:
    """The result of one trial, final or so far; also the content of a checkpoint.

    `final` holds the last weights, `best` the weights at the early-stop iteration, `rewind` and `drawn` the weights at
    Plan.rewind_at and Plan.draw_at. `extra` holds what only a continued training needs: the optimiser's state, the
    random state, the training loss since the last evaluation. `supermask` is the test accuracy, in percent, of the
    masked network before any training (Zhou et al. 2019, arXiv:1905.01067, Section 5); None until it is measured.
    `masks` are the masks of `best` if they differ from the ticket's. Only evaluations after iteration `settled` count
    for early stop.
    """

    iteration: int
    evals: list[Evaluation] = field(default_factory=list)
    final: State = field(default_factory=dict)
    best: State = field(default_factory=dict)
    rewind: State = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    failure: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    supermask: float | None = None
    drawn: State = field(default_factory=dict)
    masks: Masks = field(default_factory=dict)
    settled: int = 0

    @property
    def early_stop(self) -> Evaluation:
        """The evaluation with the lowest validation loss, the earliest if tied (Frankle & Carbin, Section 2)."""
        counting = (evaluation for evaluation in self.evals if evaluation.iteration > self.settled)
        return min(counting, key=lambda evaluation: evaluation.val_loss)

    def complete(self, steps: int) -> bool:
        """Whether a training of `steps` steps has finished, its last evaluation included."""
        return self.iteration == steps and bool(self.evals) and self.evals[-1].iteration == steps


class Training:
    """The training of T trials in one process, at some iteration."""

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        feed: Feed,
        plan: Plan,
        order_seeds: Sequence[Sequence[object]],
        random_seed: int,
        resume: Sequence[Trained] | None = None,
        goals: Sequence[Goals] = (),
        choose_sparse: ChooseSparse = lambda masks: (),
    ) -> None:
        """`resume` is the checkpoint of each trial, all at one iteration; `goals` are the trials' goals, if the plan's
        updates need them; `choose_sparse(masks)` names the weights to train sparsely after the masks have changed."""
        self.network, self.optimizer = network, optimizer
        self.feed, self.plan, self.order_seeds, self.goals = feed, plan, order_seeds, goals
        self.choose_sparse = choose_sparse
        self.trials = [Trained(plan.start, settled=plan.settled) for _ in range(network.trials)]
        self.iteration = plan.start
        self.loss_sum = torch.zeros(() if network.trials == 1 else network.trials, device=network.device)
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        rng.seed(random_seed)  # for dropout and all else that a model draws
        if resume:
            self._restore(resume)
        self._graph = self._capture() if network.device.type == "cuda" else None

    def _capture(self) -> Callable[[Tensor], None] | None:
        """A step as a CUDA graph; None if it cannot be captured."""
        if not (self.feed.capturable and self.optimizer.capturable):
            return None
        batch = self.feed.epoch(self.order_seeds, 0)[0].clone()
        live = [*self.network.tensors.values(), *self.network.leaves, *self.optimizer.tensors(), self.loss_sum]
        self.network.model.train()
        return captured(self.step, batch, live, self.network, self.feed.fetch(batch)[0])

    def run(
        self,
        report: Callable[[int, Evaluation], None] = lambda trial, evaluation: None,
        checkpoint: Callable[[list[Trained]], None] = lambda state: None,
        checkpoint_every: float = math.inf,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda iteration: None,
    ) -> list[Trained]:
        """Train to the end. Calls `report(trial, evaluation)` at each evaluation, `checkpoint` at evaluations at least
        `checkpoint_every` seconds apart, and `progress(iteration)` at the start and about every BEAT seconds. Once
        `stop()` is true, calls `checkpoint` and raises Stopped."""

        def stop_if_asked() -> None:
            if stop():
                raise Stopped

        try:
            saved, beat = time.monotonic(), Beat(self.network.device)
            progress(self.iteration)
            self.network.model.train()
            if self.iteration == self.plan.start and self.trials[0].supermask is None:
                with self._timed("evaluation"), self._evaluating():
                    for trained, test in zip(self.trials, self._test_accuracies(stop_if_asked), strict=True):
                        trained.supermask = test
            while True:
                if self._evaluation_due():
                    with self._timed("evaluation"):
                        self._evaluate(stop_if_asked, report)
                    if self.iteration < self.plan.steps and time.monotonic() - saved >= checkpoint_every:
                        checkpoint(self.state())
                        saved = time.monotonic()
                if self.iteration == self.plan.steps or all(trained.failure for trained in self.trials):
                    return self.state()
                with self._timed("training"):
                    for batch in self._batches(until=self.plan.next_evaluation(self.iteration)):
                        stop_if_asked()
                        if self.iteration == self.plan.rewind_at:
                            for number, trained in enumerate(self.trials):
                                trained.rewind = self.network.state(number)
                        if self.iteration == self.plan.draw_at:
                            for number, trained in enumerate(self.trials):
                                trained.drawn = self.network.state(number)
                        if self.plan.updates and self.plan.updates.due(self.iteration):
                            self._update_masks(batch)
                        self.optimizer.lr = self.plan.lr(self.iteration)
                        self._run_step(batch)
                        self.iteration += 1
                        if beat.due():
                            progress(self.iteration)
                    if self.network.device.type == "cuda":  # or steps still running would count as evaluation
                        torch.cuda.synchronize(self.network.device)
        except Stopped:
            checkpoint(self.state())
            raise

    def _run_step(self, batch: Tensor) -> None:
        (self._graph or self.step)(batch)  # stored, `self.step` would be a reference cycle

    def step(self, batch: Tensor) -> None:
        """One step of every trial: gather, forward, backward, masked optimiser. No synchronisation with the host."""
        images, labels = self.feed.fetch(batch)
        losses = self.network.losses(images, labels)
        total = losses if losses.ndim == 0 else losses.sum()  # the trials' losses have no weights in common
        self.optimizer.step(gradients(total, self.network.leaves))
        self.loss_sum.add_(losses.detach())

    def _update_masks(self, batch: Tensor) -> None:
        """Change the masks. RigL needs the gradients of all weights, on the batch of the next step."""
        updates, weight_gradients = self.plan.updates, dict[str, Tensor]()
        assert updates is not None
        self._train_sparsely(())
        if updates.kind == "rigl":
            with rng.preserved(self.network.device), self.network.preserve_buffers():
                loss = self.network.losses(*self.feed.fetch(batch)).sum()
                weight_gradients = dict(zip(self.network.learning, gradients(loss, self.network.leaves), strict=True))
        seeds = [rng.derive_seed(*parts, "update", self.iteration) for parts in self.order_seeds]
        masks = update(updates, self.iteration, self.network, self.optimizer, weight_gradients, self.goals, seeds)
        self._train_sparsely(self.choose_sparse(masks))

    def _train_sparsely(self, names: Sequence[str]) -> None:
        """Train only these weights with sparse products; all weights and moments keep their values."""
        if names or self.network.places:
            moments = [self.optimizer.state(0)]
            self.network.train_sparsely(names)
            self.optimizer.restore(moments)

    def _batches(self, until: int) -> Iterator[Tensor]:
        """The batches of the iterations before `until`; an epoch's order depends on the seeds and the epoch only."""
        while self.iteration < until:
            epoch, done = divmod(self.iteration, self.feed.epoch_steps)
            yield from self.feed.epoch(self.order_seeds, epoch)[done : done + until - self.iteration]

    def _last_evaluation(self) -> int:
        """The iteration of the last evaluation; trials that have failed are no longer evaluated."""
        return max((trained.evals[-1].iteration for trained in self.trials if trained.evals), default=self.plan.start)

    def _evaluation_due(self) -> bool:
        plan = self.plan
        return self.iteration > self._last_evaluation() and (
            self.iteration % plan.evaluate_every == 0 or self.iteration == plan.steps
        )

    def _evaluate(self, before_chunk: Callable[[], None], report: Callable[[int, Evaluation], None]) -> None:
        """Evaluate every trial, and keep the weights where the validation loss is the lowest so far. `before_chunk` is
        called before each chunk of images."""
        before, settled = self._last_evaluation(), self.plan.settled
        default = math.inf if self.iteration > settled else -math.inf  # until then, no loss is low enough
        lowest = [
            min((entry.val_loss for entry in trained.evals if entry.iteration > settled), default=default)
            for trained in self.trials
        ]
        with self._evaluating():
            loss, correct, images = self._measure(self.feed.validation(), False, before_chunk)
            train_loss = (self.loss_sum / (self.iteration - before)).expand(len(self.trials))
            sums = torch.stack([train_loss, loss, correct], dim=1).tolist()
            results = [(train, loss_sum / images, 100 * right / images) for train, loss_sum, right in sums]
            test = [math.nan] * len(self.trials)
            better = any(val_loss < least for (_, val_loss, _), least in zip(results, lowest, strict=True))
            if better or self.plan.tests(self.iteration, before):
                # So that no result depends on how often the test set is evaluated.
                with rng.preserved(self.network.device), self.network.preserve_buffers():
                    test = self._test_accuracies(before_chunk)
        self.loss_sum.zero_()
        for number, (trained, (train, val_loss, val)) in enumerate(zip(self.trials, results, strict=True)):
            if trained.failure:
                continue
            value = val_loss if math.isfinite(train) else train
            if not math.isfinite(value):
                at = f"by iteration {self.iteration} at learning rate {self.optimizer.lr:g}"
                trained.failure = f"the loss became {value} {at}"
                continue
            evaluation = Evaluation(self.iteration, train, val_loss, val, test[number])
            trained.evals.append(evaluation)
            if val_loss < lowest[number]:
                trained.best = self.network.state(number)
                trained.masks = self.network.masks_of(number) if self.network.changing else {}
            report(number, evaluation)

    def _test_accuracies(self, before_chunk: Callable[[], None]) -> list[float]:
        """The test accuracy of each trial in percent."""
        _, correct, images = self._measure(self.feed.test(), True, before_chunk)
        return [100 * count / images for count in correct.tolist()]

    def _measure(
        self, chunks: Iterator[tuple[Tensor, Tensor]], shared: bool, before_chunk: Callable[[], None]
    ) -> tuple[Tensor, Tensor, int]:
        """Each trial's summed loss and number of correct predictions, (T,), and the number of images per trial. If all
        trials share the images, the loss is not computed."""
        loss = torch.zeros(len(self.trials), device=self.network.device)
        correct, count = torch.zeros_like(loss), 0
        for images, labels in chunks:
            before_chunk()
            logits = self.network.logits(images, shared)
            if not shared:
                labels = labels.unflatten(0, (len(self.trials), -1))
                loss += self.network.losses_of(logits, labels) * logits.shape[1]
            correct += (logits.argmax(-1) == labels).sum(-1)
            count += logits.shape[1]
        return loss, correct, count

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode. On a stop, the random state is reset to where the training will continue, since models may
        draw in evaluation too."""
        before = rng.state(self.network.device)
        self.network.model.eval()
        try:
            with torch.no_grad(), self.network.preserve_buffers():
                yield
        except Stopped:
            rng.restore(before, self.network.device)
            raise
        finally:
            self.network.model.train()

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] += time.monotonic() - began

    def state(self) -> list[Trained]:
        """The state of each trial: its curves and weights so far, and all that its further training depends on."""
        return [self._state(number) for number in range(len(self.trials))]

    def _state(self, number: int) -> Trained:
        extra = {"loss_sum": self.network.part(self.loss_sum, number).cpu().clone(), **rng.state(self.network.device)}
        extra |= {OPTIMIZER + name: tensor for name, tensor in self.optimizer.state(number).items()}
        extra |= self.network.mask_state(number)
        trained, final = self.trials[number], self.network.state(number)
        evals, seconds = list(trained.evals), dict(self.seconds)
        return replace(trained, iteration=self.iteration, evals=evals, final=final, extra=extra, seconds=seconds)

    def _restore(self, saved: Sequence[Trained]) -> None:
        """Continue from what `state` returned."""
        self.trials = [replace(trained, evals=list(trained.evals)) for trained in saved]
        self.iteration, self.seconds = saved[0].iteration, dict(saved[0].seconds)
        extras = [trained.extra for trained in saved]
        if self.plan.updates:  # the network was built with the masks of the first iteration
            self._train_sparsely(())
        self.network.restore_mask_state(extras)
        if self.plan.updates:
            self._train_sparsely(self.choose_sparse([self.network.masks_of(number) for number in range(len(saved))]))
        for name, tensor in self.network.tensors.items():
            self.network.restore(tensor, [trained.final[name] for trained in saved], name)
        self.network.restore(self.loss_sum, [extra["loss_sum"] for extra in extras])
        self.optimizer.restore(
            [{k.removeprefix(OPTIMIZER): x for k, x in extra.items() if k.startswith(OPTIMIZER)} for extra in extras]
        )
        rng.restore(extras[0], self.network.device)
