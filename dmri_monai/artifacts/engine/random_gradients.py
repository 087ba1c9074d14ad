"""Random nonlinearity of the gradients: what the coils really make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts import gradient_deviation, gradient_nonlinearity
from dmri_monai.artifacts.blockwise import combine
from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_numbers import normal_numbers, uniform
from dmri_monai.artifacts.engine.scan_context import ScanContext

__all__ = ["GradientNonlinearity"]

TISSUE = 0.7  # mean diffusivity of brain tissue, um2/ms
# of the largest singular value: scattered b-values of one shell do not make up for a b0
RANK_TOLERANCE = 5e-3


@dataclass(frozen=True, kw_only=True)
class GradientNonlinearity(Artifact):
    """Coils make L(x) g instead of g: polynomials of degree 1 and 2 with normal coefficients, none at the
    centre.

    largest: U(low, high), the largest entry of L - 1 on the grid.  Acts through a tensor fitted to the scan.
    """

    name = "gradient_nonlinearity"
    bounds = {"largest": (0, 0.5)}

    largest: Range = (0.02, 0.1)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {
            "largest": uniform(R, self.largest),
            "coefficients": normal_numbers(R, 9, 9),
            "hit_volumes": [int(v) for v in np.flatnonzero(scan.weighted)],
        }

    @staticmethod
    def apply(image: Tensor, drawn: Drawn, scan: ScanContext) -> Tensor:
        coefficients = torch.tensor(drawn["coefficients"], dtype=torch.float64)
        weighted = torch.as_tensor(scan.bvals * scan.weighted)
        return gradient_nonlinearity(
            image,
            bvals=weighted,
            bvecs_voxel=torch.as_tensor(scan.bvecs_voxel),
            tensor=_tensor(image, scan),
            deviation=gradient_deviation(coefficients, scan.shape, largest=drawn["largest"], like=image),
        )


def _tensor(image: Tensor, scan: ScanContext) -> Tensor:
    """(6, X, Y, Z) unweighted log-linear tensor in mm2/s.

    What the table cannot tell (without b0, attenuation from a darker voxel) stays as in isotropic tissue.
    """
    b, g = scan.bvals * scan.weighted / 1000, scan.bvecs_voxel
    pairs = ((0, 0, 1), (1, 1, 1), (2, 2, 1), (0, 1, 2), (0, 2, 2), (1, 2, 2))
    design = np.stack([np.ones_like(b), *(-b * times * g[:, i] * g[:, j] for i, j, times in pairs)], -1)
    solve = np.linalg.pinv(design, rcond=RANK_TOLERANCE)[1:]
    unseen = b if scan.weighted.all() else 0 * b  # the reference has lost this much already
    floor = max(1e-3 * scan.reference, 1e-6)
    usual = np.array([math.log(max(scan.reference, floor)) + TISSUE * unseen.mean(), *[TISSUE] * 3, 0, 0, 0])
    rest = torch.as_tensor(usual[1:] - solve @ (design @ usual)).to(image)
    fitted = combine(torch.as_tensor(solve).to(image), image.clamp(min=floor).log_())
    return fitted.add_(rest.view(-1, 1, 1, 1)).div_(1000)
