"""`dmri_monai.predict`: from a scan, or an array and its table, to a map on the scan's grid."""

import json

import nibabel
import numpy as np
import pytest

import dmri_monai
from dmri_monai.check import check_image
from dmri_monai.inference.predictor import bundle_folder, out_of_range, predict
from dmri_monai.io import read_dwi
from tests.small_models import save_model


def test_map_lies_on_the_grid_of_the_scan(scan, checkpoint, tmp_path):
    found = predict(scan, checkpoint=checkpoint, output_dir=tmp_path / "out", device="cpu")
    written, source = nibabel.load(found.files["prediction"]), nibabel.load(scan)
    assert written.shape == source.shape[:3]
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
    assert sorted(found.files) == ["prediction", "report", "sidecar"]


def test_array_with_its_table_gives_what_the_file_gives(scan, checkpoint):
    image, table = read_dwi(scan)
    from_file = predict(scan, checkpoint=checkpoint, device="cpu").image
    plain = image.as_tensor().numpy()
    from_array = dmri_monai.predict(
        plain, table.bvals, table.bvecs, affine=image.affine, checkpoint=checkpoint, device="cpu"
    ).image
    assert (from_file != from_array).float().mean() < 1e-3  # the table goes through a text file


def test_array_with_another_table_gives_something_else(scan, checkpoint):
    """The control: the comparison above can fail."""
    image, table = read_dwi(scan)
    turned = table.bvecs[:, [1, 2, 0]]
    plain = image.as_tensor().numpy()
    options = {"affine": image.affine, "checkpoint": checkpoint, "device": "cpu"}
    other = predict(plain, table.bvals, turned, **options).image
    assert (predict(scan, checkpoint=checkpoint, device="cpu").image != other).float().mean() > 1e-3


def test_nothing_stays_without_an_output_folder(scan, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert predict(scan, checkpoint=checkpoint, device="cpu").files == {}
    assert list(tmp_path.iterdir()) == []


def test_sidecar_names_model_and_table_by_their_hashes(scan, checkpoint, tmp_path):
    found = predict(scan, checkpoint=checkpoint, output_dir=tmp_path, device="cpu")
    sidecar = json.loads(found.files["sidecar"].read_text())
    assert sidecar["TableSHA256"] == read_dwi(scan)[1].sha256
    assert len(sidecar["ModelSHA256"]) == 64
    assert sidecar["Task"] == "tissue"


def test_scan_outside_of_the_training_range_is_a_warning_everywhere(scan, tmp_path):
    narrow = {"directions": [100, 200], "voxel_mm": [1, 2], "snr": [0, 1000]}
    checkpoint = save_model(tmp_path / "model.pt", "tissue", trained_on=narrow)
    found = predict(scan, checkpoint=checkpoint, output_dir=tmp_path / "out", device="cpu")
    assert any("directions: the model was trained on 100 to 200" in w for w in found.warnings)
    assert any("6 x 6 x 6 mm voxel size" in w for w in found.warnings)
    assert json.loads(found.files["sidecar"].read_text())["Warnings"] == list(found.warnings)
    assert "the model was trained on 100 to 200" in found.files["report"].read_text()


@pytest.fixture(scope="module")
def check(scan):
    image, table = read_dwi(scan)
    return check_image(image.as_tensor(), table, image.affine)


SETTINGS = {"shells": [1000], "tolerance": 0.2, "missing": "error"}


def test_scan_inside_of_the_training_range_is_no_warning(check):
    wide = {"directions": [6, 200], "voxel_mm": [1, 6], "snr": [0, 1000]}
    assert out_of_range(check, {**SETTINGS, "trained_on": wide}) == []


def test_model_that_says_nothing_of_its_training_data_gives_no_warning(check):
    assert out_of_range(check, SETTINGS) == []


def test_one_shell_is_enough_where_others_may_be_missing(check):
    several = {**SETTINGS, "shells": [1000, 3000]}
    assert out_of_range(check, {**several, "missing": "zero"}) == []
    assert out_of_range(check, several) == ["no shell near the model's b = 3000 s/mm²"]
    none = out_of_range(check, {**SETTINGS, "shells": [3000, 5000], "missing": "zero"})
    assert [w[-10:] for w in none] == ["3000 s/mm²", "5000 s/mm²"]


def test_missing_shell_is_an_error_that_says_both_sides(scan, tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", "tissue", shells=[3000])
    with pytest.raises(ValueError, match="3000"):
        predict(scan, checkpoint=checkpoint, device="cpu")


def test_directions_are_peaks_in_the_world_frame(scan, tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", "orientation")
    found = predict(scan, task="orientation", checkpoint=checkpoint, device="cpu")
    assert found.image.shape[0] == 3
    assert found.class_names == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "tumour"}, "tumour"),
        ({"task": "lesion"}, "no released weights|does not exist"),
        ({"checkpoint": "nowhere.pt"}, "nowhere.pt"),
    ],
    ids=["unknown task", "no weights", "no checkpoint"],
)
def test_mistakes_are_named(scan, arguments, message, monkeypatch, tmp_path):
    monkeypatch.setattr("dmri_monai.inference.predictor.bundle_folder", lambda: tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        predict(scan, **{"checkpoint": None, **arguments})


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "no .*task"), ("[]", "no .*task"), ("half {", "not the settings")],
    ids=["no settings", "a list", "no JSON"],
)
def test_file_that_holds_no_settings_is_named(scan, tmp_path, content, message):
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(ValueError, match=rf"model\.json.*{message}"):
        predict(scan, checkpoint=tmp_path / "model.pt")


def test_pretrained_model_has_no_task_yet(scan):
    with pytest.raises(ValueError, match=r"pretrained\.json.*task"):
        predict(scan, checkpoint=bundle_folder() / "models" / "pretrained.pt")


def test_two_tables_for_one_scan_are_refused(scan, checkpoint):
    with pytest.raises(ValueError, match="brings its own"):
        predict(scan, bvals=[0.0], checkpoint=checkpoint)


def test_array_without_a_table_is_refused(checkpoint):
    with pytest.raises(ValueError, match="bvals"):
        predict(np.zeros((7, 4, 4, 4), np.float32), affine=np.eye(4), checkpoint=checkpoint)
