"""A GPU that is not there: tensors on the CPU whose storages are coloured, and what is coloured says it is on cuda:0.

Within `gpu()`, code that names a CUDA device computes the CPU's bits. What a GPU refuses raises Refused: tensors of two
devices in one operation, fused kernels of two dtypes or layouts, waiting in a capture, a replay on freed memory. Known
limits: streams run in the order written, oneDNN's LSTM cannot be captured, and attention takes its slower path.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tag, Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


class Refused(RuntimeError):
    """A GPU would have raised this, or computed something else."""


class Machine(TorchFunctionMode):
    """The pretended GPU: what lies on it, its random numbers, and how often the host waited for it, by the reason. As a
    mode it answers for devices, and moves tensors between them."""

    def __init__(self) -> None:
        super().__init__()
        self.coloured: dict[int, StorageWeakRef] = {}  # by the storage's place, which the reference keeps from reuse
        self.waits: Counter[str] = Counter()
        self.graphs: list[Graph] = []
        self.capture: Graph | None = None
        self.streams = 0
        self.within = self.unwatched = 0  # calls that work on the GPU; calls of this module's own
        self.stream = self.make_stream()
        self.seed(0)

    def has(self, tensor: Tensor) -> bool:
        return _place(tensor) in self.coloured

    def put(self, tensor: Tensor) -> Tensor:
        self.coloured.setdefault(_place(tensor), StorageWeakRef(_storage(tensor)))
        if len(self.coloured) > 4000:
            self.coloured = {place: ref for place, ref in self.coloured.items() if not ref.expired()}
        return tensor

    def wait(self, why: str) -> None:
        if self.capture:
            raise Refused(f"{why}: operation not permitted when stream is capturing")
        self.waits[why] += 1

    def seed(self, number: int) -> None:
        self.random_state = torch.Generator().manual_seed(number).get_state()

    def set_rng_state(self, state: Tensor, device: object) -> None:
        self.random_state = state.clone()

    @contextlib.contextmanager
    def drawing(self, drawn: bool = True, keep: bool = True) -> Iterator[None]:
        """Within it the GPU's random numbers are drawn, if any."""
        outside = torch.get_rng_state()
        if drawn:
            torch.set_rng_state(self.random_state)
        yield
        if drawn:
            self.random_state = torch.get_rng_state() if keep else self.random_state
            torch.set_rng_state(outside)

    @contextlib.contextmanager
    def own_business(self, grad: bool = False) -> Iterator[None]:
        self.unwatched += 1
        with torch.set_grad_enabled(grad):
            yield
        self.unwatched -= 1

    def make_stream(self, device: object = None) -> Any:
        self.streams += 1
        return SimpleNamespace(wait_stream=lambda other: None)

    @contextlib.contextmanager
    def on_stream(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextlib.contextmanager
    def capturing(self, graph: Graph, stream: Any) -> Iterator[None]:
        """As torch.cuda.graph: where the step is refused, its end raises too, and leaves the stream current."""
        before, self.stream, self.capture = self.stream, stream, graph
        try:
            yield
            self.stream = before
        except Refused:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self.capture = None
            graph.end()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        own = bool(args) and isinstance(args[0], Tensor)
        here = own and self.has(args[0])
        if name == "__get__" and (asked := func.__self__.__name__) in ("device", "is_cuda", "is_cpu"):
            return (CUDA if here else CPU) if asked == "device" else here == (asked == "is_cuda")
        if own and name in ("to", "cpu", "cuda"):
            return self._move(*(args if name == "to" else (args[0], name)), **kwargs)
        if here and name == "numpy":
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        made = torch.device(kwargs.get("device") or CPU).type == "cuda"
        if made:
            del kwargs["device"]
        if (here and name == "tolist") or (made and name in ("tensor", "as_tensor")):
            self.wait(name)
        within = made or any(map(self.has, _tensors((args, kwargs))))
        self.within += within
        try:
            out = func(*args, **kwargs)
        finally:
            self.within -= within
        return tree_map_only(Tensor, self.put, out) if made else out

    def _move(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (CUDA if self.has(args[0]) else CPU, args[0].dtype)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        here = self.has(tensor)
        options = {"dtype": dtype or tensor.dtype, "memory_format": layout or torch.preserve_format}
        there = here if device is None else device.type == "cuda"
        if there == here:
            return Tensor.to(tensor, copy=copy, **options)
        self.wait("copy to the GPU" if there else "copy to the host")
        with self.own_business(torch.is_grad_enabled()):
            moved = Tensor.to(tensor, copy=True, **options)
        return self.put(moved) if there else moved


class Dispatch(TorchDispatchMode):
    """Refuses what a GPU refuses, draws its random numbers, and lets a capture record."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        machine, kwargs, name = self.machine, kwargs or {}, func._schema.name.partition("::")[2]
        if machine.unwatched:
            return func(*args, **kwargs)
        tensors = _tensors((args, kwargs))
        elsewhere = [x for x in tensors if not machine.has(x)]
        here = len(elsewhere) < len(tensors) if tensors else machine.within > 0
        if here and elsewhere:
            if name in ("copy_", "_to_copy"):
                machine.wait("copy to the GPU" if machine.has(args[0]) else "copy to the host")
                return func(*args, **kwargs)
            if name.startswith("_fused") or any(x.ndim and x.numel() for x in elsewhere):
                raise Refused(f"{name}: expected all tensors to be on the same device")
        counts = Tag.dynamic_output_shape in func.tags or Tag.data_dependent_output in func.tags
        if here and counts and (name != "index" or any(x is not None and x.dtype == torch.bool for x in args[1])):
            machine.wait(name)
        if here and name.startswith("_fused"):
            lists = [x for x in args if isinstance(x, list) and x and x[0].ndim]
            kinds = [{x.dtype for x in _tensors(lists)}, *({x.stride() for x in xs} for xs in zip(*lists, strict=True))]
            if any(len(kind) > 1 for kind in kinds):
                raise Refused("params, grads and moments must have the same dtype, device, and layout")
        drawn = here and Tag.nondeterministic_seeded in func.tags and kwargs.get("generator") is None
        if machine.capture:
            return machine.capture.record(func, args, kwargs, here, drawn)
        with machine.drawing(drawn):
            out = func(*args, **kwargs)
        return tree_map_only(Tensor, machine.put, out) if here else out


class Graph:
    """What torch.cuda.CUDAGraph does: operations that are recorded, and done again at the addresses that they had."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.replays = machine, 0
        self.calls: list[tuple[Any, ...]] = []
        self.own: dict[int, Tensor] = {}  # what lies in its pool, by the storage's place
        self.outside: dict[int, StorageWeakRef] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # what it writes to outside, as it was
        machine.graphs.append(self)

    def record(self, func: Any, args: Any, kwargs: Any, here: bool, drawn: bool) -> Any:
        """Do an operation, since later ones need its shapes, and note it. One on the CPU gives a constant."""
        inputs, formal = _tensors((args, kwargs)), func._schema.arguments
        given = [args[i] if i < len(args) else kwargs.get(a.name) for i, a in enumerate(formal)]
        written = _tensors([x for x, a in zip(given, formal, strict=True) if a.alias_info and a.alias_info.is_write])
        if func._schema.name == "aten::native_batch_norm":
            written = _tensors(args[3:5])  # running statistics, of which the schema says nothing
        with self.machine.own_business():
            for x in [x for x in inputs if here and _place(x) not in self.own]:
                self.outside.setdefault(_place(x), StorageWeakRef(_storage(x)))
                if any(x is other for other in written):
                    self.before.setdefault(_place(x), (x.detach(), x.detach().clone()))
            args_then = tree_map_only(Tensor, self._at, (args, kwargs))
        with self.machine.drawing(drawn, keep=False):
            out = func(*args, **kwargs)
        found, places = [x.detach() for x in _tensors(out)], set(map(_place, inputs))
        new = [(i, x) for i, x in enumerate(found) if _place(x) not in places]
        self.own |= {_place(x): x for _, x in new}
        if here and (new or written):  # no view
            self.calls.append((func, args_then, new, drawn))
        return tree_map_only(Tensor, self.machine.put, out) if here else out

    def _at(self, tensor: Tensor) -> Tensor:
        """A tensor at the same address, which keeps no memory from outside the pool alive."""
        storage, size = _storage(tensor), tensor.element_size()
        count = storage.nbytes() // size
        if _place(tensor) in self.own or not count:
            return tensor.detach()
        memory = (ctypes.c_uint8 * (count * size)).from_address(storage.data_ptr())
        flat = torch.frombuffer(memory, dtype=tensor.dtype)
        return flat.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def end(self) -> None:
        """A capture computes nothing: what it wrote is undone."""
        with self.machine.own_business():
            for tensor, value in self.before.values():
                tensor.copy_(value)
            for tensor in [x for _, _, new, _ in self.calls for _, x in new if x.is_floating_point()]:
                tensor.fill_(torch.nan)

    def replay(self) -> None:
        self.replays += 1
        if any(ref.expired() for ref in self.outside.values()):
            raise Refused("a graph is replayed on memory that has been freed")
        with self.machine.own_business():
            for func, (args, kwargs), new, drawn in self.calls:
                with self.machine.drawing(drawn):
                    found = _tensors(func(*args, **kwargs))
                for i, tensor in new:
                    tensor.copy_(found[i])


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


def _place(tensor: Tensor) -> int:
    return _storage(tensor)._cdata


@contextlib.contextmanager
def gpu() -> Iterator[Machine]:
    """Within it, this process has one GPU."""
    machine, autocast, nothing = Machine(), torch.autocast, contextlib.nullcontext()
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: machine.wait("event"))
    fakes = {
        **{"is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1},
        **{"get_device_name": lambda of: "a pretended GPU", "get_device_capability": lambda of: (8, 0)},
        **{"mem_get_info": lambda of: (8 << 30, 16 << 30), "synchronize": lambda of: machine.wait("synchronize")},
        **{"current_stream": lambda device: machine.stream, "device": lambda device: nothing, "Event": lambda: event},
        **{"Stream": machine.make_stream, "stream": machine.on_stream, "graph": machine.capturing},
        **{"CUDAGraph": functools.partial(Graph, machine), "manual_seed_all": machine.seed},
        **{"get_rng_state": lambda device: machine.random_state.clone(), "set_rng_state": machine.set_rng_state},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda optimizer: None)
        patch.setattr(torch, "autocast", lambda device, *args: autocast("cpu", *args))
        with machine, Dispatch(machine):
            yield machine
