"""Harmonic images against MRtrix3's definition of its basis and its numbers on a real scan, and DIPY's converter."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from scipy.special import lpmv

from dmri_monai.gradients import grid_rotation
from dmri_monai.io import read_dwi, read_harmonics, read_nifti, write_harmonics
from dmri_monai.qspace.shell_fit import sh_fit_matrix
from dmri_monai.so3 import n_coefficients, sh_basis
from dmri_monai.transforms import DirectionsToVoxelFramed, LoadHarmonicsd
from tests.transforms.fields import ORIENTATIONS, SPACINGS, affine_of, directions

SHAPE = (4, 3, 2)
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "mrtrix_dwi"
GRIDS = [(o, s) for o in ORIENTATIONS for s in ("iso", "thick")]
# voxel (3, 4, 5) of the real scan, by MRtrix3 3.0.3: `amp2sh -lmax 4 -shells 3000`, then `sh2amp` of it
AMP2SH = (65.32524, 6.10457, -3.67238, -0.33034, 3.70921, -8.87912, 13.53841, -0.5778, 1.7638, -1.52071,
          -3.6485, 0.58221, 5.17184, -0.42239, 0.88261)  # fmt: skip
SH2AMP = {
    (0.6, 0, 0.8): 18.34947,
    (-0.48, 0.6, 0.64): 21.07484,
    (0, -0.8, 0.6): 19.25242,
    (0.36, 0.48, -0.8): 19.46044,
}


def mrtrix_basis(points: np.ndarray, l_max: int) -> np.ndarray:
    """(N, n_coef) by the definition in MRtrix3's documentation: sqrt 2 Im Y_l^-m, Y_l^0, sqrt 2 Re Y_l^m.

    lpmv holds the Condon-Shortley phase, as MRtrix3's Legendre functions do.
    """
    azimuth, columns = np.arctan2(points[:, 1], points[:, 0]), []
    for order in range(0, l_max + 1, 2):
        for m in range(-order, order + 1):
            factorials = np.prod(np.arange(order - abs(m) + 1, order + abs(m) + 1, dtype=float))
            norm = np.sqrt((2 * order + 1) / (4 * np.pi) / factorials)
            legendre = norm * lpmv(abs(m), order, points[:, 2])
            wave = np.sin(-m * azimuth) if m < 0 else np.cos(m * azimuth)
            columns.append(legendre * wave * (np.sqrt(2) if m else 1.0))
    return np.stack(columns, axis=1)


def coefficients(l_max: int = 4, seed: int = 0) -> np.ndarray:
    """(n_coef, X, Y, Z) float32 random functions."""
    return np.random.default_rng(seed).normal(size=(n_coefficients(l_max), *SHAPE)).astype(np.float32)


def grid(orientation: str, spacing: str) -> np.ndarray:
    return affine_of(orientation, SPACINGS[spacing], SHAPE)


def stored(path: Path, values: np.ndarray, affine: np.ndarray) -> Path:
    """An image as MRtrix3 writes it: coefficients as volumes, of world directions."""
    nibabel.save(nibabel.Nifti1Image(np.moveaxis(values, 0, -1), affine), path)
    return path


def amplitudes(basis: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.einsum("nc,cxyz->nxyz", basis, values)


@pytest.mark.parametrize("l_max", [0, 2, 8])
@pytest.mark.parametrize(("orientation", "spacing"), GRIDS, ids=["-".join(g) for g in GRIDS])
def test_an_image_read_is_the_same_function_of_world_directions(tmp_path, orientation, spacing, l_max):
    theirs, points = coefficients(l_max), directions(50)
    image = read_harmonics(stored(tmp_path / "fod.nii.gz", theirs, grid(orientation, spacing)))
    ours = amplitudes(sh_basis(torch.tensor(points), l_max).numpy(), image.as_tensor().double().numpy())
    np.testing.assert_allclose(ours, amplitudes(mrtrix_basis(points, l_max), theirs), atol=1e-5)
    np.testing.assert_allclose(image.affine.numpy(), grid(orientation, spacing), atol=1e-5)


def test_amplitudes_are_those_of_mrtrix(tmp_path):
    values = np.broadcast_to(np.array(AMP2SH).reshape(-1, 1, 1, 1), (15, *SHAPE)).astype(np.float32)
    image = read_harmonics(stored(tmp_path / "fod.nii", values, grid("oblique", "iso")))
    points = torch.tensor(list(SH2AMP), dtype=torch.float64)
    ours = (sh_basis(points, 4) @ image[:, 0, 0, 0].as_tensor().double()).numpy()
    np.testing.assert_allclose(ours, list(SH2AMP.values()), atol=2e-4)
    turned = (sh_basis(points[:, [1, 0, 2]], 4) @ image[:, 0, 0, 0].as_tensor().double()).numpy()
    assert np.abs(turned - list(SH2AMP.values())).max() > 1


@pytest.mark.skipif(not FOLDER.exists(), reason=f"the real scan is not there: {FOLDER}")
def test_coefficients_fitted_to_a_real_scan_are_those_of_mrtrix(tmp_path):
    """Fitted in the voxel frame of the oblique grid, written, and compared with what `amp2sh` writes."""
    image, table = read_dwi(FOLDER / "dwi.nii.gz")
    shell = table.shells()[-1].indices
    fit = sh_fit_matrix(table.in_voxel_frame(image.affine)[shell], 4, smoothing=0.0)
    field = torch.einsum("cn,nxyz->cxyz", fit, image.as_tensor()[shell].double())
    write_harmonics(tmp_path / "sh.nii", MetaTensor(field, affine=image.affine), frame="voxel")
    written = nibabel.load(tmp_path / "sh.nii").get_fdata()[3, 4, 5]
    np.testing.assert_allclose(written, AMP2SH, atol=1e-4)


@pytest.mark.parametrize(("orientation", "spacing"), GRIDS, ids=["-".join(g) for g in GRIDS])
def test_voxel_frame_coefficients_are_written_in_world_directions(tmp_path, orientation, spacing):
    affine, points = grid(orientation, spacing), directions(50)
    field = MetaTensor(torch.tensor(coefficients()), affine=torch.tensor(affine))
    write_harmonics(tmp_path / "fod.nii.gz", field, frame="voxel")
    values = np.moveaxis(nibabel.load(tmp_path / "fod.nii.gz").get_fdata(), -1, 0)
    voxel = points @ grid_rotation(torch.tensor(affine)).numpy()
    expected = amplitudes(sh_basis(torch.tensor(voxel), 4).numpy(), field.as_tensor().double().numpy())
    np.testing.assert_allclose(amplitudes(mrtrix_basis(points, 4), values), expected, atol=1e-5)
    # the control: taking voxel directions for world directions is another function, whatever the grid but RAS
    stale = amplitudes(sh_basis(torch.tensor(points), 4).numpy(), field.as_tensor().double().numpy())
    assert (np.abs(stale - expected).max() > 0.5) == (orientation != "RAS")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_dipy_converts_its_own_form_of_a_field_into_the_one_of_mrtrix(tmp_path, orientation):
    """`convert_sh_descoteaux_tournier` goes from legacy descoteaux07 to MRtrix3's basis, and knows nothing of ours."""
    from dipy.reconst.shm import convert_sh_descoteaux_tournier

    field = MetaTensor(torch.tensor(coefficients()), affine=torch.tensor(grid(orientation, "aniso")))
    write_harmonics(tmp_path / "dipy.nii", field, frame="voxel", basis="descoteaux07", legacy=True)
    write_harmonics(tmp_path / "mrtrix.nii", field, frame="voxel")
    dipy, mrtrix = (nibabel.load(tmp_path / f"{name}.nii").get_fdata() for name in ("dipy", "mrtrix"))
    np.testing.assert_allclose(convert_sh_descoteaux_tournier(dipy), mrtrix, atol=1e-5)
    assert np.abs(dipy - mrtrix).max() > 0.1


@pytest.mark.parametrize("frame", ["world", "voxel"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_there_and_back_is_the_identity(tmp_path, orientation, frame):
    field = MetaTensor(torch.tensor(coefficients()), affine=torch.tensor(grid(orientation, "thick")))
    write_harmonics(tmp_path / "fod.nii.gz", field, frame=frame)
    back = {"fod": read_harmonics(tmp_path / "fod.nii.gz")}
    if frame == "voxel":
        back = DirectionsToVoxelFramed("fod", kind=back["fod"].meta["irreps"])(back)
    torch.testing.assert_close(back["fod"].as_tensor(), field.as_tensor(), atol=1e-5, rtol=0)


def test_the_frame_a_field_says_it_is_in_is_believed(tmp_path):
    stored(tmp_path / "fod.nii", coefficients(), grid("oblique", "iso"))
    world = LoadHarmonicsd("fod")({"fod": tmp_path / "fod.nii"})
    with pytest.raises(ValueError, match="frame is 'voxel', the coefficients are in the world frame"):
        write_harmonics(tmp_path / "out.nii", world["fod"], frame="voxel")
    voxel = DirectionsToVoxelFramed("fod", kind="1x0e+1x2e+1x4e")(world)["fod"]
    with pytest.raises(ValueError, match=r"frame is 'world', .* voxel frame, for .*out.nii"):
        write_harmonics(tmp_path / "out.nii", voxel)
    assert not (tmp_path / "out.nii").exists()


def test_harmonics_are_not_turned_as_peaks(tmp_path):
    stored(tmp_path / "fod.nii", coefficients(), grid("oblique", "iso"))
    item = LoadHarmonicsd("fod")({"fod": tmp_path / "fod.nii"})
    with pytest.raises(ValueError, match=r"'fod' holds harmonics, not peaks: give kind='1x0e\+1x2e\+1x4e'"):
        DirectionsToVoxelFramed("fod")(item)


def test_another_number_of_volumes_is_an_error_naming_the_file(tmp_path):
    stored(tmp_path / "dwi.nii", coefficients()[:14], np.eye(4))
    with pytest.raises(ValueError, match=r"14 is not a number of even harmonics .*dwi.nii"):
        read_harmonics(tmp_path / "dwi.nii")
    field = MetaTensor(torch.zeros(16, *SHAPE), affine=torch.eye(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"16 is not a number of even harmonics .*out.nii"):
        write_harmonics(tmp_path / "out.nii", field)


def test_coefficients_without_affine_are_refused(tmp_path):
    with pytest.raises(TypeError, match="expected MetaTensor with an affine"):
        write_harmonics(tmp_path / "out.nii", torch.zeros(6, *SHAPE))  # type: ignore[arg-type]


def test_voxels_outside_the_mask_stay_nan(tmp_path):
    values = coefficients()
    values[:, 0] = np.nan
    image = read_harmonics(stored(tmp_path / "fod.nii", values, grid("oblique", "iso")))
    assert image[:, 0].isnan().all()
    assert image[:, 1:].isfinite().all()


@pytest.mark.skipif(not FOLDER.exists(), reason=f"the real scan is not there: {FOLDER}")
def test_a_field_made_of_mrtrix_tensors_follows_the_real_oblique_grid(tmp_path):
    """g^T D g of MRtrix3's world-frame tensors, as harmonics in a file, sampled in the voxel frame after a flip."""
    import monai.transforms as mt

    tensors = read_nifti(FOLDER / "tensor_world.nii.gz")
    xx, yy, zz, xy, xz, yz = np.nan_to_num(tensors.as_tensor().double().numpy()) * 1e3
    form = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(*xx.shape, 3, 3)
    points = directions(60)
    values = np.linalg.lstsq(
        mrtrix_basis(points, 2),
        np.einsum("ni,xyzij,nj->nxyz", points, form, points).reshape(60, -1),
        rcond=None,
    )[0].reshape(6, *xx.shape)
    path = stored(tmp_path / "adc.nii", values.astype(np.float32), tensors.affine.numpy())
    pipeline = mt.Compose(
        [LoadHarmonicsd("adc"), mt.Flipd("adc", 0), DirectionsToVoxelFramed("adc", kind="1x0e+1x2e")]
    )
    field = pipeline({"adc": path})["adc"]
    voxel = points @ grid_rotation(field.affine).numpy()
    ours = amplitudes(sh_basis(torch.tensor(voxel), 2).numpy(), field.as_tensor().double().numpy())
    expected = np.einsum("ni,xyzij,nj->nxyz", points, form[::-1], points)
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    stale = amplitudes(sh_basis(torch.tensor(points), 2).numpy(), field.as_tensor().double().numpy())
    assert np.abs(stale - expected).max() > 0.3
