"""The heads that scans are streamed from: made once (some two minutes each), kept on disk, read in a second.

Sources: the MNI152 template (nilearn), and T1-weighted images of individuals in a folder.  Fibres: peaks measured in a
real brain where given, else the phantom's own atlas of bundles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage

from dmri_monai.io.writing import replacing
from dmri_monai.phantom.head_model import COARSE, HeadModel, build_model, load_model, save_model
from dmri_monai.phantom.head_registration import coordinates_in, directions_from, jacobian
from dmri_monai.phantom.individual_anatomy import brain_of_head, brain_tissue, read_t1
from dmri_monai.phantom.measured_fibres import FibreMap, carried, read_peaks
from dmri_monai.phantom.mni.populations import fibre_populations
from dmri_monai.phantom.mni.template import HEMISPHERE_BOX, VENTRICLE_DEPTH_MM, Template, load_template

__all__ = ["HeadSources", "head_models"]

log = logging.getLogger(__name__)

PADDING_MM = (
    (24.0, 24.0),
    (24.0, 24.0),
    (46.0, 24.0),
)  # around the brain: skull, scalp, and below a part of the neck
SUFFIX = ".head.npz"
BORDER, STRIPPED_SHARE = 2, 0.99  # a stripped brain leaves this share of the outermost voxels at 0
T1_WEIGHTS = (1.0, 0.6, 0.2)  # of white matter, grey matter and fluid in what is registered


@dataclass(frozen=True)
class HeadSources:
    """anatomy: folder of T1-weighted images `*_T1w.nii.gz`; a whole head is stripped, a stripped brain taken as it is.
    peaks, anisotropy: fibre peaks (X, Y, Z, 9; world frame) of a real brain, and its FA (X, Y, Z).  All may be None.
    """

    anatomy: Path | None = None
    peaks: Path | None = None
    anisotropy: Path | None = None


def head_models(cache: Path, sources: HeadSources | None = None) -> dict[str, HeadModel]:
    """Heads by name: all that the folder `cache` holds, and those of `sources`, made where it does not hold them yet.

    Without anatomy or peaks the MNI152 template and the phantom's atlas serve, and the log says so.
    ValueError without nilearn.
    """
    sources = sources or HeadSources()
    makers: dict[str, Callable[[], HeadModel]] = {"mni152": _template_head}
    for path in sorted(sources.anatomy.glob("*_T1w.nii.gz")) if sources.anatomy else []:
        makers[path.name.removesuffix("_T1w.nii.gz")] = partial(_individual, path, sources, cache)
    for name, make in makers.items():
        file = cache / f"{name}{SUFFIX}"
        if not file.is_file():
            log.info("making the head %s", name)
            save_model(file, make())
    models = {path.name.removesuffix(SUFFIX): load_model(path) for path in sorted(cache.glob(f"*{SUFFIX}"))}
    if len(models) == 1:
        log.warning("no individual anatomy: heads are made from the MNI152 template alone")
    elif sources.anatomy and not (sources.peaks and sources.anisotropy):
        log.warning("no measured fibre peaks: fibres follow the phantom's atlas")
    return models


def _template_head() -> HeadModel:
    """The MNI152 template with the fibres of the phantom's atlas."""
    template = load_template()
    white, grey = template.tissue.data.numpy()
    affine = np.eye(4)
    affine[:3, 3] = template.tissue.origin.numpy()
    hull = ndimage.zoom(template.shape.data[0].numpy() > 0, COARSE, order=0)
    evidence, hull, affine = _boxed(np.stack([white, grey, (1 - white - grey).clip(0, 1)]), hull, affine)
    coarse = _coarse_affine(affine)
    places = _grid_mm(coarse, tuple(n // COARSE for n in hull.shape))
    return _model(evidence, hull, affine, places, _atlas_fibres(template, evidence, places, coarse), True)


def _individual(path: Path, sources: HeadSources, cache: Path) -> HeadModel:
    t1, affine = read_t1(path)
    spacing = float(np.linalg.norm(affine[:3, :3], axis=0).mean())
    brain = ndimage.binary_fill_holes(t1 > 0) if _is_stripped(t1) else brain_of_head(t1, spacing)
    evidence, hull, affine = _boxed(brain_tissue(t1, brain), brain, affine)
    coarse = _coarse_affine(affine)
    template = load_template()
    places = coordinates_in(*_template_image(template), _t1_like(evidence), coarse)
    if sources.peaks and sources.anisotropy:
        fibres = carried(_measured(sources.peaks, sources.anisotropy, cache), places, coarse)
    else:
        fibres = _atlas_fibres(template, evidence, places, coarse)
    return _model(evidence, hull, affine, places, fibres, False)


def _is_stripped(t1: np.ndarray) -> bool:
    border = np.ones(t1.shape, bool)
    border[(slice(BORDER, -BORDER),) * 3] = False
    return float((t1[border] == 0).mean()) > STRIPPED_SHARE


def _model(
    evidence: np.ndarray,
    hull: np.ndarray,
    affine: np.ndarray,
    places: np.ndarray,
    fibres: FibreMap,
    averaged: bool,
) -> HeadModel:
    shape = load_template().shape.at(torch.from_numpy(places.reshape(3, -1).T).float())
    deep = (shape[:, 2] > 0).view(places.shape[1:]).numpy()
    ventricle = _ventricle(_blocks(evidence[2]) > 0.5, _blocks(hull) > 0.5, places, affine)
    return build_model(
        evidence, hull, affine,
        template_mm=places, fibres=fibres, deep=deep, ventricle=ventricle, averaged=averaged,
    )  # fmt: skip


def _ventricle(fluid: np.ndarray, hull: np.ndarray, places: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The largest connected fluid deep in the hemispheres."""
    spacing = COARSE * np.linalg.norm(affine[:3, :3], axis=0)
    inside = fluid & (ndimage.distance_transform_edt(hull, spacing) > VENTRICLE_DEPTH_MM)
    for axis, (low, high) in enumerate(HEMISPHERE_BOX):
        inside &= (places[axis] > low) & (places[axis] < high)
    labels, n = ndimage.label(inside)
    found: np.ndarray = labels == (1 + int(np.argmax(np.bincount(labels.ravel())[1:])) if n else -1)
    return found


def _measured(peaks: Path, anisotropy: Path, cache: Path) -> FibreMap:
    """Measured fibres in the template's space; the registration is kept in `cache` with the heads."""
    file = cache / "measured.fibres.npz"
    if not file.is_file():
        image = nibabel.load(anisotropy)
        reference, affine = _template_image(load_template())
        places = coordinates_in(np.asarray(image.dataobj, np.float32), image.affine, reference, affine)
        found = carried(read_peaks(peaks), places, affine)
        shares, directions = found.shares.astype(np.float16), found.directions.astype(np.float16)
        with replacing(file) as (temporary,), temporary.open("wb") as kept:
            np.savez_compressed(kept, affine=affine, shares=shares, directions=directions)
    with np.load(file, allow_pickle=False) as archive:
        return FibreMap(
            archive["shares"].astype(np.float32), archive["directions"].astype(np.float32), archive["affine"]
        )


def _atlas_fibres(
    template: Template, evidence: np.ndarray, places: np.ndarray, affine: np.ndarray
) -> FibreMap:
    """The phantom's bundles at `places` in the template (3, x, y, z), turned into the head's own space."""
    white = _blocks(evidence[0]) > 0.02
    shares = np.zeros((*white.shape, 3), np.float32)
    directions = np.zeros((*white.shape, 3, 3), np.float32)
    points = torch.from_numpy(places[:, white].T).float()
    found, along = fibre_populations(template, points)
    shares[white] = found.numpy()
    directions[white] = directions_from(along.numpy(), jacobian(places, affine)[white])
    nearest = ndimage.distance_transform_edt(~white, return_distances=False, return_indices=True)
    return FibreMap(shares[tuple(nearest)], directions[tuple(nearest)], affine)


def _template_image(template: Template) -> tuple[np.ndarray, np.ndarray]:
    """What is registered, at twice the template's spacing, and its affine."""
    white, grey = template.tissue.data.numpy()
    fluid = (1 - white - grey) * ndimage.zoom(template.shape.data[0].numpy() > 0, COARSE, order=0)
    affine = np.eye(4)
    affine[:3, 3] = template.tissue.origin.numpy()
    return _t1_like(np.stack([white, grey, fluid])), _coarse_affine(affine)


def _t1_like(evidence: np.ndarray) -> np.ndarray:
    return _blocks(np.tensordot(np.array(T1_WEIGHTS, np.float32), evidence, 1))


def _boxed(
    evidence: np.ndarray, hull: np.ndarray, affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes cut to the hull's box and `PADDING_MM`, an even number of voxels along each axis."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    filled = ndimage.binary_fill_holes(hull)
    box = ndimage.find_objects(filled.astype(np.uint8))[0]
    pads = [[int(round(p / s)) for p in pair] for pair, s in zip(PADDING_MM, spacing, strict=True)]
    for axis, part in enumerate(box):
        pads[axis][1] += (part.stop - part.start + sum(pads[axis])) % COARSE
    moved = affine.copy()
    first = [part.start - pad[0] for part, pad in zip(box, pads, strict=True)]
    moved[:3, 3] = affine[:3, :3] @ np.array(first) + affine[:3, 3]
    inside = evidence[(slice(None), *box)] * filled[box]
    return np.pad(inside, [(0, 0), *pads]), np.pad(filled[box], pads), moved


def _coarse_affine(affine: np.ndarray) -> np.ndarray:
    """Of blocks of `COARSE` voxels, by their centres."""
    coarse = affine.copy()
    coarse[:3, :3] *= COARSE
    coarse[:3, 3] += affine[:3, :3] @ np.full(3, (COARSE - 1) / 2)
    return coarse


def _blocks(volume: np.ndarray) -> np.ndarray:
    """Means of blocks of `COARSE` voxels an axis."""
    x, y, z = (n // COARSE for n in volume.shape)
    cut = volume[: x * COARSE, : y * COARSE, : z * COARSE].astype(np.float32)
    means: np.ndarray = cut.reshape(x, COARSE, y, COARSE, z, COARSE).mean((1, 3, 5))
    return means


def _grid_mm(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(3, x, y, z) world mm of the voxel centres."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    places: np.ndarray = np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3, None, None, None]
    return places
