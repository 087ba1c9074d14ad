"""The main job on real input: small scans of three scanners and orientations."""

import re
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.small_models import save_model

DIPY = Path(str(files("dipy.data") / "files"))


# the b-value nearest to which there are enough directions; small_101D samples q-space on a grid, not on shells
SHELLS = {"small_64D": 1000.0, "small_101D": 1500.0, "mrtrix_dwi": 3000.0}


@pytest.fixture(params=SHELLS)
def scan(request):
    """Path of a real scan and the b-value of the shell to use."""
    if request.param == "mrtrix_dwi":
        path = request.getfixturevalue("shared_dir") / "data" / "mrtrix_dwi" / "dwi.nii.gz"
    else:
        (path,) = DIPY.glob(f"{request.param}.nii*")
    return path, SHELLS[request.param]


def check_results(out, path):
    """Labels on the grid of the scan, and a report of all."""
    image = nibabel.load(path)
    (labels,) = [nibabel.load(p) for p in out.glob("*_dseg.nii.gz")]
    np.testing.assert_allclose(labels.affine, image.affine, atol=1e-5)
    assert labels.shape == image.shape[:3]
    assert set(np.unique(labels.dataobj)) <= {0, 1, 2, 3}
    assert (out / "report.html").is_file()


def test_inferring_a_real_scan_with_the_released_model_needs_nothing_but_paths(prepare, tmp_path, shared_dir):
    path = shared_dir / "data" / "mrtrix_dwi" / "dwi.nii.gz"
    prepare("inference", dataset_dir=str(path), output_dir=str(tmp_path)).run()
    check_results(tmp_path, path)


def test_model_of_another_shell_infers_a_real_scan_that_has_it(prepare, tmp_path, scan):
    path, shell = scan
    model = {"architecture": "plain", "network_options": {"filters": 4}, "spacing_mm": (2.0, 2.0, 2.0)}
    checkpoint = save_model(tmp_path / "model.pt", shells=[shell], shell_tolerance=0.3, **model)
    own = {"output_dir": str(tmp_path / "out"), "checkpoint": str(checkpoint)}
    prepare("inference", dataset_dir=str(path), **own).run()
    check_results(tmp_path / "out", path)


def test_scan_without_the_shell_of_the_model_says_what_it_has(prepare, trained, tmp_path, shared_dir):
    workflow = prepare(
        "inference",
        dataset_dir=str(shared_dir / "data" / "mrtrix_dwi" / "dwi.nii.gz"),
        output_dir=str(tmp_path),
        checkpoint=str(trained / "model.pt"),
    )
    with pytest.raises(RuntimeError) as error:  # of MONAI's parser
        workflow.run()
    assert isinstance(error.value.__cause__, ValueError)
    assert re.search(r"dwi\.nii\.gz: .*no volume within 20% of shell b = 1000", str(error.value.__cause__))
