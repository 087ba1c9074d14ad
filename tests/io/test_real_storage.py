"""The thirteen real scans of five vendors: what is read does not depend on how their arrays are stored."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from dmri_monai.io import read_dwi, scans
from dmri_monai.io.datasets import subjects

NAMES = [
    "canon_acq-axial", "canon_acq-oblique", "canon_acq-sagittal", "canon_acq-turned", "decubitus_acq-left",
    "decubitus_acq-supine", "philips2mm", "philips3mm", "siemenssagittal_dir-AP", "siemenssagittal_dir-HF", "tilted",
    "toshiba_acq-axial", "toshiba_acq-oblique",
]  # fmt: skip
STORED = {
    "RAS": "right",
    "LAS": "left",
    "PSR": "left",
    "IRP": "right",
    "LPS": "right",
}  # codes: a handedness each


@pytest.fixture(scope="module")
def real(shared_dir) -> Path:
    return shared_dir / "data" / "real"


def path_of(real: Path, name: str) -> Path:
    return real / f"sub-{name.split('_')[0]}" / "dwi" / f"sub-{name}_dwi.nii.gz"


def by_hand(path: Path) -> tuple[nibabel.Nifti1Image, np.ndarray, np.ndarray]:
    """Image, b-values (N,) and world vectors (N, 3), by nibabel and NumPy alone."""
    image, stem = nibabel.load(path), str(path).removesuffix(".nii.gz")
    bvals, along = np.loadtxt(f"{stem}.bval"), np.loadtxt(f"{stem}.bvec").T
    u, _, vt = np.linalg.svd(image.affine[:3, :3])
    if np.linalg.det(u @ vt) > 0:
        along = along * [-1, 1, 1]
    world = along @ (u @ vt).T
    norms = np.linalg.norm(world, axis=1, keepdims=True)
    weighted = (bvals > 50)[:, None]
    return image, bvals, np.where(weighted, world / np.where(weighted, norms, 1), 0)


def block(path: Path, folder: Path, codes: str | None = None, *, keep_rows: bool = False) -> Path:
    """The middle of a scan, stored with array axes `codes`; keep_rows: with the `.bvec` of the scan as it was."""
    image, bvals, world = by_hand(path)
    middle = tuple(slice(n // 2 - 6, n // 2 + 6) for n in image.shape[:3])
    part = image.slicer[middle]
    data, affine = np.asarray(part.dataobj), part.affine
    if codes:
        turn = ornt_transform(nibabel.io_orientation(affine), axcodes2ornt(codes))
        affine = affine @ inv_ornt_aff(turn, data.shape[:3])
        data = apply_orientation(data, turn)
    target = folder / "block.nii"
    nibabel.save(nibabel.Nifti1Image(data, affine), target)
    u, _, vt = np.linalg.svd((part.affine if keep_rows else affine)[:3, :3])
    along = world @ (u @ vt)
    along = along * [-1, 1, 1] if np.linalg.det(u @ vt) > 0 else along
    np.savetxt(folder / "block.bval", bvals[None], fmt="%g")
    np.savetxt(folder / "block.bvec", along.T, fmt="%.10f")
    return target


def principal(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """World principal directions (M, 3) by DIPY, in world order of the voxels, and which are well defined (M,)."""
    image, table = read_dwi(path)
    data = np.moveaxis(image.numpy().astype(np.float64), 0, -1)
    fit = TensorModel(gradient_table(table.bvals.numpy(), bvecs=table.bvecs.numpy(), b0_threshold=50)).fit(
        data
    )
    ijk = np.indices(data.shape[:3]).reshape(3, -1)
    places = np.round(np.asarray(image.affine)[:3, :3] @ ijk + np.asarray(image.affine)[:3, 3:], 2)
    order = np.lexsort(places)
    clear = (fit.fa > 0.3) & (data[..., table.b0_mask.numpy()].mean(-1) > 0.2 * data.max())
    return fit.evecs[..., 0].reshape(-1, 3)[order], clear.ravel()[order]


@pytest.mark.parametrize("name", NAMES)
def test_a_real_scan_is_read_as_by_hand_and_without_a_warning(real, name):
    path = path_of(real, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, table = read_dwi(path)
    expected, bvals, world = by_hand(path)
    np.testing.assert_array_equal(
        image.numpy()[::7], np.moveaxis(expected.get_fdata(dtype=np.float32), -1, 0)[::7]
    )
    np.testing.assert_allclose(image.affine, expected.affine)
    np.testing.assert_array_equal(table.bvals, bvals)
    np.testing.assert_allclose(table.bvecs, world, atol=1e-9)


def test_the_folder_of_real_scans_is_a_data_set(real):
    assert [Path(item["image"]).name for item in scans(real)] == [f"sub-{name}_dwi.nii.gz" for name in NAMES]
    parts = subjects(real, {"train": 0.5, "val": 0.5}, filters={"acq": None, "dir": None})
    assert sum(map(len, parts.values())) == 3


@pytest.mark.parametrize("codes", STORED)
@pytest.mark.parametrize("name", NAMES)
def test_storage_changes_no_world_vector_of_a_real_scan(real, tmp_path, name, codes):
    path = block(path_of(real, name), tmp_path, codes)
    image, table = read_dwi(path)
    assert nibabel.aff2axcodes(image.affine.numpy()) == tuple(codes)
    assert (np.linalg.det(image.affine[:3, :3]) > 0) == (STORED[codes] == "right")
    np.testing.assert_allclose(table.bvecs, by_hand(path_of(real, name))[2], atol=1e-6)


@pytest.mark.parametrize(
    "name", ["canon_acq-oblique", "siemenssagittal_dir-AP", "decubitus_acq-left", "tilted"]
)
def test_storage_changes_no_world_principal_direction_of_a_real_scan(real, tmp_path, name):
    expected, clear = principal(block(path_of(real, name), tmp_path))
    assert clear.sum() > 50
    for codes in STORED:
        found, _ = principal(block(path_of(real, name), tmp_path, codes))
        cosines = np.abs((found * expected).sum(-1))[clear]
        assert np.degrees(np.arccos(np.clip(cosines, 0, 1))).max() < 0.1, codes


@pytest.mark.parametrize("codes", ["PSR", "IRP"])
def test_the_vectors_of_another_storage_would_be_far_off(real, tmp_path, codes):
    """The control: the file's vectors do depend on the storage, so keeping them would show."""
    name = "canon_acq-oblique"
    expected, clear = principal(block(path_of(real, name), tmp_path))
    found, _ = principal(block(path_of(real, name), tmp_path, codes, keep_rows=True))
    cosines = np.abs((found * expected).sum(-1))[clear]
    assert np.degrees(np.median(np.arccos(np.clip(cosines, 0, 1)))) > 20
