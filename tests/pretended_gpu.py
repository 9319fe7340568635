"""A GPU that is not there: tensors on the CPU whose storages are coloured, and what is coloured says it is on cuda:0.

Known limits: streams run in the order written, oneDNN's LSTM cannot be captured, attention takes its slower path.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tag, Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


class Refused(RuntimeError): ...  # as a GPU would raise it


class Machine(TorchFunctionMode):
    """What lies on the GPU, its random state, and the host's waits for it. As a mode, answers for devices and moves."""

    def __init__(self) -> None:
        super().__init__()
        self.coloured: dict[int, StorageWeakRef] = {}  # by the storage's place, which the reference keeps from reuse
        self.waits: Counter[str] = Counter()
        self.graphs: list[Graph] = []
        self.capture: Graph | None = None
        self.random, self.stream, self.streams, self.within = torch.Generator(), Mock(), Mock(), False

    def has(self, tensor: Tensor) -> bool:
        return _storage(tensor)._cdata in self.coloured

    def put(self, tensor: Tensor) -> Tensor:
        self.coloured.setdefault(_storage(tensor)._cdata, StorageWeakRef(_storage(tensor)))
        return tensor

    def wait(self, why: str) -> None:
        if self.capture:
            raise Refused(f"{why}: operation not permitted when stream is capturing")
        self.waits[why] += 1

    def do(self, here: bool, drawn: bool, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation, with the GPU's random numbers if it draws there."""
        with torch.random.fork_rng(devices=[], enabled=drawn):
            if drawn:
                torch.set_rng_state(self.random.get_state())
            out = self.capture.record(here, drawn, func, args, kwargs) if self.capture else func(*args, **kwargs)
            if drawn and not self.capture:
                self.random.set_state(torch.get_rng_state())
            return out

    @contextmanager
    def on(self, stream: object, graph: "Graph | None" = None) -> Iterator[None]:
        """With a graph as torch.cuda.graph: the end of a refused capture raises too, and leaves its stream current."""
        before, self.stream, self.capture = self.stream, stream, graph
        try:
            yield
        except Refused as error:
            before = stream if graph else before
            raise RuntimeError("operation failed due to a previous error during capture") if graph else error  # noqa: B904
        finally:
            self.stream, self.capture = before, None
            with torch.no_grad(), _disable_current_modes():
                graph and graph.undo()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, first = dict(kwargs or {}), getattr(func, "__name__", ""), args[0] if args else None
        if name == "__get__" and func.__self__.__name__ == "device":
            return CUDA if self.has(args[0]) else CPU
        if name in ("to", "cpu", "cuda") and isinstance(first, Tensor):
            return self._move(*(args if name == "to" else (first, name)), **kwargs)
        made = torch.device(kwargs.pop("device", None) or CPU).type == "cuda"
        self.within = made or any(map(self.has, _tensors((args, kwargs))))
        if self.within and name in ("tolist", "tensor", "as_tensor"):
            self.wait(name)
        out = func(*args, **kwargs)
        return tree_map_only(Tensor, self.put, out) if made else out

    def _move(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        there = self.has(tensor) if device is None else device.type == "cuda"
        if moved := there != self.has(tensor):
            self.wait("copy to the GPU" if there else "copy to the host")
        with _disable_current_modes() if moved else nullcontext():
            out = Tensor.to(tensor, dtype=dtype, copy=copy or moved, memory_format=layout)
        return self.put(out) if there else out


class Dispatch(TorchDispatchMode):  # refuses what a GPU refuses, draws its random numbers, and lets a capture record
    machine: Machine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        machine, kwargs, name = self.machine, kwargs or {}, func._schema.name.partition("::")[2]
        tensors = _tensors((args, kwargs))
        elsewhere = [x for x in tensors if not machine.has(x)]
        here = len(elsewhere) < len(tensors) if tensors else machine.within
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
        out = machine.do(here, drawn, func, args, kwargs)
        return tree_map_only(Tensor, machine.put, out) if here else out


class Graph:
    """What torch.cuda.CUDAGraph does: operations that are recorded, and done again at the addresses that they had."""

    def __init__(self, machine: Machine) -> None:
        self.machine, self.replays = machine, 0
        self.calls: list[tuple[Any, ...]] = []
        self.own: dict[int, Tensor] = {}  # what lies in its pool, by the storage's place
        self.before: dict[int, tuple[Any, Any]] = {}  # storages from outside, and what they held
        machine.graphs.append(self)

    def record(self, here: bool, drawn: bool, func: Any, args: Any, kwargs: Any) -> Any:
        """Do an operation, since later ones need its shapes, and note it. One on the CPU gives a constant."""
        inputs = {_storage(x)._cdata: _storage(x) for x in _tensors((args, kwargs))}
        fresh = inputs.keys() - self.own.keys() - self.before.keys() if here else ()
        self.before |= {place: (inputs[place], inputs[place].clone()) for place in fresh}
        then = tree_map_only(Tensor, self._at, (args, kwargs))
        out = func(*args, **kwargs)
        new = [(i, x.detach()) for i, x in enumerate(_tensors(out)) if _storage(x)._cdata not in inputs]
        self.own |= {_storage(x)._cdata: x for _, x in new}
        self.calls += [(func, then, new, drawn)] if here else []
        return out

    def _at(self, tensor: Tensor) -> Tensor:
        """A tensor at the same address, which keeps no memory from outside the pool alive."""
        if (storage := _storage(tensor))._cdata in self.own:
            return tensor.detach()
        memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), CPU, storage.nbytes())
        return torch.empty(0, dtype=tensor.dtype).set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())

    def undo(self) -> None:
        for storage, held in self.before.values():
            storage.copy_(held)
        for tensor in [x for _, _, new, _ in self.calls for _, x in new if x.is_floating_point()]:
            tensor.fill_(torch.nan)
        self.outside, self.before = [StorageWeakRef(storage) for storage, _ in self.before.values()], {}

    def replay(self) -> None:
        self.replays += 1
        assert not any(ref.expired() for ref in self.outside), "a graph is replayed on memory that has been freed"
        with torch.no_grad(), _disable_current_modes():
            for func, (args, kwargs), new, drawn in self.calls:
                found = _tensors(self.machine.do(True, drawn, func, args, kwargs))
                for i, tensor in new:
                    tensor.copy_(found[i])


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # by vmap
    return _storage(torch._C._functorch.get_unwrapped(tensor)) if wrapped else tensor.untyped_storage()


@contextmanager
def gpu() -> Iterator[Machine]:
    """Within it, this process has one GPU."""
    machine, dispatch, autocast = Machine(), Dispatch(), torch.autocast
    dispatch.machine, random, event = machine, machine.random, Mock(synchronize=lambda: machine.wait("event"))
    fakes = {
        **{"is_available": lambda: True, "is_initialized": lambda: True, "device_count": lambda: 1},
        **{"get_device_name": lambda of: "a pretended GPU", "get_device_capability": lambda of: (8, 0)},
        **{"mem_get_info": lambda of: (8 << 30, 16 << 30), "synchronize": lambda of: machine.wait("synchronize")},
        **{"device": lambda of: nullcontext(), "Event": lambda: event, "current_stream": lambda of: machine.stream},
        **{"Stream": machine.streams, "stream": machine.on, "graph": lambda graph, stream: machine.on(stream, graph)},
        **{"CUDAGraph": lambda: Graph(machine), "manual_seed_all": random.manual_seed},
        **{"get_rng_state": lambda of: random.get_state(), "set_rng_state": lambda state, of: random.set_state(state)},
    }
    with pytest.MonkeyPatch.context() as patch, machine, dispatch:
        for name, fake in fakes.items():
            patch.setattr(torch.cuda, name, fake)
        patch.setattr(torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda optimizer: None)
        patch.setattr(torch, "autocast", lambda device, *args: autocast("cpu", *args))
        yield machine
