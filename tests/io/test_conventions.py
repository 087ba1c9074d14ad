"""Which way b-vectors point: FSL's, DIPY's and MRtrix's conventions, declared or found, on every kind of grid."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch

from dmri_monai.io import read_dwi, read_parts
from dmri_monai.scan import Scan
from dmri_monai.transforms import LoadDWId
from tests.conftest import ORIENTATIONS, grid_affine
from tests.io.scans import rows, save_image, unit_vectors, voxels

LPS = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
BVALS = np.array([0.0, 1000, 1000, 1000, 2000, 0, 1000, 1000])
WORLD = np.where(BVALS[:, None] > 0, unit_vectors(8, seed=3), 0.0)


def axes_of(affine: np.ndarray) -> np.ndarray:
    """Orthogonal axes nearest to the columns, by hand."""
    u, _, vt = np.linalg.svd(affine[:3, :3])
    return u @ vt


def fsl_vectors(affine: np.ndarray, world: np.ndarray = WORLD) -> np.ndarray:
    along = world @ axes_of(affine)
    return along * [-1, 1, 1] if np.linalg.det(affine[:3, :3]) > 0 else along


def write(folder, affine, *, fsl=None, dipy=None, mrtrix=None, bvals=BVALS, name="sub-01_desc-preproc_dwi"):
    """A scan with the tables of the given world vectors in the given conventions."""
    affine = np.asarray(affine)
    image = save_image(folder / f"{name}.nii.gz", voxels(), affine)
    along = (
        fsl_vectors(affine, fsl) if fsl is not None else dipy @ axes_of(affine) if dipy is not None else None
    )
    if along is not None:
        (folder / f"{name}.bval").write_text(rows(bvals))
        (folder / f"{name}.bvec").write_text(rows(along.T))
    if mrtrix is not None:
        (folder / f"{name}.b").write_text(rows(np.c_[mrtrix, bvals]))
    return image


def error_degrees(table, world=WORLD) -> float:
    cosines = np.abs((table.bvecs.numpy() * world).sum(1))[BVALS > 0]
    return float(np.degrees(np.arccos(np.clip(cosines, 0, 1))).max())


def say_made_by(root, name, key="GeneratedBy"):
    entry = {"Name": name}
    content = {"Name": "x", key: [entry] if key == "GeneratedBy" else entry}
    (root / "dataset_description.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("files", "choice"),
    [
        ({"fsl": WORLD}, "auto"),
        ({"fsl": WORLD}, "fsl"),
        ({"dipy": WORLD}, "dipy"),
        ({"mrtrix": WORLD}, "auto"),
        ({"mrtrix": WORLD}, "mrtrix"),
        ({"fsl": WORLD, "mrtrix": WORLD}, "auto"),
        ({"fsl": WORLD, "mrtrix": unit_vectors(8)}, "fsl"),
        ({"dipy": WORLD, "mrtrix": unit_vectors(8)}, "dipy"),
        ({"fsl": unit_vectors(8), "mrtrix": WORLD}, "mrtrix"),
    ],
    ids=["fsl", "fsl-said", "dipy-said", "b", "b-said", "agree", "fsl-wins", "dipy-wins", "b-wins"],
)
def test_every_convention_gives_the_world_vectors_on_every_grid(tmp_path, standard_affine, files, choice):
    image = write(tmp_path, standard_affine, **files)
    _, table = read_dwi(image, bvecs=choice)
    assert error_degrees(table) < 1e-3
    assert table.bvals.tolist() == BVALS.tolist()


@pytest.mark.parametrize("grid", ["RAS", "oblique-right"])
def test_the_wrong_convention_is_far_off_where_the_determinant_is_positive(tmp_path, grid):
    """The control: the two readings of a `.bvec` differ on right-handed grids, and there alone."""
    image = write(tmp_path, grid_affine(ORIENTATIONS[grid], (2, 2, 2.5)), dipy=WORLD)
    assert error_degrees(read_dwi(image, bvecs="fsl")[1]) > 20
    left = write(tmp_path / "left", grid_affine(ORIENTATIONS["oblique-left"], (2, 2, 2.5)), dipy=WORLD)
    assert error_degrees(read_dwi(left, bvecs="fsl")[1]) < 1e-3


def test_scan_and_transform_take_the_convention(tmp_path):
    image = write(tmp_path, grid_affine(LPS, (2, 2, 2)), dipy=WORLD)
    assert error_degrees(Scan.read(image, bvecs="dipy").table) < 1e-3
    item = LoadDWId("image", bvecs="dipy")({"image": str(image)})
    np.testing.assert_allclose(item["bvecs"], WORLD, atol=1e-6)


class TestTwoTables:
    @pytest.fixture(params=[LPS, ORIENTATIONS["oblique-right"]], ids=["LPS", "oblique"])
    def affine(self, request):
        return grid_affine(request.param, (2, 2, 2.5))

    def test_tables_that_disagree_are_refused_with_both_names_and_their_angle(self, tmp_path, affine):
        image = write(tmp_path, affine, dipy=WORLD, mrtrix=WORLD)
        match = (
            r"_dwi\.bvec and .*_dwi\.b disagree under FSL's rule: mean angle \d+\.\d.*DIPY's rule they agree"
        )
        with pytest.raises(ValueError, match=match):
            read_dwi(image)

    def test_what_no_rule_explains_is_refused_without_the_hint(self, tmp_path, affine):
        image = write(tmp_path, affine, fsl=unit_vectors(8, seed=9), mrtrix=WORLD)
        with pytest.raises(ValueError, match="disagree under FSL's rule: (?!.*DIPY's rule they agree)"):
            read_dwi(image)

    @pytest.mark.parametrize("key", ["GeneratedBy", "PipelineDescription"])
    @pytest.mark.parametrize("name", ["QSIPrep", "qsiprep", "QSIRecon"])
    def test_qsipreps_scanner_frame_is_taken_and_that_is_said(self, tmp_path, affine, caplog, key, name):
        image = write(tmp_path / "sub-01" / "dwi", affine, dipy=WORLD, mrtrix=WORLD)
        say_made_by(tmp_path, name, key)
        with caplog.at_level(logging.WARNING):
            assert error_degrees(read_dwi(image)[1]) < 1e-3
        assert "QSIPrep's scanner-frame table is taken" in caplog.text

    def test_another_pipeline_does_not_decide(self, tmp_path, affine):
        image = write(tmp_path / "sub-01" / "dwi", affine, dipy=WORLD, mrtrix=WORLD)
        say_made_by(tmp_path, "fMRIPrep")
        with pytest.raises(ValueError, match="disagree"):
            read_dwi(image)

    def test_the_description_of_the_raw_data_around_derivatives_does_not_decide(self, tmp_path, affine):
        root = tmp_path / "derivatives" / "mine"
        image = write(root / "sub-01" / "dwi", affine, dipy=WORLD, mrtrix=WORLD)
        say_made_by(tmp_path, "QSIPrep")
        with pytest.raises(ValueError, match="disagree"):
            read_dwi(image)

    def test_rounding_is_no_disagreement(self, tmp_path, affine):
        image = write(tmp_path, affine, fsl=WORLD, mrtrix=WORLD)
        path = image.with_name("sub-01_desc-preproc_dwi.bvec")
        rounded = np.round(fsl_vectors(np.asarray(affine)), 2)
        path.write_text(rows(rounded.T))
        assert error_degrees(read_dwi(image)[1]) < 0.5

    def test_a_turn_by_two_degrees_is_one(self, tmp_path, affine):
        """Vectors that one tool has turned with the head motion and the other has not."""
        c, s = np.cos(np.radians(2)), np.sin(np.radians(2))
        turned = WORLD @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        image = write(tmp_path, affine, fsl=WORLD, mrtrix=turned)
        with pytest.raises(ValueError, match=r"largest (2\.0|1\.\d)"):
            read_dwi(image)

    def test_b_values_that_disagree_are_named(self, tmp_path, affine):
        image = write(tmp_path, affine, fsl=WORLD, mrtrix=WORLD)
        image.with_name("sub-01_desc-preproc_dwi.bval").write_text(rows(np.where(BVALS == 2000, 3000, BVALS)))
        with pytest.raises(ValueError, match="b-value 4 is 3000 and 2000"):
            read_dwi(image)

    def test_opposite_vectors_mean_the_same(self, tmp_path, affine):
        image = write(tmp_path, affine, fsl=WORLD, mrtrix=-WORLD)
        assert error_degrees(read_dwi(image)[1]) < 1e-3


class TestQsiprepWithoutScannerTable:
    def test_a_right_handed_image_is_refused_until_the_convention_is_declared(self, tmp_path):
        image = write(tmp_path / "sub-01" / "dwi", grid_affine(LPS, (2, 2, 2)), dipy=WORLD)
        say_made_by(tmp_path, "QSIPrep")
        with pytest.raises(ValueError, match=r"QSIPrep made .*bvecs='dipy' or bvecs='fsl'"):
            read_dwi(image)
        assert error_degrees(read_dwi(image, bvecs="dipy")[1]) < 1e-3

    def test_a_left_handed_image_is_read_both_rules_agree(self, tmp_path):
        affine = grid_affine(ORIENTATIONS["LAS"], (2, 2, 2))
        image = write(tmp_path / "sub-01" / "dwi", affine, dipy=WORLD)
        say_made_by(tmp_path, "QSIPrep")
        assert error_degrees(read_dwi(image)[1]) < 1e-3


def test_a_declared_table_that_is_not_there_is_named(tmp_path):
    image = write(tmp_path, grid_affine(LPS, (2, 2, 2)), fsl=WORLD)
    with pytest.raises(FileNotFoundError, match=r"no sub-01_desc-preproc_dwi\.b beside"):
        read_dwi(image, bvecs="mrtrix")
    image.with_name("sub-01_desc-preproc_dwi.bvec").unlink()
    with pytest.raises(FileNotFoundError, match="no b-vectors"):
        read_dwi(image, bvecs="dipy")


def test_parts_of_a_scan_that_is_refused_can_be_read_for_repair(tmp_path, standard_affine):
    world, bvals = WORLD.copy(), BVALS.copy()
    world[6] = 0
    image = write(tmp_path, standard_affine, fsl=world[:7], bvals=bvals[:7])
    with pytest.raises(ValueError, match="7 entries in .* for 8 volumes"):
        read_dwi(image)
    scan, table = read_parts(image)
    assert len(scan) == 8
    assert table.bvals.tolist() == bvals[:7].tolist()
    vectors = table.world_vectors(scan.affine)
    np.testing.assert_allclose(vectors, world[:7], atol=1e-6)  # the affine is single precision
