"""Multi-shell multi-tissue deconvolution: DIPY's model of fibres, grey matter and fluid, and a solver for it.

DIPY solves each voxel's quadratic programme through a general modelling language, which is an extra dependency and
about ten times slower.  As the constraint is a cone, the same optimum is a projection, by non-negative least squares.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dmri_monai.gradients import GradientTable, Shell
from dmri_monai.reference.deconvolution import with_b0

__all__ = ["ConeFit", "multi_tissue_model", "tissue_voxels"]

# FA and MD (mm²/s) of grey matter and fluid: our choice, wide around values of the adult brain at 3 T
ISOTROPIC_FA = 0.25
GREY_MD = (0.5e-3, 1.2e-3)
FLUID_MD = 2.0e-3
TENSOR_DIRECTIONS = 6


def multi_tissue_model(
    signal: np.ndarray,
    table: GradientTable,
    white: np.ndarray,
    tissue: tuple[np.ndarray, np.ndarray, np.ndarray],
    order: int,
    count: int,
) -> tuple[Any, np.ndarray]:
    """DIPY's model of all shells of a scan up to `order`, and the (X, Y, Z, M) signal to fit.

    signal (X, Y, Z, N); white (X, Y, Z) bool: voxels of the fibre response; tissue: FA, MD (mm²/s) and mask, each
    (X, Y, Z), from which at most `count` voxels of grey matter and of fluid are chosen.
    """
    from dipy.core.sphere import HemiSphere
    from dipy.data import get_sphere
    from dipy.reconst.mcsd import MultiShellDeconvModel, multi_shell_fiber_response

    shells = [shell for shell in table.shells() if len(shell.indices) >= TENSOR_DIRECTIONS]
    if len(shells) < 2:
        raise ValueError(
            f"{len(shells)} shells of at least {TENSOR_DIRECTIONS} directions: multi-tissue deconvolution "
            "needs two, use method 'csd'"
        )
    grey, fluid = tissue_voxels(*tissue, count)
    nominal, rows = _nominal(table, shells)
    part = signal[..., rows]
    bvals = np.array([0.0, *(shell.bval for shell in shells)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on DIPY's coming change of its default basis
        response = multi_shell_fiber_response(
            order,
            bvals,
            _fibre_response(signal, table, shells, white),
            _isotropic_response(signal, table, shells, grey),
            _isotropic_response(signal, table, shells, fluid),
        )
        sphere = HemiSphere.from_sphere(get_sphere(name="symmetric362"))
        model = MultiShellDeconvModel(nominal.to_dipy(), response, sphere, sh_order_max=order)
    model.fitter = ConeFit(model.fitter._X, model.fitter._reg)
    return model, part


def tissue_voxels(
    fa: np.ndarray, md: np.ndarray, mask: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) bool: at most `count` voxels of grey matter (lowest FA) and of fluid (highest MD)."""
    isotropic = mask & (fa < ISOTROPIC_FA) & (md > 0)
    grey = isotropic & (md > GREY_MD[0]) & (md < GREY_MD[1])
    fluid = isotropic & (md > FLUID_MD)
    for name, found in (("grey matter", grey), ("fluid", fluid)):
        if not found.any():
            raise ValueError(f"no voxel looks like {name} by FA and MD: use method 'csd'")
    return _first(grey, fa, count), _first(fluid, -md, count)


def _first(found: np.ndarray, score: np.ndarray, count: int) -> np.ndarray:
    """The `count` voxels of `found` of lowest score (all, where there are fewer)."""
    limit = np.sort(score[found])[min(count, int(found.sum())) - 1]
    chosen: np.ndarray = found & (score <= limit)
    return chosen


def _nominal(table: GradientTable, shells: Sequence[Shell]) -> tuple[GradientTable, np.ndarray]:
    """The b0 volumes and shells, each volume with its shell's mean b-value, and their indices (M,)."""
    bvals = torch.zeros_like(table.bvals)
    for shell in shells:
        bvals[shell.indices] = shell.bval
    rows = with_b0(table, torch.cat([shell.indices for shell in shells]))
    return GradientTable(bvals, table.bvecs, table.b0_threshold).select(rows), rows.numpy()


def _fibre_response(
    signal: np.ndarray, table: GradientTable, shells: Sequence[Shell], white: np.ndarray
) -> np.ndarray:
    """(S, 4) eigenvalues (mm²/s) and S0 of the mean fibre, one tensor per shell."""
    from dipy.reconst.csdeconv import response_from_mask_ssst

    rows = []
    for shell in shells:
        index = with_b0(table, shell.indices)
        (values, s0), _ = response_from_mask_ssst(
            table.select(index).to_dipy(), signal[..., index.numpy()], white
        )
        rows.append([*values, s0])
    return np.array(rows)


def _isotropic_response(
    signal: np.ndarray, table: GradientTable, shells: Sequence[Shell], voxels: np.ndarray
) -> np.ndarray:
    """(S, 4) three times the diffusivity that gives the mean signal of each shell, and S0."""
    means = signal[voxels].mean(0)
    s0 = means[table.b0_mask.numpy()].mean()
    decays = [
        np.log(s0 / max(means[shell.indices.numpy()].mean(), 1e-6 * s0)) / shell.bval for shell in shells
    ]
    return np.array([[decay, decay, decay, s0] for decay in decays])


class ConeFit:
    """min |X c - s|² subject to G c >= 0 for one voxel's signal s (N,), exactly.

    design X (N, K) of full rank, cone G (M, K).  With X = Q R and y = R c the optimum is the point nearest to
    Q^T s in the cone {G R^-1 y >= 0}; what is left of it lies in the polar cone, whose point is a non-negative
    combination of the rows of G R^-1 (Moreau 1962): a non-negative least-squares problem (Lawson and Hanson 1974).
    """

    def __init__(self, design: np.ndarray, cone: np.ndarray) -> None:
        q, r = np.linalg.qr(design)
        if np.linalg.cond(r) > 1e10:
            raise ValueError("the measurements do not determine the tissues and fibre orientations")
        self.into, self.back = q.T, np.linalg.inv(r)
        normals = cone @ self.back
        self.normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)

    def __call__(self, signal: np.ndarray) -> np.ndarray:
        from scipy.optimize import nnls

        free = self.into @ signal
        weights, _ = nnls(self.normals.T, -free, maxiter=50 * len(self.normals))
        optimum: np.ndarray = self.back @ (free + self.normals.T @ weights)
        return optimum
