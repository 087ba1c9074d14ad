"""What the contraction of `PQDiff` at frequencies needs of its kernel, and what it costs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmri_monai.equivariant.pq.contraction.interface import Sizes

__all__ = ["Family", "FamilySize", "SpectralKernel", "distinct_columns", "spectral_cost"]

BATCHED = (
    4.0  # time of a multiplication in a batch of small products, against one in a dense convolution (on CPUs)
)


class Family(NamedTuple):
    """Functions of p - dq that share a degree, and what mixes what they give into the output.

    functions (..., Q_out, P, Q_in, n): harmonics.  radial (P, r).  first, last: components of the input.
    mix (..., Q_out, n·r·components·i, dim_out).
    """

    functions: Tensor
    radial: Tensor
    first: int
    last: int
    mix: Tensor


class SpectralKernel(NamedTuple):
    """All families of a kernel, phi_i(|q_in|) (..., Q_in, n_i), and the plain map (dim_out, dim_in) with its place.

    zero (..., Q_out, P, Q_in): where p = dq, and the plain map stands.
    """

    families: list[Family]
    inner: Tensor
    zero: Tensor
    plain: Tensor | None
    antipodal: bool
    kernel_size: int

    def of_item(self, index: int) -> SpectralKernel:
        """The kernel of one item of a batch of tables."""
        families = [f._replace(functions=f.functions[index], mix=f.mix[index]) for f in self.families]
        return self._replace(families=families, inner=self.inner[index], zero=self.zero[index])


class FamilySize(NamedTuple):
    """Numbers of functions (components times radial functions) and of columns (components times phi_i) of a family."""

    functions: int
    columns: int


def spectral_cost(families: list[FamilySize], dim_out: int, taps: int, sizes: Sizes, overlap: float) -> float:
    """Multiplications per voxel, weighted by how well they run; overlap: voxels of all blocks per voxel."""
    spectra = sum(family.functions for family in families) * sizes.n_in * taps / 4
    products = sum(family.functions * family.columns for family in families)
    return sizes.n_out * overlap * (spectra + BATCHED * products * sizes.n_in + 2 * products * dim_out)


def distinct_columns(inner: Tensor) -> tuple[Tensor, Tensor]:
    """(..., Q_in, k) and (..., k, n_i) whose product is `inner` (..., Q_in, n_i) to rounding, with the least k.

    A table of s shells has functions of |q| of rank s + 1, b = 0 included, however many functions there are.
    """
    u, s, vh = torch.linalg.svd(inner.double(), full_matrices=False)
    tolerance = torch.finfo(inner.dtype).eps * max(inner.shape[-2:])
    rank = int((s > tolerance * s[..., :1]).sum(-1).max())
    return (u * s.unsqueeze(-2))[..., :rank].to(inner), vh[..., :rank, :].to(inner)
