"""A ball of a head at 3 mm: white matter, a shell of grey matter, a shell of fluid; one fibre direction."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from dmri_monai.phantom.head_model import HeadModel, build_model
from dmri_monai.phantom.measured_fibres import FibreMap

DIAGONAL = torch.tensor([0.6, 0.8, 0.0])
SPACING_MM, SIZE = 3.0, 50


def small_head() -> HeadModel:
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = -SPACING_MM * (SIZE - 1) / 2
    index = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"))
    radius = np.linalg.norm(index * SPACING_MM + affine[0, 3], axis=0)
    bounds = [radius < 36, (radius >= 36) & (radius < 44), (radius >= 44) & (radius < 50)]
    coarse = affine.copy()
    coarse[:3, :3] *= 2
    coarse[:3, 3] += SPACING_MM / 2
    half = SIZE // 2
    places = np.tensordot(coarse[:3, :3], index[:, :half, :half, :half], 1) + coarse[0, 3]
    shares = np.zeros((half, half, half, 3), np.float32)
    shares[..., 0] = 1
    directions = np.zeros((half, half, half, 3, 3), np.float32)
    directions[..., 0, :] = DIAGONAL.numpy()
    nothing = np.zeros((half, half, half), bool)
    return build_model(
        np.stack([gaussian_filter(b.astype(np.float32), 0.7) for b in bounds]),
        radius < 50,
        affine,
        template_mm=places + np.array([0, 0, 150.0])[:, None, None, None],  # far from face and neck
        fibres=FibreMap(shares, directions, coarse),
        deep=nothing,
        ventricle=nothing,
        averaged=False,
    )
