"""A device that is not the CPU, on any machine: tensors that say they live on it, and compute on the CPU.

A CUDA device refuses an operation on tensors of two devices, and so does this one, for every operation that torch
carries out below autograd, backward passes included.  It also notes each time its values are waited for: `.item()`,
`.cpu()`, `bool(tensor)`, boolean indexing.  Values are real, so that code whose course depends on them runs to its end,
and what it finds can be compared with the CPU's.

torch's own `FakeTensorMode` finds mixed devices as well, but has no values, takes no MetaTensor, and on a torch without
CUDA ends the process at the first convolution that has gradients.  The device is called "lazy:0": torch has no kernels
for that name, and its autograd asks nothing of it.  What is only ever done on a device called "cuda" (autocast, pinned
memory, streams, memory statistics) stays with the tests marked `gpu`.
"""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["OTHER", "MixedDevicesError", "Wait", "other_device", "values"]

OTHER = torch.device("lazy", 0)
CPU = torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten.copy}
INDEXING = {
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten._index_put_impl_,
}  # indices may come from the CPU
TAKES_NUMBERS = {
    aten.fill_,
    aten.masked_fill,
    aten.masked_fill_,
    *INDEXING,
}  # tensors without axes, from the CPU
READS = {
    aten._local_scalar_dense: "item",
    aten.equal: "equal",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.bincount: "bincount",
    aten.repeat_interleave: "repeat_interleave",
}  # whose result, or its size, CUDA must send to the CPU before it goes on


class MixedDevicesError(RuntimeError):
    """An operation on tensors of two devices."""


class Wait:
    """The CPU waited for values of the device: by which operation, and from which lines of the package."""

    def __init__(self, operation: str) -> None:
        self.operation = operation
        frames = [f for f in traceback.extract_stack() if "/dmri_monai/" in f.filename]
        self.places = [f"{f.filename.split('/dmri_monai/')[-1]}:{f.name}" for f in frames]

    def __repr__(self) -> str:
        return f"{self.operation} in {self.places[-1] if self.places else 'none of our lines'}"


class There(Tensor):
    """A tensor of the other device; `here` holds its values."""

    __slots__ = ("here",)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        made = Tensor._make_wrapper_subclass(cls, here.size(), device=OTHER, **layout)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carry_out(function, args, kwargs or {}, [])

    def as_subclass(self, cls: type) -> Tensor:
        if issubclass(cls, MetaTensor):
            return self if isinstance(self, MetaThere) else _again(self, MetaThere)
        return _again(self, There) if isinstance(self, MetaThere) else self

    def tolist(self) -> Any:
        return self.cpu().as_subclass(Tensor).tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {OTHER} device type tensor to numpy; use Tensor.cpu()")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.detach().__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"{type(self).__name__}({self.here!r})"


class MetaThere(MetaTensor, There):
    """A MetaTensor of the other device."""

    __slots__ = ()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = tuple(MetaTensor if issubclass(t, MetaTensor) else t for t in types)
        return MetaTensor.__torch_function__.__func__(MetaTensor, func, own, args, kwargs)


class _Generator(torch.Generator):
    """Draws the CPU's numbers for tensors of either device.

    What reaches an operation is another Python object of the same generator; its address tells whose it is.
    """

    of_other: weakref.WeakSet[_Generator] = weakref.WeakSet()

    def __new__(cls, device: Any = CPU) -> _Generator:
        made = super().__new__(cls, device="cpu")
        if torch.device(device).type == OTHER.type:
            cls.of_other.add(made)
        return made

    def __init__(self, device: Any = CPU) -> None:
        pass

    @property
    def device(self) -> torch.device:
        return _device_of(self)


def _device_of(generator: torch.Generator) -> torch.device:
    return OTHER if any(one._cdata == generator._cdata for one in _Generator.of_other) else CPU


class _Autocast(torch.autocast):
    """Switches autocast off on the other device, where torch has none to switch."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(CPU.type if device_type == OTHER.type else device_type, *args, **kwargs)


def _reading(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`make`, which reads tensors in a list where no mode sees it, with numbers in their place."""

    def made(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        if isinstance(data, list | tuple):
            data = tree_map(lambda one: one.item() if isinstance(one, There) and one.ndim == 0 else one, data)
        return make(data, *args, **kwargs)

    return made


_wrapper: list[type] = [There]


def _again(tensor: Tensor, cls: type) -> Tensor:
    """A view of all of `tensor` as another class; gradients pass."""
    _wrapper.append(cls)
    try:
        with torch._C.DisableTorchFunctionSubclass():
            return aten.alias.default(tensor)
    finally:
        _wrapper.pop()


class _Mode(TorchDispatchMode):
    def __init__(self, waits: list[Wait]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carry_out(function, args, kwargs or {}, self.waits)


@contextmanager
def other_device() -> Iterator[list[Wait]]:
    """Context in which `OTHER` can be used; gives the list to which it adds what the CPU waited for."""
    waits: list[Wait] = []
    torch._C._set_only_lift_cpu_tensors(True)  # else `torch.tensor` moves its values where no mode sees it
    try:
        with (
            _Mode(waits),
            mock.patch("torch.Generator", _Generator),
            mock.patch("torch.autocast", _Autocast),
            mock.patch("torch.tensor", _reading(torch.tensor)),
            mock.patch("torch.as_tensor", _reading(torch.as_tensor)),
            mock.patch(
                "torch.lazy", torch.cpu, create=True
            ),  # the module of the device, for checkpointed layers
        ):
            yield waits
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def values(tensor: Tensor) -> Tensor:
    """What a tensor of either device holds, on the CPU, without meta data and without being noted."""
    return tensor.here if isinstance(tensor, There) else tensor.detach().as_subclass(Tensor)


def _carry_out(function: Any, args: Any, kwargs: dict[str, Any], waits: list[Wait]) -> Any:
    packet = function.overloadpacket
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = [t for t in tensors if isinstance(t, There)]
    place = _place(packet, args, kwargs, there)
    _refuse_mixed(function, packet, args, tensors, there)
    _refuse_generator(function, kwargs, place)
    if there and (operation := _wait(packet, args, there, place)):
        waits.append(Wait(operation))
    found = function(*tree_map(_here, args), **tree_map(_here, kwargs))
    if torch.Tag.inplace_view in function.tags and there:
        _reshape_in_place(function, args, kwargs)
    known = {id(t.here): t for t in there}
    return tree_map(lambda leaf: _wrapped(leaf, known, place), found)


def _reshape_in_place(function: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Let torch's kernel without values give the wrapper the sizes that its values have by now."""
    before = torch._C._meta_in_tls_dispatch_include()
    torch._C._set_meta_in_tls_dispatch_include(True)
    try:
        with no_dispatch():
            function(*args, **kwargs)
    finally:
        torch._C._set_meta_in_tls_dispatch_include(before)


def _here(leaf: Any) -> Any:
    if isinstance(leaf, There):
        return leaf.here
    return CPU if isinstance(leaf, torch.device) else leaf


def _wrapped(leaf: Any, known: dict[int, There], place: torch.device) -> Any:
    if not isinstance(leaf, Tensor) or place != OTHER:
        return leaf
    return known[id(leaf)] if id(leaf) in known else There.__new__(_wrapper[-1], leaf)


def _place(packet: Any, args: Any, kwargs: dict[str, Any], there: list[There]) -> torch.device:
    """Where the result lies: the device that is asked for, else that of what is written to, else of the tensors."""
    if kwargs.get("device") is not None:
        asked = torch.device(kwargs["device"])
        return OTHER if asked.type == OTHER.type else asked
    if packet in COPIES - {aten._to_copy}:
        return OTHER if isinstance(args[0], There) else CPU
    return OTHER if there else CPU


def _refuse_mixed(function: Any, packet: Any, args: Any, tensors: list[Tensor], there: list[There]) -> None:
    here = [t for t in tensors if not isinstance(t, There)]
    if not there or not here or packet in COPIES:
        return
    if packet in INDEXING and isinstance(args[0], There):
        here = [t for t in here if all(t is not index for index in args[1])]
    numbers = torch.Tag.pointwise in function.tags or packet in TAKES_NUMBERS
    if numbers and all(t.ndim == 0 for t in here):
        return
    shapes = [f"{'other' if isinstance(t, There) else 'CPU'} {tuple(t.shape)}" for t in tensors]
    raise MixedDevicesError(f"{function} on tensors of two devices: {', '.join(shapes)}")


def _refuse_generator(function: Any, kwargs: dict[str, Any], place: torch.device) -> None:
    generator = kwargs.get("generator")
    if generator is not None and _device_of(generator) != place:
        raise MixedDevicesError(f"{function} on {place} with a generator of {_device_of(generator)}")


def _wait(packet: Any, args: Any, there: list[There], place: torch.device) -> str | None:
    """Name of the way in which the CPU waits in this operation, None where it does not."""
    if packet in COPIES:
        return "cpu" if place != OTHER else None
    if packet in INDEXING and any(_selects(index) for index in args[1]):
        return "boolean indexing" if packet is aten.index else None
    return READS.get(packet)


def _selects(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
