from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import GradientTable
from dmri_monai.io import read_nifti, write_dwi
from dmri_monai.io.bids import data_list
from dmri_monai.reference import PeakRule, fibre_labels, write_labels
from tests.transforms.fields import affine_of, axial_degrees, directions

SHAPE = (8, 6, 5)
FIRST, SECOND = np.array([0.8, 0.6, 0.0]), np.array([-0.36, 0.48, 0.8])  # world, at right angles


def table(n: int = 60, b: float = 3000.0) -> GradientTable:
    bvals = torch.tensor([0.0, 0.0] + [b] * n)
    return GradientTable(bvals, torch.tensor(np.r_[np.zeros((2, 3)), directions(n)]))


def scan(gradients: GradientTable, seed: int = 0) -> torch.Tensor:
    """x < 3: one fibre; 3 <= x < 6: two crossing; x >= 6: free water.  Rician noise, SNR 40."""
    b, g = gradients.bvals.numpy(), gradients.bvecs.numpy()
    fibres = [np.exp(-b * (0.3e-3 + 1.4e-3 * (g @ v) ** 2)) for v in (FIRST, SECOND)]
    signal = np.zeros((len(b), *SHAPE))
    signal[:, :3] = fibres[0][:, None, None, None]
    signal[:, 3:6] = 0.5 * (fibres[0] + fibres[1])[:, None, None, None]
    signal[:, 6:] = np.exp(-b * 3e-3)[:, None, None, None]
    noise = np.random.default_rng(seed).normal(scale=1 / 40, size=(2, *signal.shape))
    return torch.tensor(100 * np.hypot(signal + noise[0], noise[1]), dtype=torch.float32)


MASK = torch.ones(SHAPE, dtype=torch.bool)


@pytest.fixture(scope="module")
def labels():
    return fibre_labels(scan(table()), table(), mask=MASK)


def test_single_fibres_crossings_and_water_have_one_two_and_no_peaks(labels):
    for where, count in ((slice(0, 3), 1), (slice(3, 6), 2), (slice(6, 8), 0)):
        assert float((labels.npeaks[where] == count).float().mean()) > 0.9, count


def test_peaks_lie_along_the_fibres_in_the_world_frame(labels):
    one = labels.peaks_world[:3, :3].movedim(0, -1).numpy()
    assert (
        np.nanmedian(axial_degrees(one, FIRST)) < 4
    )  # DIPY's default sphere has points about 9 degrees apart
    both = labels.peaks_world[:6, 3:6].unflatten(0, (2, 3)).movedim((0, 1), (-2, -1)).numpy()
    for fibre in (FIRST, SECOND):
        assert np.nanmedian(np.nanmin(axial_degrees(both, fibre), axis=-1)) < 6


def test_absent_peaks_are_nan_and_counted_so(labels):
    finite = labels.peaks_world.unflatten(0, (3, 3)).isfinite().all(dim=1).sum(0)
    torch.testing.assert_close(finite, labels.npeaks.long())


def test_peaks_are_sorted_by_amplitude(labels):
    length = labels.peaks_world.unflatten(0, (3, 3)).norm(dim=1).nan_to_num(0.0)
    assert (length[0] >= length[1]).all()
    assert (length[1] >= length[2]).all()


def test_outside_the_mask_there_is_nothing():
    mask = MASK.clone()
    mask[:, 0] = False
    out = fibre_labels(scan(table()), table(), mask=mask)
    assert out.npeaks[:, 0].max() == 0
    assert out.fa[:, 0].max() == 0
    assert out.peaks_world[:, :, 0].isnan().all()


def test_the_shell_of_highest_order_is_used():
    low, high = table(20, 1000.0), table(60, 3000.0)
    both = GradientTable(torch.cat([low.bvals, high.bvals]), torch.cat([low.bvecs, high.bvecs]))
    image = torch.cat([scan(low), scan(high)])
    out = fibre_labels(image, both, mask=MASK)
    assert float((out.npeaks[3:6] == 2).float().mean()) > 0.9


def write_scan(folder: Path) -> Path:
    affine = affine_of("oblique", (2.0, 2.0, 2.5), SHAPE)
    path = folder / "sub-07" / "dwi" / "sub-07_dwi.nii.gz"
    path.parent.mkdir(parents=True)
    write_dwi(path, MetaTensor(scan(table()), affine=torch.tensor(affine)), table())
    return path


def test_files_are_bids_derivatives_the_data_list_finds(tmp_path):
    path = write_scan(tmp_path)
    mask_path = tmp_path / "mask.nii.gz"
    from dmri_monai.io import write_nifti

    write_nifti(mask_path, MASK.numpy().astype(np.uint8), affine_of("oblique", (2.0, 2.0, 2.5), SHAPE))
    paths = write_labels(path, tmp_path / "derivatives" / "labels", mask_path=mask_path)
    (item,) = data_list(tmp_path, labels={"label": "npeaks", "peaks": "peaks", "fa": "FA"})
    assert Path(item["label"]) == paths["npeaks"]
    peaks = read_nifti(item["peaks"])
    assert np.nanmedian(axial_degrees(peaks[:3, :3].as_tensor().movedim(0, -1).numpy(), FIRST)) < 4
    sidecar = json.loads((paths["peaks"].parent / "sub-07_peaks.json").read_text(encoding="utf-8"))
    assert sidecar["ReferenceFrame"] == "world RAS+"
    assert (tmp_path / "derivatives" / "labels" / "dataset_description.json").exists()


def test_too_few_directions_are_an_error_naming_the_file(tmp_path):
    few = table(12)
    path = tmp_path / "few.nii.gz"
    write_dwi(path, MetaTensor(scan(few), affine=torch.eye(4, dtype=torch.float64)), few)
    with pytest.raises(ValueError, match=r"largest shell has 12 directions, .* at least 15 in .*few.nii.gz"):
        write_labels(path, tmp_path / "out")


def test_a_mask_of_another_shape_is_an_error(tmp_path):
    from dmri_monai.io import write_nifti

    path = write_scan(tmp_path)
    write_nifti(tmp_path / "mask.nii.gz", np.ones((2, 2, 2), np.uint8), np.eye(4))
    with pytest.raises(
        ValueError, match=r"'mask' has grid \(2, 2, 2\), the image \(8, 6, 5\): .*mask.nii.gz"
    ):
        write_labels(path, tmp_path / "out", mask_path=tmp_path / "mask.nii.gz")


def test_a_mask_on_a_mirrored_grid_is_an_error(tmp_path):
    from dmri_monai.io import write_nifti

    path, mirrored = (
        write_scan(tmp_path),
        affine_of("oblique", (2.0, 2.0, 2.5), SHAPE) @ np.diag([-1, 1, 1, 1]),
    )
    write_nifti(tmp_path / "mask.nii.gz", MASK.numpy().astype(np.uint8), mirrored)
    with pytest.raises(ValueError, match=r"'mask' lies up to .* mm beside the image.*mask.nii.gz"):
        write_labels(path, tmp_path / "out", mask_path=tmp_path / "mask.nii.gz")


@pytest.mark.parametrize("method", ["csd", "msmt"])
def test_measurements_that_are_not_finite_are_an_error(method):
    image = scan(table())
    image[3, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="1 measurements in the brain mask are NaN or infinite"):
        fibre_labels(image, table(), mask=MASK, method=method)


def test_the_rule_decides_what_counts():
    strict = fibre_labels(scan(table()), table(), mask=MASK, rule=PeakRule(absolute=10.0))
    assert strict.npeaks.max() == 0
