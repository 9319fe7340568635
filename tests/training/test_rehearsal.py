"""The GPU path on a pretended GPU: the CPU's bits, a CUDA graph that is replayed, and few waits."""

import copy
import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import CPU, Conv, Mlp, Patch, Told, assert_same, constant, do, make_images, results, settings, training
from nets import Attention, NoCopy, Scaled, TwoTypes, Waits, dropping
from own import WithOptim, find, seeded
from pretended_gpu import CUDA, gpu
from torch import Tensor, nn

from lth import data
from lth.commands import loop, session
from lth.data.images import Feed
from lth.experiment import mode_connectivity
from lth.records.tables import read_config
from lth.settings.config import Config
from lth.training import cuda_graph, problem, train
from lth.training.hardware import Beat, channels_last
from lth.training.schedule import Plan
from lth.training.train import Stopped, Trained, Training, TrialError
from lth.training.updates import Updates

PLAN = Plan(40, 10, lambda iteration: 0.01 / (1 + iteration // 15), rewind_at=3)


def point_wise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(144, 4))


@pytest.fixture(autouse=True)
def one_attention() -> Iterator[None]:
    """Attention of the CPU takes another way in evaluation, and other last bits, where nobody watches."""
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def made(make: Callable[[], nn.Module], device: torch.device, updates: Any = None, **options: Any) -> Training:
    return training(make, replace(PLAN, updates=updates), device=device, **options)


def assert_equal(results: list[Trained], expected: list[Trained]) -> None:
    for result, reference in zip(results, expected, strict=True):
        assert result.evals == reference.evals
        for part in ("final", "best", "rewind"):
            mine, theirs = getattr(result, part), getattr(reference, part)
            assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in theirs), part


CASES: list[tuple[Callable[[], nn.Module], dict[str, Any]]] = [
    (Mlp, {}),
    (Mlp, {"kind": "adamw", "weight_decay": 0.1, "keep": 0.5}),
    (Mlp, {"autocast": True, "keep": 0.5}),
    (Mlp, {"seeds": (0, 1, 2), "keep": 0.5}),
    (Conv, {"kind": "sgd", "momentum": 0.9, "keep": 0.5, "feed": {"augment": True}}),
    (Conv, {"kind": "sgd", "momentum": 0.9, "keep": 0.5, "seeds": (0, 1, 2)}),
    (dropping, {"keep": 0.5}),
    (dropping, {"autocast": True, "seeds": (0, 1, 2), "feed": {"augment": True}}),
    (Attention, {"keep": 0.5}),
    (TwoTypes, {"keep": 0.5}),
    (TwoTypes, {"kind": "sgd", "keep": 0.5}),
    (point_wise, {"keep": 0.5}),  # whose gradients come in another layout
    (dropping, {"keep": 0.5, "updates": Updates("rigl", 7, 0, 30, 0.5)}),
]
each_case = pytest.mark.parametrize("make, options", CASES, ids=[f"{m.__name__}-{'-'.join(o)}" for m, o in CASES])


@each_case
def test_forty_steps_give_the_bits_of_the_cpu(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    """Also after a stop and a resume. The learning rate changes; each step is a replay of one graph."""
    expected = made(make, CPU, **options).run()
    saved: list[list[Trained]] = []
    with gpu() as machine:
        assert_equal(made(make, CUDA, **options).run(), expected)
        assert [graph.replays for graph in machine.graphs] == [40]
        stopped = made(make, CUDA, **options)
        with pytest.raises(Stopped):
            stopped.run(checkpoint=saved.append, stop=lambda: stopped.iteration == 25)
        torch.manual_seed(99)  # another process has another random state
        assert_equal(made(make, CUDA, resume=copy.deepcopy(saved[0]), **options).run(), expected)
        assert [graph.replays for graph in machine.graphs] == [40, 25, 15]


EXPERIMENTS: list[dict[str, Any]] = [
    {"rewind": "3it", "prune_type": ["lt", "reinit", "lr_rewind"]},
    {"prune_type": ["snip", "synflow"], "score_batches": 2, "arch_type": "conv", "prune_iterations": 2},
    {"connectivity": True, "prune_iterations": 2, "arch_type": "drop"},
    {"update_freq": "4it", "prune_iterations": 2, "prune_type": ["rigl", "gmp", "edge_popup", "supermask"]},
]


@pytest.mark.parametrize("changes", EXPERIMENTS, ids=lambda changes: "-".join(changes))
def test_experiments_write_the_files_of_the_cpu(place: Path, monkeypatch: Patch, changes: dict[str, Any]) -> None:
    monkeypatch.setattr(mode_connectivity, "POINTS", 4)
    configs = [settings(place, root=place / where, sparse="off", stack=1, **changes) for where in ("cpu", "gpu")]
    do(configs[0])
    with gpu() as machine:
        do(configs[1], device=CUDA)
        assert machine.graphs and all(graph.replays for graph in machine.graphs)
    assert_same(results(configs[1].root), results(configs[0].root))


def test_a_network_of_ones_own_comes_back_as_on_the_cpu() -> None:
    for make in (Mlp, WithOptim):
        nets = [seeded(make) for _ in range(2)]
        history = find(nets[0], sparse="off", rounds=1)
        with gpu() as machine:
            assert find(nets[1], device="cuda", sparse="off", rounds=1) == history
            assert not any(map(machine.has, nets[1].parameters()))
        for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
            assert torch.equal(one, other)


def test_a_step_that_cannot_be_captured_is_taken_plainly() -> None:
    """The warning names what the step was refused for, and the stream of the capture does not stay the current one."""
    expected = made(Waits, CPU).run()
    with gpu() as machine:
        main = machine.stream
        with pytest.warns(UserWarning, match="no CUDA graph of this model's step, which is slower: _local_scalar"):
            plain = made(Waits, CUDA)
        assert machine.stream is main
        assert_equal(plain.run(), expected)


@pytest.mark.filterwarnings("ignore:no CUDA graph")
@pytest.mark.parametrize("make", [Mlp, Waits])
def test_a_training_that_is_done_leaves_the_memory_at_once(make: type[nn.Module]) -> None:
    with gpu():
        gone = made(make, CUDA)
        model = weakref.ref(gone.network.model)
        gc.disable()
        try:
            del gone
            assert model() is None
        finally:
            gc.enable()


def test_a_kept_error_keeps_no_network() -> None:
    networks: list[weakref.ref[nn.Module]] = []

    def fail() -> None:
        net = Mlp().to(CUDA)
        networks.append(weakref.ref(net))
        raise RuntimeError("no")

    def run(runs: object, rounds: int) -> None:
        try:
            fail()
        except RuntimeError as error:
            raise TrialError("failed") from error

    with gpu():
        trainer = loop.Worker(CUDA, print, lambda: False)
        trainer.experiment = SimpleNamespace(run=run)  # type: ignore[assignment]
        with pytest.raises(TrialError) as caught:
            trainer.train(SimpleNamespace(work=None, runs=[], rounds=1))  # type: ignore[arg-type]
        assert str(caught.value.__cause__) == "no" and networks[0]() is None


def test_all_captures_on_a_device_share_a_stream() -> None:
    cuda_graph._side_stream.cache_clear()
    with gpu() as machine:
        for _ in range(2):
            made(Mlp, CUDA)
        assert machine.streams.call_count == 1 and len(machine.graphs) == 2


def test_waits_are_few() -> None:
    """Three per evaluation, and one for each trial whose best weights are kept; moments are those of a beat."""
    with gpu() as machine:
        run = made(Conv, CUDA, seeds=(0, 1, 2), keep=0.5)
        best: list[int] = []
        state = run.network.state
        run.network.state = lambda trial: (best.append(trial), state(trial))[1]  # type: ignore
        reported: list[int] = []
        machine.waits.clear()
        run.run(progress=reported.append)
        per_trial = len(best) + 2 * 3  # the last states have the optimiser's and the loss's beside the weights
        orders = machine.waits.pop("copy to the GPU")
        events = machine.waits.pop("event")
        assert orders == 4 and events == len(reported) - 1  # how many there are is a matter of time
        assert machine.waits.total() <= 3 * 4 + 1 + per_trial


def test_the_host_is_a_beat_ahead_of_the_device(monkeypatch: Patch) -> None:
    """Of a device that takes 8 ms per step, and of one that becomes slow."""
    now, asked, pace = [0.0], [0], [0.01]
    monkeypatch.setattr(train.time, "monotonic", lambda: now[0])

    def wait(why: str) -> None:
        now[0] += asked[0] * pace[0]
        asked[0] = 0

    with gpu() as machine:
        machine.wait = wait  # type: ignore[method-assign]
        beat = Beat(CUDA)
        beats = []
        for step in range(200):
            pace[0] = 2**-7 if step < 100 else 2**-3
            asked[0] += 1
            if beat.due():
                beats.append(step + 1)
        steps = [b - a for a, b in itertools.pairwise(beats)]
    assert steps[:6] == [2, 4, 8, 16, 25, 25] and steps[-5:] == [1] * 5


def test_a_stack_that_the_memory_is_too_small_for_becomes_smaller(place: Path, monkeypatch: Patch) -> None:
    step = Training.step

    def filled(self: Training, batch: Tensor) -> None:
        if self.network.trials > 1:
            raise torch.OutOfMemoryError
        step(self, batch)

    monkeypatch.setattr(Training, "step", filled)
    changes = {"trials": 3, "prune_iterations": 2, "sparse": "off"}
    configs = [settings(place, root=place / str(size), stack=size, **changes) for size in (1, 3)]
    do(configs[0])
    told = Told()
    with gpu():
        do(configs[1], told, device=CUDA)
    assert "the memory of cuda:0 is too small for 3 stacked trials: training at most 1 together" in told.notes
    assert_same(results(configs[1].root), results(configs[0].root))


def problem_of(config: Config) -> problem.Problem:
    return problem.Problem.of(config, data.load(config.dataset, config.data, config.pixels))


@pytest.mark.parametrize("stacked, pays", [(3.9, True), (4.1, False)])
def test_convolutions_are_stacked_where_it_pays(place: Path, monkeypatch: Patch, stacked: float, pays: bool) -> None:
    monkeypatch.setattr(problem, "step_seconds", lambda *given: stacked if given[-1] > 1 else 1.0)
    for arch_type, gains in (("conv", pays), ("mlp", True)):
        config = settings(place, arch_type=arch_type)
        work = problem_of(config)
        assert problem.stack_size(config, work, CUDA) > 100  # no GPU here to measure it, as on a cluster's head
        with gpu():
            sizes = [problem.stack_size(replace(config, stack=stack), work, CUDA) for stack in (None, 3)]
        assert sizes[0] > 100 if gains else sizes == [1, 3]


def test_a_run_goes_on_with_as_many_stacked_trials_as_it_began_with(place: Path, monkeypatch: Patch) -> None:
    """Unless --stack is given: it is not measured again, which may come out otherwise."""
    measured: list[int] = []

    def seconds(*given: Any) -> float:
        measured.append(given[-1])
        return float(given[-1]) if len(measured) < 3 else 1.0  # stacking pays in a second measurement only

    monkeypatch.setattr(problem, "step_seconds", seconds)
    sizes = []
    for rounds, stack in ((1, None), (2, None), (3, 2)):
        config = settings(place, arch_type="conv", gpu="0", prune_iterations=rounds, stack=stack)
        with gpu():
            (run,) = session.run(config)
        sizes.append(read_config(run)["stack"])
    assert sizes == [1, 1, 2] and measured == [1, 4]


@pytest.mark.parametrize("trials", [1, 4])
def test_steps_are_measured_as_they_are_taken(place: Path, trials: int) -> None:
    config = settings(place, arch_type="conv")
    with gpu() as machine:
        assert problem.step_seconds(config, problem_of(config), CUDA, trials) > 0
        assert [graph.replays for graph in machine.graphs] == [20] and machine.waits["synchronize"] == 2


@pytest.mark.parametrize(
    "capability, bf16, expected", [((8, 0), False, True), ((7, 5), False, False), ((7, 5), True, True)]
)
def test_channels_last_where_tensor_cores_compute(
    monkeypatch: Patch, capability: Any, bf16: bool, expected: bool
) -> None:
    with gpu():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda of: capability)
        assert channels_last(Conv, torch.zeros(2, 1, 8, 8, device=CUDA), bf16) is expected


def test_a_gpu_evaluates_many_images_at_once() -> None:
    images = make_images(count=100, tests=10_100)
    with gpu():
        chunks = [[len(x) for x, _ in Feed(images, range(trials), 40, 10, CUDA).test()] for trials in (1, 4)]
    assert chunks == [[10_000, 100], [2500] * 4 + [100]]


WAYS = ("random", "numpy", "torch", "own generator", "counts", "begins with the first batch")


def trained(make: Callable[[], nn.Module], device: torch.device) -> Trained:
    return training(make, Plan(steps=12, evaluate_every=5, lr=constant()), device=device).run()[0]


def same(one: Trained, other: Trained) -> bool:
    return one.evals == other.evals and all(torch.equal(one.final[name], x) for name, x in other.final.items())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("way", ["", "holds a computed weight"])
def test_a_step_is_captured_whatever_the_model_remembers_of_it(way: str) -> None:
    expected = trained(partial(Scaled, way), CPU)
    with gpu() as machine:
        assert same(trained(partial(Scaled, way), CUDA), expected)
        assert [graph.replays for graph in machine.graphs] == [12]


@pytest.mark.parametrize("make", [*(partial(Scaled, way) for way in WAYS), NoCopy])
def test_what_python_decides_in_every_step_is_not_frozen(make: Callable[[], nn.Module]) -> None:
    """Nor has what the model draws, counts or sets advanced when its training begins."""
    expected = trained(make, CPU)
    with gpu() as machine, pytest.warns(UserWarning, match="no CUDA graph of this model's step, .* it draws"):
        assert same(trained(make, CUDA), expected)
    assert not machine.graphs
