"""Irreps, Clebsch-Gordan coefficients, spherical harmonics and their rotation: the algebra under every layer.

Conventions are e3nn's: axes (x, y, z), `1o` is a vector in that order, multiplicities lie outside components. e3nn is
imported on first use, because it pulls in the compiler stack of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import pi, sqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = [
    "Block",
    "Channels",
    "Constants",
    "as_irreps",
    "blocks_of",
    "channels_of",
    "check_channels",
    "clebsch_gordan",
    "even_orders",
    "irreps_from_multiplicities",
    "n_coefficients",
    "representation_matrix",
    "sh_basis",
    "spherical_harmonics",
    "wigner_d",
]


def as_irreps(irreps: str | Irreps) -> Irreps:
    """e3nn Irreps without empty entries; TypeError for anything but a string or Irreps, ValueError if unreadable."""
    from e3nn import o3

    if not isinstance(irreps, str | o3.Irreps):
        raise TypeError(
            f"irreps must be a string such as '8x0e+4x1o' or e3nn Irreps, got {type(irreps).__name__}"
        )
    try:
        return o3.Irreps(irreps).remove_zero_multiplicities()
    except ValueError as error:
        raise ValueError(f"irreps {irreps!r} cannot be read: {error}") from error


def irreps_from_multiplicities(multiplicities: Sequence[int], parity: str = "natural") -> Irreps:
    """Irreps from channel counts per degree: [7, 4] -> 7x0e+4x1o.

    parity: 'natural' gives degree l the parity of its spherical harmonics (0e, 1o, 2e, ...), 'even' only e.
    """
    if parity not in ("natural", "even"):
        raise ValueError(f"parity must be 'natural' or 'even', got {parity!r}")
    if any(count < 0 for count in multiplicities):
        raise ValueError(f"multiplicities must not be negative, got {list(multiplicities)}")
    letters = "eo" if parity == "natural" else "ee"
    return as_irreps(
        "+".join(f"{count}x{degree}{letters[degree % 2]}" for degree, count in enumerate(multiplicities))
    )


class Block(NamedTuple):
    """One entry of irreps in numbers that torch.compile can read: `multiplicity` channels of `dim` components."""

    multiplicity: int
    dim: int
    even: bool  # whether a channel keeps its sign under inversion of space

    @property
    def scalar(self) -> bool:
        """Whether it is `0e`, invariant under everything."""
        return self.dim == 1 and self.even


class Channels(NamedTuple):
    """How many components irreps need, and their name for messages."""

    dim: int
    irreps: str


def blocks_of(irreps: Irreps) -> tuple[Block, ...]:
    """The entries of `irreps` as `Block`s."""
    return tuple(Block(mul, ir.dim, ir.p == 1) for mul, ir in irreps)


def channels_of(irreps: Irreps) -> Channels:
    """What `check_channels` compares an input with; ValueError for irreps without channels."""
    if not irreps.dim:
        raise ValueError(f"irreps {str(irreps)!r} have 0 channels, at least 1 is needed")
    return Channels(irreps.dim, str(irreps))


def check_channels(x: Tensor, channels: Channels, ndims: Sequence[int], name: str) -> None:
    """Raise ValueError unless `x` has one of `ndims` axes and `channels.dim` channels on axis 1."""
    if x.ndim not in ndims:
        raise ValueError(f"{name}: input has {x.ndim} axes, expected {' or '.join(map(str, ndims))}")
    if x.shape[1] != channels.dim:
        raise ValueError(
            f"{name}: input has {x.shape[1]} channels, irreps {channels.irreps} need {channels.dim}"
        )


@cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> Tensor:
    """(2 l1+1, 2 l2+1, 2 l3+1) real 3j coefficients of unit Frobenius norm, float64; treat as read-only."""
    from e3nn import o3

    return o3.wigner_3j(l1, l2, l3, dtype=torch.float64)


@cache
def _climb(degree: int) -> Tensor:
    """(2 l+3, 2 l+1, 3) coupling with Y_{l+1} = coupling(Y_l, v) in component norm on unit v."""
    coupling = clebsch_gordan(degree + 1, degree, 1)
    pole = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)  # e3nn's polar axis is y
    below = torch.zeros(2 * degree + 1, dtype=torch.float64)
    below[degree] = sqrt(2 * degree + 1)
    above = torch.einsum("kij,i,j->k", coupling, below, pole)
    return coupling * (sqrt(2 * degree + 3) / above.norm())


def harmonic_couplings(l_max: int) -> list[Tensor]:
    """The matrices `spherical_harmonics` climbs with, one per degree above 0, float64."""
    return [_climb(degree) for degree in range(l_max)]


def spherical_harmonics(v: Tensor, l_max: int, couplings: Iterable[Tensor] | None = None) -> list[Tensor]:
    """[Y_0, ..., Y_lmax] of the directions of `v` (..., 3), each (..., 2l+1), component norm: |Y_l|² = 2l+1.

    Zero vectors have no direction: Y_0 = 1 and Y_l = 0 for l > 0.  Equal to e3nn's, built by Y_{l+1} = C(Y_l, v).
    couplings: those of `harmonic_couplings` in the precision and on the device of `v`, where a caller keeps them.
    """
    length = v.norm(dim=-1, keepdim=True)
    unit = torch.where(length > 0, v / length.clamp(min=torch.finfo(v.dtype).tiny), torch.zeros_like(v))
    harmonics = [torch.ones_like(length)]
    for coupling in harmonic_couplings(l_max) if couplings is None else couplings:
        products = (harmonics[-1].unsqueeze(-1) * unit.unsqueeze(-2)).flatten(-2)
        harmonics.append(products @ coupling.to(unit).flatten(1).T)
    return harmonics


def even_orders(l_max: int) -> range:
    """Orders 0, 2, ..., l_max.  Raises ValueError for an odd or negative l_max."""
    if l_max < 0 or l_max % 2:
        raise ValueError(f"l_max must be even and at least 0, got {l_max}")
    return range(0, l_max + 1, 2)


def n_coefficients(l_max: int) -> int:
    """Number of even harmonics up to l_max: (l_max + 1)(l_max + 2) / 2."""
    return sum(2 * order + 1 for order in even_orders(l_max))


def sh_basis(directions: Tensor, l_max: int) -> Tensor:
    """(..., N, n_coef) even orthonormal harmonics at `directions` (..., N, 3) of any length, l = 0, 2, ..., l_max.

    The basis of every harmonic image of this package: `spherical_harmonics` over sqrt(4 pi).
    """
    even_orders(l_max)
    return torch.cat(spherical_harmonics(directions, l_max)[::2], dim=-1) / sqrt(4 * pi)


def wigner_d(degree: int, matrix: Tensor) -> Tensor:
    """(..., 2l+1, 2l+1) float64 matrices with Y_l(R v) = D_l(R) Y_l(v) for orthogonal `matrix` R (..., 3, 3), det ±1.

    A reflection acts by the natural parity (-1)^l, since D is built from l factors of R: exact to rounding, where
    matrices made of Euler angles err by some 1e-6.
    """
    rotation = matrix.double()
    d = torch.ones_like(rotation[..., :1, :1])
    for lower in range(degree):
        coupling = clebsch_gordan(lower + 1, lower, 1).to(rotation.device)
        turned = torch.einsum("lab,...ia,...jb->...lij", coupling, d, rotation)
        d = (2 * lower + 3) * torch.einsum("kij,...lij->...kl", coupling, turned)
    return d


def representation_matrix(irreps: str | Irreps, matrix: Tensor) -> Tensor:
    """(..., dim, dim) float64 block-diagonal action of orthogonal `matrix` (..., 3, 3) on channels of `irreps`.

    It is how a field turns at a voxel, f'(v) = f(R^T v): `1o` is a vector, and the letter tells what a mirror does.
    """
    fields = as_irreps(irreps)
    mirrored = torch.linalg.det(matrix.double()).lt(0)[..., None, None]
    blocks = {ir.l: wigner_d(ir.l, matrix) for _, ir in fields}
    full = torch.zeros(*matrix.shape[:-2], fields.dim, fields.dim, dtype=torch.float64, device=matrix.device)
    start = 0
    for multiplicity, ir in fields:
        twisted = -blocks[ir.l] if ir.p != (-1) ** ir.l else blocks[ir.l]
        block = torch.where(mirrored, twisted, blocks[ir.l])
        for _ in range(multiplicity):
            full[..., start : start + ir.dim, start : start + ir.dim] = block
            start += ir.dim
    return full


class Constants(nn.Module):
    """Named constant tensors kept in float64 and offered as buffers in the module's own precision.

    Buffers follow the module's device and dtype but are always cast from the float64 original and never below
    float32: `.double()` gives exact values and `.bfloat16()` leaves kernels to be built in float32. They are not
    part of the state dict.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Tensor: ...

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        self.originals = {name: tensor.detach().double().cpu() for name, tensor in tensors.items()}
        for name, original in self.originals.items():
            self.register_buffer(name, original.to(torch.get_default_dtype()), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Constants:
        super()._apply(fn, recurse)
        for name, original in self.originals.items():
            moved = getattr(self, name)
            dtype = torch.promote_types(moved.dtype, torch.float32)
            setattr(self, name, original.to(device=moved.device, dtype=dtype))
        return self
