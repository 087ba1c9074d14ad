"""The main job on real input: small scans of three scanners and orientations."""

from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import pytest

DIPY = Path(str(files("dipy.data") / "files"))


@pytest.fixture(params=["small_64D", "small_101D", "mrtrix_dwi"])
def scan(request):
    """Path of a real scan and the b-value of the shell to use."""
    if request.param == "mrtrix_dwi":
        folder = request.getfixturevalue("shared_dir") / "data" / "mrtrix_dwi"
        return folder / "dwi.nii.gz", 3000
    found = [p for p in DIPY.glob(f"{request.param}.nii*")]
    return found[0], 1000


def test_inferring_a_real_scan_writes_labels_on_its_grid_and_a_report(prepare, trained, tmp_path, scan):
    path, shell = scan
    prepare(
        "inference",
        dataset_dir=str(path),
        output_dir=str(tmp_path),
        checkpoint=str(trained / "model.pt"),
        shells=[shell],
        spacing_mm=[2.0, 2.0, 2.0],
        shell_tolerance=0.3,
    ).run()
    image = nibabel.load(path)
    (labels,) = [nibabel.load(p) for p in tmp_path.glob("*_dseg.nii.gz")]
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-5)
    assert labels.shape == image.shape[:3]
    assert (tmp_path / "report.html").is_file()


def test_scan_without_the_shell_of_the_model_says_what_it_has(prepare, trained, tmp_path, shared_dir):
    workflow = prepare(
        "inference",
        dataset_dir=str(shared_dir / "data" / "mrtrix_dwi" / "dwi.nii.gz"),
        output_dir=str(tmp_path),
        checkpoint=str(trained / "model.pt"),
    )
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert "shell b = 1000" in str(error.value.__cause__ or error.value)
