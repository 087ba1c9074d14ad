"""A nonlinearity that acts on the values of functions on the sphere, not on their coefficients."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dmri_monai.equivariant.gate import Activation, activation_function
from dmri_monai.so3 import (
    Constants,
    as_irreps,
    channels_of,
    check_channels,
    sh_basis,
)

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["Pointwise", "SphereActivation", "even_functions", "from_functions", "sphere_grid", "to_functions"]

CHUNK = 4096  # voxels at a time where no gradient is wanted: bounds what the values on the sphere take


@lru_cache(maxsize=8)
def sphere_grid(degree: int = 17) -> tuple[Tensor, Tensor]:
    """(P, 3) unit vectors and (P,) weights, float64, that integrate even functions up to `degree` exactly.

    One of each antipodal pair of a Lebedev rule (55 of 110 points for degree 17), with twice its weight: the weights
    sum to 4 pi.  The rotations and reflections of the cube permute the rule.  Treat as read-only.
    Reference: Lebedev 1999, by `scipy.integrate.lebedev_rule`, which raises for degrees it has not.
    """
    from scipy.integrate import lebedev_rule

    points, weights = (torch.from_numpy(array).double() for array in lebedev_rule(degree))
    points = points.T.contiguous()
    first = torch.where(
        points.abs() > 1e-9, points.sign(), 0.0
    )  # of each pair, the one that is larger in z, y, x
    kept = (first * torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)).sum(1) > 0
    return points[kept], 2 * weights[kept]


def even_functions(irreps: str | Irreps, name: str) -> tuple[int, int]:
    """Number of functions on the sphere and their l_max, of irreps such as "8x0e+8x2e+8x4e".

    ValueError, naming the layer, for odd degrees, a missing degree or multiplicities that differ.
    """
    fields = as_irreps(irreps)
    multiplicities = [mul for mul, _ in fields]
    degrees = [(ir.l, ir.p) for _, ir in fields]
    if (
        not multiplicities
        or len(set(multiplicities)) > 1
        or degrees != [(2 * i, 1) for i in range(len(degrees))]
    ):
        raise ValueError(
            f"{name}: irreps {fields} are no even functions on the sphere, expected as many 0e, 2e, 4e, ... each"
        )
    return multiplicities[0], degrees[-1][0]


def to_functions(x: Tensor, count: int, l_max: int) -> Tensor:
    """(B, count n, ...) channels grouped by degree -> (B, n, count, ...), n = (l_max + 1)(l_max + 2) / 2.

    With components before channels, going to the grid and back is one product of matrices.
    """
    sizes = [count * (2 * degree + 1) for degree in range(0, l_max + 1, 2)]
    parts = x.split(sizes, dim=1)
    return torch.cat([part.unflatten(1, [count, -1]).transpose(1, 2) for part in parts], dim=1)


def from_functions(x: Tensor, l_max: int) -> Tensor:
    """The inverse of :func:`to_functions`."""
    sizes = [2 * degree + 1 for degree in range(0, l_max + 1, 2)]
    return torch.cat([part.transpose(1, 2).flatten(1, 2) for part in x.split(sizes, dim=1)], dim=1)


class Pointwise(nn.Linear):
    """A linear map of the channels at each voxel: (..., in, V) -> (..., out, V)."""

    def forward(self, input: Tensor) -> Tensor:
        flat = input.flatten(0, -3)
        weight = self.weight.unsqueeze(0).expand(
            flat.shape[0], -1, -1
        )  # `matmul` would copy the input instead
        if self.bias is None:
            out = torch.bmm(weight, flat)
        else:
            out = torch.baddbmm(self.bias.view(1, -1, 1), weight, flat)
        return out.view(input.shape[:-2] + out.shape[1:])


class SphereActivation(nn.Module):
    """Coefficients -> values on a grid of the sphere -> a pointwise network -> coefficients.

    forward(x, scalars=None): x (B, irreps_in.dim, ...) holds, at each voxel, K even functions on the sphere, in
    orthonormal harmonics: as many 0e, 2e, 4e, ... each; scalars (B, S, ...) are invariants; the output is
    (B, irreps_out.dim, ...).  Any number of voxel axes, also none.  At every grid point u

        y(u) = W2 act(W1 x(u) · (1 + A s) + B s + c) + d,

    and the output's coefficients are its integrals with the harmonics.  Products of two functions of degree <= 8 are
    integrated exactly by the default rule.  Whatever the activation does, the rotations and reflections of the cube
    permute the grid, so that the layer commutes with them exactly, and closely with every other rotation.  A gate
    can only scale what it is given; this makes sharp lobes from blurred ones.
    Reference: Cohen et al. 2018 (spherical CNNs), doi:10.48550/arXiv.1801.10130
    """

    def __init__(
        self,
        irreps_in: str | Irreps,
        irreps_out: str | Irreps | None = None,
        *,
        hidden: int = 32,
        scalars: int = 0,
        activation: Activation = "silu",
        degree: int = 17,
    ) -> None:
        super().__init__()
        self.irreps_in = as_irreps(irreps_in)
        self.irreps_out = self.irreps_in if irreps_out is None else as_irreps(irreps_out)
        self.expected, self.scalars = channels_of(self.irreps_in), scalars
        self.count, self.l_in = even_functions(self.irreps_in, "SphereActivation")
        count_out, self.l_out = even_functions(self.irreps_out, "SphereActivation")
        self.activation = activation_function(activation)
        points, weights = sphere_grid(degree)
        basis = sh_basis(points, max(self.l_in, self.l_out))
        n_in, n_out = ((order + 1) * (order + 2) // 2 for order in (self.l_in, self.l_out))
        self.grid = Constants(
            synthesis=basis[:, :n_in].contiguous(), analysis=(basis[:, :n_out].T * weights).contiguous()
        )
        self.widen = Pointwise(self.count, hidden)
        self.narrow = Pointwise(hidden, count_out)
        self.modulate = Pointwise(scalars, 2 * hidden, bias=False) if scalars else None

    def extra_repr(self) -> str:
        return f"{self.irreps_in} -> {self.irreps_out}, scalars={self.scalars}"

    @torch.jit.unused  # TorchScript compiles `on_functions`
    def forward(self, x: Tensor, scalars: Tensor | None = None) -> Tensor:
        check_channels(x, self.expected, range(2, 7), "SphereActivation")
        self._check_scalars(x, scalars)
        shape, flat = x.shape[2:], _voxels_last(x)
        state = None if scalars is None else _voxels_last(scalars)
        if torch.is_grad_enabled() or flat.shape[2] <= CHUNK:
            out = self._on_channels(flat, state)
        else:
            pieces = flat.split(CHUNK, dim=2)
            states = [None] * len(pieces) if state is None else state.split(CHUNK, dim=2)
            out = torch.cat([self._on_channels(*both) for both in zip(pieces, states, strict=True)], dim=2)
        return out[0].T if x.ndim == 2 else out.unflatten(2, shape)

    def _on_channels(self, x: Tensor, scalars: Tensor | None) -> Tensor:
        return from_functions(self.on_functions(to_functions(x, self.count, self.l_in), scalars), self.l_out)

    def on_functions(self, x: Tensor, scalars: Tensor | None = None) -> Tensor:
        """(B, n_in, K, V) coefficients and (B, S, V) invariants -> (B, n_out, K_out, V): without reordering."""
        hidden = _mixed(self.widen.weight, _product(self.grid.synthesis, x))  # (B, P, hidden, V)
        offset = self.widen.bias.to(hidden.dtype).unsqueeze(1)
        if self.modulate is not None and scalars is not None:
            scale, shift = self.modulate(scalars).unsqueeze(1).chunk(2, dim=2)
            gain = 1 + scale
            hidden = torch.addcmul(torch.addcmul(shift, gain, offset), hidden, gain)
        else:
            hidden = hidden + offset
        out = _product(self.grid.analysis, _mixed(self.narrow.weight, self.activation(hidden)))
        # a constant on the sphere has the degree 0 alone
        constant = self.narrow.bias.unsqueeze(1) * self.grid.analysis[0].sum()
        out[:, 0].add_(constant.to(out.dtype))
        return out

    def _check_scalars(self, x: Tensor, scalars: Tensor | None) -> None:
        found = 0 if scalars is None else scalars.shape[1]
        if found != self.scalars:
            raise ValueError(f"SphereActivation: {found} scalar channels, expected {self.scalars}")
        if scalars is not None and (len(scalars), *scalars.shape[2:]) != (len(x), *x.shape[2:]):
            raise ValueError(
                f"SphereActivation: scalars {tuple(scalars.shape)} and input {tuple(x.shape)} are of other voxels"
            )


def _mixed(weight: Tensor, x: Tensor) -> Tensor:
    """(M, K) times (B, P, K, V) -> (B, P, M, V), without a bias, whose addition would cost another pass."""
    flat = x.flatten(0, 1)
    return torch.bmm(weight.unsqueeze(0).expand(flat.shape[0], -1, -1), flat).unflatten(0, x.shape[:2])


def _product(matrix: Tensor, x: Tensor) -> Tensor:
    """(M, n) times (B, n, K, V) -> (B, M, K, V)."""
    matrix = matrix.to(x.dtype).unsqueeze(0).expand(x.shape[0], -1, -1)
    return torch.bmm(matrix, x.flatten(2)).unflatten(2, x.shape[2:])


def _voxels_last(x: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C, V); items without voxel axes become the voxels of one item."""
    return x.T.unsqueeze(0) if x.ndim == 2 else x.flatten(2)
