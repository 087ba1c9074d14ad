"""Tissue of individual heads from T1-weighted images: brain, then white matter, grey matter and fluid.

Averaged templates have no sharp cortex; an individual's has.  The segmentation is a hidden Markov random field
(Zhang, Brady and Smith 2001, doi:10.1109/42.906424; DIPY's `TissueClassifierHMRF`), some 15 s a brain.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

__all__ = ["brain_of_head", "brain_tissue", "read_t1"]

CLASSES = 3  # by rising T1-weighted signal: fluid, grey matter, white matter
SMOOTHNESS = 0.1  # weight of the neighbours in the random field
ITERATIONS = 12
CORE_MM = 4.5  # depth of the core from which the brain is grown back; muscles that are as thick lie apart
LINK_MM = 1.5  # nerves and vessels that join brain and scalp are thinner than twice this
GYRUS_MM = 12.0  # from the core to the crown of a gyrus
SULCUS_MM = 11.0  # half the width of what is closed between gyri and lobes
BRAIN_RANGE = (0.55, 1.35)  # of the white matter's signal: grey and white matter, but neither fat nor bone


def read_t1(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) float32, axes to the nearest of right, anterior, superior, and its (4, 4) affine in mm.

    ValueError, naming the file, for an image that is not three-dimensional or not finite.
    """
    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, dtype=np.float32)
    if values.ndim != 3:
        raise ValueError(f"T1-weighted image has {values.ndim} axes {values.shape}, expected 3: {path}")
    if not np.isfinite(values).all():
        raise ValueError(f"T1-weighted image has voxels that are NaN or infinite: {path}")
    return values, image.affine


def brain_of_head(t1: np.ndarray, spacing_mm: float) -> np.ndarray:
    """(X, Y, Z) bool: the brain in a whole head, by opening what has the signal of grey or white matter.

    The white matter's signal is the highest mode of the head's inner half; thresholds are relative to it.
    """
    white = _white_level(t1)
    tissue = ndimage.median_filter(t1, 3)
    tissue = (tissue > BRAIN_RANGE[0] * white) & (tissue < BRAIN_RANGE[1] * white)
    depth = ndimage.distance_transform_edt(tissue, spacing_mm)
    core = _largest(depth > CORE_MM)
    cut = ndimage.distance_transform_edt(depth <= LINK_MM, spacing_mm) > 0  # without vessels and nerves
    for _ in range(round(GYRUS_MM / spacing_mm)):
        core = core | (ndimage.binary_dilation(core) & cut)
    near = ndimage.distance_transform_edt(~core, spacing_mm) < LINK_MM + 1.0
    brain = core | (near & tissue)
    closed = ndimage.distance_transform_edt(~brain, spacing_mm) < SULCUS_MM
    filled = ndimage.binary_fill_holes(closed)
    whole: np.ndarray = ndimage.distance_transform_edt(filled, spacing_mm) > SULCUS_MM - 2.5
    return whole


def brain_tissue(t1: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """(3, X, Y, Z) float32 posterior probabilities of white matter, grey matter and fluid in `brain`, 0 outside.

    ValueError where the random field does not converge, as on an image without noise.
    """
    from dipy.segment.tissue import TissueClassifierHMRF

    box = ndimage.find_objects(brain.astype(np.uint8))[0]
    inside = np.where(brain, t1, 0.0)[box].astype(np.float64)
    ceiling = np.percentile(inside[inside > 0], 99.5)  # vessels and fat that the stripping left
    classify = TissueClassifierHMRF(verbose=False).classify
    _, _, posterior = classify(np.minimum(inside, ceiling), CLASSES, SMOOTHNESS, max_iter=ITERATIONS)
    if not np.isfinite(posterior).all():
        raise ValueError("no three tissues found in the T1-weighted image: the random field did not converge")
    result = np.zeros((CLASSES, *t1.shape), np.float32)
    result[(slice(None), *box)] = np.moveaxis(posterior[..., ::-1], -1, 0) * brain[box]
    return result


def _white_level(t1: np.ndarray) -> float:
    """Signal of white matter: the highest peak of the histogram's upper half in the middle of the head."""
    middle = t1[tuple(slice(n // 4, -n // 4) for n in t1.shape)]
    head = middle[middle > 0.2 * np.percentile(middle, 99)]
    if not head.size:
        raise ValueError("no brain found: the middle of the image is empty")
    counts, edges = np.histogram(head, 128, (0, float(np.percentile(head, 99.5))))
    smooth = ndimage.gaussian_filter1d(counts.astype(float), 2)
    upper = min(int(np.searchsorted(edges, np.median(head))), len(counts)) - 1
    return float(edges[upper + int(smooth[upper:].argmax())])


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    if n == 0:
        raise ValueError("no brain found: nothing has the signal of white and grey matter")
    found: np.ndarray = labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
    return found
