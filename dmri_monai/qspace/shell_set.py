"""The shells of any scan as a set: each with its b-value, its number of measurements and its harmonics."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dmri_monai.gradients import B0_THRESHOLD, Shell, cluster_shells
from dmri_monai.qspace.b0 import b0_reference, mean_b0
from dmri_monai.qspace.harmonics import channel_layout
from dmri_monai.qspace.shell_fit import sh_orders
from dmri_monai.qspace.shell_response import bundle_response, response_factors
from dmri_monai.so3 import n_coefficients, sh_basis

__all__ = ["ShellSet", "merged_shells", "shell_channels", "shell_irreps", "shell_set"]

log = logging.getLogger(__name__)

SMOOTHING = 1e-3
RADIAL_ORDER = 2  # harmonics whose change with b is fitted inside a shell of several b-values
RADIAL_PENALTY = 0.05
CHUNK = 1 << 17


def shell_irreps(slots: int, l_max: int) -> str:
    """Irreps of a scan's shells in `slots` slots: b0; of every slot l = 0, presence, b, log n; l = 2; l = 4; ...

    >>> shell_irreps(2, 4)
    '9x0e+2x2e+2x4e'
    """
    if slots < 1 or l_max < 0 or l_max % 2:
        raise ValueError(f"slots must be at least 1 and l_max even, got {slots} and {l_max}")
    degrees = "".join(f"+{slots}x{degree}e" for degree in range(2, l_max + 1, 2))
    return f"{1 + 4 * slots}x0e{degrees}"


@dataclass(frozen=True)
class ShellSet:
    """The shells of one scan in `slots` slots, absent ones last.

    matrix (slots, n_coef, N) float64: from all N measurements of S/S0 to the harmonics of each shell.
    bvals (slots,): mean b-value, s/mm², 0 for absent slots.  counts (slots,): measurements, 0 for absent slots.
    """

    matrix: Tensor
    bvals: Tensor
    counts: Tensor


def shell_set(
    bvals: Tensor, bvecs: Tensor, *, slots: int = 4, l_max: int = 6, b0_threshold: float = B0_THRESHOLD
) -> ShellSet:
    """The shells of a table, bvals (N,) s/mm² and bvecs (N, 3), ascending; more shells than slots are merged.

    Each shell is fitted to l_max however few directions it has: the Laplace-Beltrami penalty (Descoteaux 2007,
    doi:10.1002/mrm.21277) decides what they cannot.  Where b-values differ inside a shell (a merged one, or the
    Cartesian grid of diffusion spectrum imaging), a linear change with b of orders 0 and 2 is fitted along, and the
    harmonics are those at the mean b: otherwise the decay with b would pass for anisotropy.
    Raises ValueError for a table without b above `b0_threshold`.
    """
    bvals, bvecs = bvals.detach().cpu().double(), bvecs.detach().cpu().double()
    shells = merged_shells(cluster_shells(bvals, b0_threshold), slots)
    if not shells:
        raise ValueError(f"no b-value above {b0_threshold:g} s/mm² among {len(bvals)} measurements")
    matrix = torch.zeros(slots, n_coefficients(l_max), len(bvals), dtype=torch.float64)
    basis = sh_basis(bvecs, l_max)
    for block, shell in zip(matrix, shells, strict=False):
        block[:, shell.indices] = _fit_matrix(bvals[shell.indices], basis[shell.indices], shell.bval, l_max)
    absent = [0.0] * (slots - len(shells))
    return ShellSet(
        matrix,
        torch.tensor([shell.bval for shell in shells] + absent, dtype=torch.float64),
        torch.tensor([float(len(shell.indices)) for shell in shells] + absent, dtype=torch.float64),
    )


def merged_shells(shells: Sequence[Shell], slots: int) -> list[Shell]:
    """At most `slots` shells: neighbours on the b-axis are joined where the spread of b grows least (Ward 1963)."""
    merged = list(shells)
    while len(merged) > slots:
        pairs = zip(merged, merged[1:], strict=False)
        costs = [_spread(*pair) for pair in pairs]
        i = costs.index(min(costs))
        merged[i : i + 2] = [_joined(merged[i], merged[i + 1])]
    if len(merged) < len(shells):
        log.info(
            "%d shells in %d slots, merged by nearest b: %s s/mm²",
            len(shells), slots, ", ".join(f"{shell.bval:.0f}" for shell in merged),
        )  # fmt: skip
    return merged


def _spread(first: Shell, second: Shell) -> float:
    n, m = len(first.indices), len(second.indices)
    return n * m / (n + m) * (first.bval - second.bval) ** 2


def _joined(first: Shell, second: Shell) -> Shell:
    n, m = len(first.indices), len(second.indices)
    indices = torch.cat([first.indices, second.indices]).sort().values
    return Shell((n * first.bval + m * second.bval) / (n + m), indices)


def _fit_matrix(bvals: Tensor, basis: Tensor, centre: float, l_max: int) -> Tensor:
    """(n_coef, M) float64: to the harmonics at b = `centre` of M measurements with harmonics `basis` (M, n_coef)."""
    orders = sh_orders(l_max).double()
    n_radial = n_coefficients(min(RADIAL_ORDER, l_max))
    offset = (bvals - centre).unsqueeze(1) / 1000
    design = torch.cat([basis, offset * basis[:, :n_radial]], dim=1)
    penalty = torch.cat(
        [SMOOTHING * (orders * (orders + 1)) ** 2, basis.new_full((n_radial,), RADIAL_PENALTY)]
    )
    weighted = design.T * (4 * math.pi / len(bvals))
    solution = torch.linalg.solve(weighted @ design + torch.diag(penalty + 1e-9), weighted)
    return solution[: basis.shape[1]]


def shell_channels(
    image: Tensor,
    bvals: Tensor,
    shells: ShellSet,
    *,
    brain: Tensor | None = None,
    reference: float | None = None,
    clip: float | None = 2.0,
    min_b0: float = 0.1,
    b0_threshold: float = B0_THRESHOLD,
    response: Tensor | Literal["scan"] | None = None,
) -> Tensor:
    """(C, X, Y, Z) float32 channels of raw signals `image` (N, X, Y, Z), as `ShellEncoder` takes them.

    C is the dimension of :func:`shell_irreps`: mean b0 / its median (in
    `brain` (1, X, Y, Z), else the foreground); l = 0 of S/S0 of every slot; presence; b / 1000 s/mm²; log of the number
    of measurements; l = 2 of every slot, l = 4, ....  S/S0 is clipped to [0, clip], and 0 where the mean b0 is at
    most `min_b0` of its median.  reference: in place of that median, where it is known.
    response: None, or rescale the shells as if one fibre looked the same in every scan
    (:mod:`dmri_monai.qspace.shell_response`): by what "scan", that is `image`, looks like, or (slots, L).
    ValueError for a scan without b0.
    """
    b0 = mean_b0(image, bvals, b0_threshold)
    unit = b0_reference(b0, brain) if reference is None else b0.new_tensor(reference)
    slots, n_coef, _ = shells.matrix.shape
    l_max = (math.isqrt(8 * n_coef + 1) - 3) // 2
    matrix = shells.matrix.flatten(0, 1)[channel_layout(slots, l_max)].to(image.device, torch.float32)
    inverse = torch.where(b0 > min_b0 * unit, 1.0 / b0, torch.zeros_like(b0)).flatten()
    flat = image.flatten(1)
    fitted = inverse.new_empty(len(matrix), flat.shape[1])
    for start in range(0, flat.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        fitted[:, part] = matrix @ (flat[:, part].float() * inverse[part]).nan_to_num_(0.0).clamp_(0.0, clip)
    relative = (b0 / unit).nan_to_num(0.0, 0.0, 0.0).flatten().unsqueeze(0)
    if response is not None:
        if isinstance(response, str):
            response = bundle_response(fitted, shells.counts > 0, relative.view(b0.shape))
        factors = response_factors(response, shells.bvals).T.flatten()  # by degree, then slot
        sizes = torch.arange(1, 2 * l_max + 2, 4, device=factors.device).repeat_interleave(slots)
        fitted *= factors.repeat_interleave(sizes).to(fitted).unsqueeze(1)
    channels = torch.cat([relative, fitted[:slots], _scalars(shells, fitted), fitted[slots:]])
    return channels.view(-1, *image.shape[1:])


def _scalars(shells: ShellSet, like: Tensor) -> Tensor:
    """(3 slots, V) presence, b in ms/µm² and log of the number of measurements of every slot."""
    present = shells.counts > 0
    values = torch.cat([present.double(), shells.bvals / 1000, shells.counts.clamp(min=1).log()])
    return values.to(like).unsqueeze(1).expand(-1, like.shape[1])
