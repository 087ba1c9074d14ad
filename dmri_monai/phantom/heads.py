"""One subject on one grid, of either anatomy: tissue, microstructure, signal and truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.anatomy import TISSUES, Anatomy
from dmri_monai.phantom.fields import Seed
from dmri_monai.phantom.lesions import Lesions
from dmri_monai.phantom.microstructure import Contrast, Microstructure
from dmri_monai.phantom.scan_plan import AnatomyName
from dmri_monai.phantom.signal import simulate

__all__ = ["Head", "build_head"]


@dataclass(frozen=True)
class Head:
    """fractions (6, V) of `TISSUES` and lesion load (V,) over the flattened grid; compartments of its P voxels.

    signal: table -> (N, P) noise-free signal.  maps: name -> (V,) or (C, V) further truth.
    parameters: what was drawn, for the sidecar.
    """

    fractions: Tensor
    lesion: Tensor
    micro: Microstructure
    contrast: Contrast
    signal: Callable[[GradientTable], Tensor]
    maps: dict[str, Tensor] = field(default_factory=dict)
    parameters: dict[str, object] = field(default_factory=dict)


def build_head(
    anatomy: AnatomyName,
    seed: Seed,
    *,
    affine: Tensor,
    shape: tuple[int, int, int],
    points: Tensor,
    wide: bool,
) -> Head:
    """Subject `seed`'s head on the grid of `affine` (4, 4), whose voxel centres are `points` (V, 3), world mm.

    wide: relaxation and timing vary as between scanners.  ValueError for "mni152" without nilearn.
    """
    if anatomy == "mni152":
        return _mni152(seed, affine, shape, points, wide)
    return _procedural(seed, affine, shape, points)


def _procedural(seed: Seed, affine: Tensor, shape: tuple[int, int, int], points: Tensor) -> Head:
    anatomy, contrast = Anatomy.draw(seed), Contrast.draw(seed)
    fractions = anatomy.voxel_fractions(affine, shape)
    micro = Microstructure.build(seed, anatomy, contrast, points_world=points, fractions=fractions)
    return Head(
        fractions=fractions,
        lesion=Lesions.draw(seed, anatomy).at(points),
        micro=micro,
        contrast=contrast,
        signal=lambda table: simulate(micro, contrast, table).T,
    )


def _mni152(seed: Seed, affine: Tensor, shape: tuple[int, int, int], points: Tensor, wide: bool) -> Head:
    from dmri_monai.phantom import mni

    anatomy = mni.MniAnatomy.draw(seed, points.device)
    contrast = mni.draw_contrast(seed, wide=wide)
    fractions = anatomy.voxel_fractions(affine, shape)
    lesions = mni.MsLesions.draw(seed, anatomy)
    micro = mni.build_microstructure(
        seed, anatomy, contrast, lesions, points_world=points, fractions=fractions
    )
    load = fractions.new_zeros(fractions.shape[1])
    white = torch.nonzero(fractions[TISSUES.index("wm")] > 0).flatten()
    load[white] = lesions.at(points[white])
    return Head(
        fractions=fractions,
        lesion=load,
        micro=micro,
        contrast=contrast,
        signal=lambda table: mni.simulate_by_harmonics(micro, contrast, table),
        maps=mni.truth_maps(anatomy, micro, points, fractions),
        parameters={"Anatomy": anatomy.parameters(), "Lesions": lesions.parameters()},
    )
