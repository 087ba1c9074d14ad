"""What the voxels of one scan hold: a head model, posed, aged, distorted by its magnetic field, on any grid.

Every voxel is the share of each tissue among points 1-1.5 mm apart.  Smooth maps (pose, field, receive bias) are
computed on a grid of every fourth voxel or so and interpolated: this is what makes a new scan cost a fraction of
a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dmri_monai.phantom.head_model import DEPTH_STEP_MM, HeadModel
from dmri_monai.phantom.head_pose import HeadPose
from dmri_monai.phantom.head_shell import REGIONS

__all__ = ["CLASSES", "SampledHead", "sample_head"]

CLASSES = ("wm", "gm", "csf", "cord", "dura", "bone", "fat", "muscle", "vitreous", "mucosa", "air")
SAMPLE_MM = 1.5  # largest distance of the points that are averaged to a voxel, along each axis
MOST_SAMPLES = 4  # along an axis of a voxel
EVERY = 4  # voxels between the nodes of smooth maps
NO_TISSUE = 0.1  # evidence below which a place inside the hull is fluid
_AT = {name: i for i, name in enumerate(CLASSES)}
# layers from the brain's hull outwards, bounded by `HeadPose.layers_mm`
LAYERS = torch.tensor([_AT[n] for n in ("csf", "dura", "bone", "fat", "muscle", "air")])
OF_REGION = {"air": "air", "eye": "vitreous", "canal": "vitreous", "cord": "cord", "orbit": "fat"}


@dataclass(frozen=True)
class SampledHead:
    """fractions (K, V) of `CLASSES`, sum 1; gain (V,): receive bias, distortion and dephasing; deep (V,): of the grey
    matter.  Of the P voxels `index` (P,) with white or grey matter: shares (P, 3) of the fibre populations, directions
    (P, 3, 3) and normals (P, 3) of the cortex, world frame.
    """

    fractions: Tensor
    gain: Tensor
    index: Tensor
    shares: Tensor
    directions: Tensor
    normals: Tensor
    deep: Tensor


def sample_head(
    head: HeadModel, pose: HeadPose, affine: Tensor, shape: tuple[int, int, int], generator: torch.Generator
) -> SampledHead:
    """`head` in `pose` on the grid of `affine` (4, 4) and `shape`, with the noise of `generator` in its borders."""
    spacing = affine[:3, :3].norm(dim=0).tolist()
    counts = [min(max(2, math.ceil(s / SAMPLE_MM)), MOST_SAMPLES) for s in spacing]
    nodes, points = _nodes(affine, shape, counts)
    moved, gain = pose.distorted(points)
    inverse = torch.linalg.inv(pose.jacobian(moved))
    noise = torch.randn((4, len(points)), generator=generator)
    maps = torch.cat([pose.to_head(moved).T, noise]).view(-1, *nodes)
    fine = _interpolated(maps, [n * c for n, c in zip(shape, counts, strict=True)])
    labels = _labels(head, pose, fine)
    voxel = torch.arange(math.prod(shape)).view(shape)
    for axis, count in enumerate(counts):
        voxel = voxel.repeat_interleave(count, axis)
    size = len(CLASSES)
    counted = torch.bincount(voxel.flatten() * size + labels, minlength=math.prod(shape) * size)
    fractions = counted.view(-1, size).T / math.prod(counts)
    smooth = torch.cat([gain.view(1, -1), inverse.flatten(1).T]).view(10, *nodes)
    smooth = _interpolated(smooth, shape).flatten(1)
    place = functional.avg_pool3d(fine[None, :3], counts, counts)[0].flatten(1)
    index = torch.nonzero(fractions[0] + fractions[1] > 0).flatten()
    rows = _rows(head.fibres, head.fibre_affine, place[:, index])
    turned = _turned(rows[:, 3:15].view(-1, 4, 3), smooth[1:, index].T.reshape(-1, 3, 3))
    return SampledHead(
        fractions=fractions,
        gain=smooth[0],
        index=index,
        shares=rows[:, :3] / rows[:, :3].sum(1, keepdim=True).clamp(min=1e-6),
        directions=turned[:, :3],
        normals=turned[:, 3],
        deep=fractions.new_zeros(fractions.shape[1]).index_copy_(0, index, rows[:, 15] / 127),
    )


def _nodes(affine: Tensor, shape: tuple[int, int, int], counts: list[int]) -> tuple[list[int], Tensor]:
    """Sizes of the grid of nodes, and their world mm (M, 3): its corners are the outermost sampled points."""
    sizes = [max(2, math.ceil(n / EVERY) + 1) for n in shape]
    axes = []
    for n, count, nodes in zip(shape, counts, sizes, strict=True):
        margin = 0.5 - 0.5 / count
        axes.append(torch.linspace(-margin, n - 1 + margin, nodes))
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)
    return sizes, index @ affine[:3, :3].float().T + affine[:3, 3].float()


def _interpolated(maps: Tensor, shape: list[int] | tuple[int, ...]) -> Tensor:
    """(C, *shape) of maps (C, x, y, z), trilinear, corner to corner."""
    return functional.interpolate(maps[None], tuple(shape), mode="trilinear", align_corners=True)[0]


def _rows(volume: Tensor, affine: Tensor, places: Tensor) -> Tensor:
    """(P, C) float: `volume` (X, Y, Z, C) at the voxels nearest to `places` (3, P) mm, its border outside."""
    return volume.view(-1, volume.shape[-1])[_nearest(volume, affine, places)].float()


def _nearest(volume: Tensor, affine: Tensor, places: Tensor) -> Tensor:
    """(P,) flat index of the nearest voxels."""
    inverse = torch.linalg.inv(affine).float()
    flat = torch.zeros(places.shape[1], dtype=torch.int64)
    for axis, n in enumerate(volume.shape[:3]):
        position = (inverse[axis, :3] @ places).add_(inverse[axis, 3] + 0.5)
        flat.mul_(n).add_(position.clamp_(0, n - 0.5).long())
    return flat


def _labels(head: HeadModel, pose: HeadPose, fine: Tensor) -> Tensor:
    """(P,) index into `CLASSES` of the sampled points; fine: head mm (3), then noise (4), each (C, ...)."""
    fine = fine.flatten(1)
    packed = head.tissue.view(torch.int64).flatten()  # eight bytes are fetched at once
    rows = packed[_nearest(head.tissue, head.affine, fine[:3])].view(torch.uint8).view(-1, 8)
    depth = (rows[:, 3].float() - 128) * DEPTH_STEP_MM
    labels = torch.full((len(rows),), _AT["air"])
    inside = torch.nonzero(depth > 0).flatten()
    labels[inside] = _tissue(rows[inside], pose, fine[3:6, inside])
    around = torch.nonzero((depth <= 0) & ((depth > -pose.reach_mm) | (rows[:, 5] > 0))).flatten()
    labels[around] = _around(-depth[around], rows[around, 5], pose, fine[3:, around])
    return labels


def _tissue(rows: Tensor, pose: HeadPose, noise: Tensor) -> Tensor:
    """White matter, grey matter or fluid (0, 1, 2) of points inside the brain's hull."""
    evidence = rows[:, :3].T.float() / 255
    empty = evidence.sum(0) < NO_TISSUE
    evidence += pose.border_noise * noise + torch.tensor(pose.bias)[:, None]
    best = evidence.argmax(0)
    wet = (rows[:, 4].float() - 128) * DEPTH_STEP_MM > -pose.ventricle_mm
    best[wet | empty] = _AT["csf"]
    return best


def _around(outside_mm: Tensor, region: Tensor, pose: HeadPose, noise: Tensor) -> Tensor:
    """Class of points `outside_mm` (P,) from the brain's hull: layers, then what does not follow the brain."""
    varied = outside_mm * torch.exp(0.25 * noise[0])
    layer = torch.bucketize(varied, torch.tensor(pose.layers_mm))
    labels = LAYERS[layer]
    flesh = torch.where(
        noise[1] > 0.9, _AT["mucosa"], torch.where(noise[1] > -0.3, _AT["muscle"], _AT["fat"])
    )
    flesh = torch.where(noise[2] > 1.2, _AT["bone"], torch.where(noise[2] < -1.4, _AT["air"], flesh))
    soft = ((region == REGIONS.index("face")) | (region == REGIONS.index("neck"))) & (layer > 2)
    labels = torch.where(soft, flesh, labels)
    for name, kind in OF_REGION.items():
        here = (region == REGIONS.index(name)) & (layer > 1)
        labels = torch.where(here, _AT[kind], labels)
    lining = (region == REGIONS.index("air")) & (noise[3] > 1.0) & (layer > 1)
    return torch.where(lining, _AT["mucosa"], labels)


def _turned(vectors: Tensor, inverse: Tensor) -> Tensor:
    """(P, F, 3) unit world vectors of head `vectors` (P, F, 3): v ~ J^-1 t."""
    return functional.normalize(torch.einsum("pij,pfj->pfi", inverse, vectors), dim=-1)
