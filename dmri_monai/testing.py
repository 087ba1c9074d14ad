"""Checks that a layer or network is equivariant: the cube group, its action on fields, and test volumes.

The action of an orthogonal matrix R on a field f of irreps is (R f)(x) = D(R) f(R⁻¹ x), about the volume's centre.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import permutations, product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmri_monai.so3 import as_irreps, channels_of, check_channels, representation_matrix

if TYPE_CHECKING:
    from e3nn.o3 import Irreps

__all__ = ["act_on_field", "assert_equivariant", "band_limited_volume", "cube_rotations"]

Action = str | Callable[[Tensor, Any], Any]


def cube_rotations(reflections: bool = False) -> list[Tensor]:
    """The 24 rotations of the cube as (3, 3) float64 matrices; with `reflections` all 48 signed permutations."""
    matrices = [
        torch.diag(torch.tensor(signs, dtype=torch.float64))[list(order)]
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
    return [m for m in matrices if reflections or torch.linalg.det(m) > 0]


def act_on_field(R: Tensor, x: Tensor, irreps: str | Irreps) -> Tensor:
    """(N, irreps.dim, [Q,] X, Y, Z) -> the same field turned by `R` (3, 3), exactly: voxels and components.

    R must be one of `cube_rotations(reflections=True)`; other rotations need interpolation or an analytic field
    (`band_limited_volume`). q-vectors are turned by the caller: q @ R.T.
    """
    irreps = as_irreps(irreps)
    check_channels(x, channels_of(irreps), (5, 6), "act_on_field")
    if not ((R.abs().round() == R.abs()).all() and (R @ R.T).equal(torch.eye(3, dtype=R.dtype))):
        raise ValueError(f"R must be a signed permutation matrix, got {R.tolist()}")
    source = R.abs().argmax(dim=1).tolist()
    first = x.ndim - 3
    moved = x.permute(*range(first), *(first + axis for axis in source))
    moved = moved.flip([first + axis for axis in range(3) if R[axis, source[axis]] < 0])
    matrix = representation_matrix(irreps, R).to(device=x.device, dtype=x.dtype)
    return torch.einsum("ij,nj...->ni...", matrix, moved)


def _action(action: Action | Irreps) -> Callable[[Tensor, Any], Any]:
    return action if callable(action) else lambda g, field: act_on_field(g, field, action)


def assert_equivariant(
    layer: Callable[[Any], Tensor],
    x: Any,
    act_in: Action | Irreps,
    act_out: Action | Irreps,
    group: Iterable[Tensor] | None = None,
    rtol: float = 1e-5,
) -> None:
    """Assert layer(g x) = g layer(x) within the relative error `rtol` (2-norm) for every g of `group`.

    x: a tensor, or a tuple whose first entry is one (then `act_in` must be a function of (g, x)).
    act_in, act_out: irreps, or functions (g, field) -> field.  group: None is `cube_rotations()`.
    AssertionError also for output that is not finite, nearly constant, or a group of no element: an empty check.
    """
    act_in, act_out = _action(act_in), _action(act_out)
    elements = list(cube_rotations() if group is None else group)
    assert elements, "the group is empty: the check would be empty"
    with torch.no_grad():
        y = layer(x)
        size = (x if isinstance(x, Tensor) else x[0]).std()
        assert y.isfinite().all(), "non-finite output"
        assert y.std() > 1e-3 * size, "output is (nearly) constant: the check would be empty"
        for g in elements:
            turned, expected = layer(act_in(g, x)), act_out(g, y)
            assert turned.shape == expected.shape, (
                f"shape {tuple(turned.shape)}, expected {tuple(expected.shape)}"
            )
            error = float((turned - expected).norm() / y.norm())
            assert error <= rtol, f"relative error {error:.1e} > {rtol:.0e} for {g.tolist()}"


def band_limited_volume(
    size: Sequence[int],
    *,
    channels: int = 1,
    batch: int = 1,
    cutoff: float = 0.15,
    waves: int = 24,
    rotation: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """(batch, channels, *size) float64 random smooth scalar volumes: sums of plane waves below `cutoff`.

    cutoff: highest spatial frequency in cycles per voxel (Nyquist: 0.5).  rotation: (3, 3) orthogonal matrix; the same
    volume turned about its centre, computed, not interpolated, so that any rotation can be tested.
    """
    if not 0 < cutoff <= 0.5:
        raise ValueError(f"cutoff must lie in (0, 0.5] cycles per voxel, got {cutoff}")
    generator = torch.Generator().manual_seed(seed)
    shape = (batch * channels, waves)
    direction = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=-1, keepdim=True)
    frequency = cutoff * torch.rand(*shape, 1, generator=generator, dtype=torch.float64) ** (1 / 3)
    phase = 2 * torch.pi * torch.rand(*shape, 1, generator=generator, dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in size]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    if rotation is not None:
        points = points @ rotation.double()  # rows R⁻¹ x
    values = torch.cos(2 * torch.pi * (direction * frequency) @ points.T + phase).sum(1) / (waves / 2) ** 0.5
    return values.reshape(batch, channels, *size)
