"""The main job on real input: small scans of three scanners and orientations."""

import traceback
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import pytest

DIPY = Path(str(files("dipy.data") / "files"))


# the b-value nearest to which there are enough directions; small_101D samples q-space on a grid, not on shells
SHELLS = {"small_64D": 1000, "small_101D": 1500, "mrtrix_dwi": 3000}


@pytest.fixture(params=SHELLS)
def scan(request):
    """Path of a real scan and the b-value of the shell to use."""
    if request.param == "mrtrix_dwi":
        return request.getfixturevalue("shared_dir") / "data" / "mrtrix_dwi" / "dwi.nii.gz", SHELLS[
            request.param
        ]
    (path,) = DIPY.glob(f"{request.param}.nii*")
    return path, SHELLS[request.param]


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
    assert "no volume within 20% of shell b = 1000" in "".join(traceback.format_exception(error.value))
