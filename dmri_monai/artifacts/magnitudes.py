"""What every artifact function checks: its image is a magnitude image, its parameters are in their ranges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor

__all__ = [
    "HALF",
    "as_stored",
    "check_axis",
    "check_finite",
    "check_fraction",
    "check_magnitude",
    "check_non_negative",
    "check_shape",
    "on_magnitude",
    "per_volume",
    "unseen",
    "without_looking",
]

P = ParamSpec("P")
_looking: ContextVar[bool] = ContextVar("_looking", default=True)
HALF = (torch.float16, torch.bfloat16)


def on_magnitude(
    function: Callable[Concatenate[Tensor, P], Tensor],
) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Decorate a function of a magnitude image: refuse NaN and negative voxels, compute half precision in
    float32.
    """

    @wraps(function)
    def checked(image: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        check_magnitude(image)
        if image.dtype in HALF:
            return as_stored(function(image.float(), *args, **kwargs), image.dtype)
        return function(image, *args, **kwargs)

    return checked


@contextmanager
def without_looking() -> Iterator[None]:
    """Within it, values on a device but the CPU are not looked at, for which the CPU would wait.

    For what looked at the scan before, and draws parameters in their ranges.
    """
    token = _looking.set(False)
    try:
        yield
    finally:
        _looking.reset(token)


def unseen(value: Tensor | float) -> bool:
    """Whether `value` is not to be looked at; see :func:`without_looking`."""
    return isinstance(value, Tensor) and value.device.type != "cpu" and not _looking.get()


def as_stored(image: Tensor, dtype: torch.dtype) -> Tensor:
    """`image` as `dtype`; what is beyond a half type becomes the largest number that it holds."""
    return image.clamp(max=torch.finfo(dtype).max).to(dtype) if dtype in HALF else image.to(dtype)


def check_magnitude(image: Tensor, name: str = "image") -> None:
    """Raise unless `image` (..., X, Y, Z) is floating point, finite and non-negative; the message counts and
    locates.
    """
    if not image.is_floating_point():
        raise TypeError(f"{name}: dtype {image.dtype}, expected a floating point type")
    if image.ndim < 3 or image.numel() == 0:
        raise ValueError(
            f"{name}: shape {tuple(image.shape)}, expected (..., X, Y, Z) with at least one voxel"
        )
    if unseen(image):
        return
    low, high = torch.aminmax(image.detach())  # one pass, and NaN comes through it
    if low >= 0 and high < math.inf:
        return
    bad = ~(image.detach() >= 0) | ~image.detach().isfinite()
    where = tuple(int(i) for i in torch.nonzero(bad)[0])
    raise ValueError(
        f"{name}: {int(bad.sum())} of {image.numel()} voxels are NaN, infinite or negative; "
        f"the first is {float(image.detach()[where])} at {where}"
    )


def check_axis(name: str, axis: int) -> int:
    """`axis` if it is one of the spatial axes 0, 1, 2 (x, y, z)."""
    if isinstance(axis, bool) or axis not in (0, 1, 2):
        raise ValueError(f"{name} is {axis!r}, expected a spatial axis 0, 1 or 2")
    return axis


def _bounds(value: Tensor | float) -> tuple[float, float]:
    if isinstance(value, Tensor):
        if value.numel() == 0 or unseen(value):
            return 0.0, 0.0
        low, high = torch.aminmax(value.detach())
        return float(low), float(high)
    return float(value), float(value)


def check_fraction(name: str, value: Tensor | float) -> None:
    """Raise unless every `value` lies in [0, 1]."""
    low, high = _bounds(value)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} is {high if low >= 0 else low:g}, expected a fraction between 0 and 1")


def check_non_negative(name: str, value: Tensor | float) -> None:
    """Raise unless every `value` is finite and at least 0."""
    low, high = _bounds(value)
    if not (low >= 0 and high < math.inf):
        raise ValueError(f"{name} is {high if low >= 0 else low:g}, expected a finite number, at least 0")


def check_finite(name: str, value: Tensor | float) -> None:
    """Raise unless every `value` is finite."""
    low, high = _bounds(value)
    if not (low > -math.inf and high < math.inf):
        raise ValueError(f"{name} is {low if not math.isfinite(low) else high:g}, expected a finite number")


def check_shape(name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    """Raise unless `value` has shape `expected`."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected)}")


def per_volume(name: str, value: Tensor | float, image: Tensor) -> Tensor:
    """`value` (one number, or one per volume of `image` (..., X, Y, Z)) as (..., 1, 1, 1) on the image's
    device.
    """
    tensor = torch.as_tensor(value, dtype=image.dtype, device=image.device)
    if tensor.ndim:
        check_shape(name, tensor, tuple(image.shape[:-3]))
    return tensor[..., None, None, None]
