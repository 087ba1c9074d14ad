"""Parts of a network that a model's description names: kernels and their radial functions, as plain data.

A description is a file from outside.  It can name the classes listed here and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from dmri_monai.equivariant import (
    Bessel,
    Concat,
    Cosine,
    Gaussian,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QSpace,
    RadialMLP,
    Sum,
)
from dmri_monai.networks.pq_segmentation import PQOptions

__all__ = ["COMPONENTS", "as_data", "check_components", "made"]

KERNELS = (PSpace, QSpace, PQDiff, PQTensorProduct, Sum, Concat)
RADIAL = (Gaussian, Cosine, Bessel, RadialMLP)
COMPONENTS = {kind.__name__: kind for kind in (*KERNELS, *RADIAL, PQOptions)}
HOMES = ("dmri_monai.equivariant", "dmri_monai.networks")  # where descriptions of any version say they are


def as_data(value: Any) -> Any:
    """`value` with every component in it as {"_target_": its name, its arguments ...}; tuples become lists."""
    if isinstance(value, Mapping):
        if odd := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"a description cannot hold a mapping from {odd[0]!r}, only from names")
        return {key: as_data(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(entry) for entry in value]
    if type(value) not in COMPONENTS.values():
        return value
    if isinstance(value, Sum | Concat):
        arguments = {"kernels": value.terms if isinstance(value, Sum) else value.parts}
    elif is_dataclass(value):
        arguments = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    return {"_target_": type(value).__name__, **{name: as_data(entry) for name, entry in arguments.items()}}


def check_components(data: Any) -> None:
    """ValueError for a `_target_` in `data` that is no component, naming it and those there are."""
    if isinstance(data, Mapping):
        if "_target_" in data:
            _component(data["_target_"])
        for key, entry in data.items():
            if str(key).startswith("_") and key != "_target_":
                raise ValueError(f"{key!r} has no meaning in the description of a model")
            check_components(entry)
    elif isinstance(data, list | tuple):
        for entry in data:
            check_components(entry)


def made(data: Any) -> Any:
    """The inverse of :func:`as_data`: `data` with its components as objects.  ValueError for arguments they refuse."""
    if isinstance(data, list | tuple):
        return [made(entry) for entry in data]
    if not isinstance(data, Mapping):
        return data
    arguments = {key: made(entry) for key, entry in data.items() if key != "_target_"}
    if "_target_" not in data:
        return arguments
    kind = _component(data["_target_"])
    try:
        return kind(**arguments)
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from error


def _component(name: Any) -> type:
    home, _, last = str(name).rpartition(".")
    inside = not home or any(home == place or home.startswith(f"{place}.") for place in HOMES)
    if not inside or last not in COMPONENTS:
        raise ValueError(f"_target_ is {str(name)[:80]!r}, expected one of {', '.join(sorted(COMPONENTS))}")
    return COMPONENTS[last]
