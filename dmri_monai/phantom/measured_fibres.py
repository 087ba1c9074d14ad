"""Fibre populations measured in a real brain, smoothed and brought into another head's space."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

from dmri_monai.phantom.head_registration import directions_from, jacobian

__all__ = ["MAX_FIBRES", "FibreMap", "carried", "read_peaks"]

MAX_FIBRES = 3
SMOOTHING = 2  # rounds of averaging each population with the most similar ones of the six neighbours
ALIKE = 0.8  # cosine from which two neighbouring populations are one bundle
LEAST_SHARE = 0.12  # weaker peaks of a deconvolution are noise


@dataclass(frozen=True)
class FibreMap:
    """shares (X, Y, Z, 3), descending, sum 1 or 0; directions (X, Y, Z, 3, 3) unit, in the world frame (RAS+) of
    `affine` (4, 4), mm.
    """

    shares: np.ndarray
    directions: np.ndarray
    affine: np.ndarray


def read_peaks(path: Path) -> FibreMap:
    """Peaks (X, Y, Z, 9) of a deconvolution, x y z in the world frame, NaN or 0 for none, as TractSeg writes them.

    Every voxel without a peak takes those of the nearest with one.  ValueError for another number of values.
    """
    image = nibabel.load(path)
    if image.ndim != 4 or image.shape[3] != 3 * MAX_FIBRES:
        raise ValueError(f"peaks have shape {image.shape}, expected (X, Y, Z, {3 * MAX_FIBRES}): {path}")
    peaks = np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32))
    vectors = peaks.reshape(*peaks.shape[:3], MAX_FIBRES, 3)
    size = np.linalg.norm(vectors, axis=-1)
    shares = size / size.sum(-1, keepdims=True).clip(1e-9)
    shares[shares < LEAST_SHARE] = 0
    directions = vectors / size[..., None].clip(1e-9)
    empty = size[..., 0] == 0
    nearest = ndimage.distance_transform_edt(empty, return_distances=False, return_indices=True)
    shares, directions = shares[tuple(nearest)], directions[tuple(nearest)]
    for _ in range(SMOOTHING):
        shares, directions = _smoothed(shares, directions)
    return FibreMap(*_ordered(shares, directions), image.affine)


def carried(fibres: FibreMap, coordinates: np.ndarray, affine: np.ndarray) -> FibreMap:
    """`fibres` in another head: `coordinates` (3, X, Y, Z) are the places of its voxels (of `affine`) in theirs.

    Directions turn with the Jacobian of the map; the nearest voxel outside the field of view counts.
    """
    index = np.linalg.inv(fibres.affine)
    place = np.tensordot(index[:3, :3], coordinates, 1) + index[:3, 3, None, None, None]
    sizes = np.array(fibres.shares.shape[:3]).reshape(3, 1, 1, 1)
    i, j, k = np.rint(place).astype(int).clip(0, sizes - 1)
    turned = directions_from(fibres.directions[i, j, k], jacobian(coordinates, affine))
    return FibreMap(*_ordered(*_smoothed(fibres.shares[i, j, k], turned.astype(np.float32))), affine)


def _smoothed(shares: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every population averaged with the most similar one of each of the six neighbours, where that is alike."""
    weighted, total = 2 * shares[..., None] * directions, 2 * shares
    for axis in range(3):
        for step in (-1, 1):
            near_shares = np.roll(shares, step, axis)
            near = np.roll(directions, step, axis)
            cosine = np.einsum("...fi,...gi->...fg", directions, near) * (near_shares[..., None, :] > 0)
            best = np.abs(cosine).argmax(-1)
            value = np.take_along_axis(cosine, best[..., None], -1)[..., 0]
            other = np.take_along_axis(near, best[..., None], -2) * np.sign(value)[..., None]
            weight = np.take_along_axis(near_shares, best, -1) * (np.abs(value) > ALIKE) * (shares > 0)
            weighted += weight[..., None] * other
            total += weight
    size = np.linalg.norm(weighted, axis=-1, keepdims=True)
    unit = np.where(size > 0, weighted / size.clip(1e-9), directions)
    return total / total.sum(-1, keepdims=True).clip(1e-9), unit


def _ordered(shares: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-shares, axis=-1)
    sorted_shares = np.take_along_axis(shares, order, -1)
    unit = sorted_shares / sorted_shares.sum(-1, keepdims=True).clip(1e-9)
    return unit, np.take_along_axis(directions, order[..., None], -2)
