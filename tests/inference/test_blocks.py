"""Blocks without the shape of a head: the released models of whole heads hand them on to voxel-wise ones."""

import json

import pytest
import torch
from dipy.data import get_fnames

from dmri_monai.check.image_state import is_block
from dmri_monai.inference.model import load_model, predict_all
from dmri_monai.inference.released import FOR_BLOCKS, released_models
from dmri_monai.inference.study import StudyOptions, predict_study
from dmri_monai.io import write_dwi
from dmri_monai.phantom import make_subject
from dmri_monai.scan import Scan


@pytest.fixture(scope="module")
def block() -> Scan:
    return Scan.read(get_fnames(name="small_101D")[0])


@pytest.mark.parametrize("task", sorted(FOR_BLOCKS))
def test_a_block_is_predicted_voxel_by_voxel_and_the_prediction_says_so(block, task):
    found = load_model(task, "cpu").predict(block)
    assert found.provenance["Model"] == f"{FOR_BLOCKS[task]}.pt"
    assert found.task == task
    assert f"predicted voxel by voxel, by {FOR_BLOCKS[task]}" in found.warnings[0]
    assert not any("a small block" in warning for warning in found.warnings)
    direct = load_model(FOR_BLOCKS[task], "cpu").predict(block)
    torch.testing.assert_close(found.image, direct.image, rtol=0, atol=0)
    assert direct.warnings == found.warnings[1:]
    (again,) = predict_all([load_model(task, "cpu")], block)
    torch.testing.assert_close(again.image, direct.image, rtol=0, atol=0)
    whole = load_model(released_models()[task], "cpu").predict(block)  # the file itself, as asked for
    assert whole.provenance["Model"] == f"{task}.pt"
    assert any("a small block" in warning for warning in whole.warnings)
    assert (whole.values != direct.values).any()


def test_voxels_are_told_each_on_its_own(block):
    model = load_model("fractions-voxelwise", "cpu")
    whole = model.predict(block).values
    image = block.signal.clone()
    image[:, :, :, 5:] = block.signal.flip(2)[:, :, :, 5:]  # other neighbours, the same voxels otherwise
    part = model.predict(Scan.of_arrays(image, block.table.bvals, block.table.bvecs, block.affine)).values
    assert (part - whole)[..., :5].abs().mean() < 0.02  # the level of b0 and the response are the scan's
    assert (part - whole)[..., 5:].abs().mean() > 0.05


def test_a_whole_head_is_not_a_block():
    subject = make_subject(5, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0), scheme="clinical-32")
    scan = Scan.of_arrays(subject.image, subject.table.bvals, subject.table.bvecs, subject.affine)
    found = load_model("tissue", "cpu").predict(scan)
    assert found.provenance["Model"] == "tissue.pt"


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((128, 128, 24), (2.0, 2.0, 2.0), False),  # a slab of a head
        ((128, 128, 5), (2.0, 2.0, 2.0), True),
        ((128, 5, 128), (2.0, 2.0, 2.0), True),
        ((128, 128, 5), (1.7, 1.7, 5.2), False),  # five thick slices
        ((40, 40, 40), (2.0, 2.0, 2.0), True),
        ((128, 40, 40), (2.0, 2.0, 2.0), True),
        ((128, 128, 1), (2.0, 2.0, 5.0), True),
    ],
)
def test_what_counts_as_a_block(shape, spacing, expected):
    assert is_block(shape, spacing) is expected


def test_a_study_knows_a_block_that_is_done(block, tmp_path):
    folder = tmp_path / "data" / "sub-01" / "dwi"
    write_dwi(folder / "sub-01_dwi.nii.gz", block.image, block.table)
    (tmp_path / "data" / "dataset_description.json").write_text('{"Name": "blocks", "BIDSVersion": "1.10.0"}')

    def statuses(resume: bool) -> list[str]:
        options = StudyOptions(models=("tissue",), device="cpu", resume=resume)
        items = [{"image": str(folder / "sub-01_dwi.nii.gz"), "subject": "01"}]
        return [o.status for o in predict_study(items, tmp_path / "data", tmp_path / "out", options)]

    assert statuses(False) == ["predicted"]
    (sidecar,) = (tmp_path / "out").rglob("sub-01*dseg.json")
    record = json.loads(sidecar.read_text())
    assert record["ModelSHA256"] == load_model("tissue-voxelwise", "cpu").spec.sha256
    assert "tissue-voxelwise.pt" in json.dumps(record)
    assert '"tissue.pt"' not in json.dumps(record)
    assert statuses(True) == ["resumed"]


@pytest.mark.slow
def test_fractions_of_a_real_block_go_with_those_of_multi_tissue_deconvolution(block):
    """DIPY's deconvolution of all its measurements; the model of whole heads is the control."""
    from benchmarks.real import rivals

    inside = (block.signal > 0).all(0)
    reference = rivals.msmt(rivals.Scan(block.signal, block.table, inside, block.affine)).fractions

    def agreement(values: torch.Tensor) -> list[float]:
        pairs = zip(values[:, inside], reference.T, strict=True)
        return [float(torch.corrcoef(torch.stack([ours, theirs.to(ours)]))[0, 1]) for ours, theirs in pairs]

    assert min(agreement(load_model("fractions", "cpu").predict(block).values)) > 0.9
    control = load_model(released_models()["fractions"], "cpu").predict(block).values
    assert min(agreement(control)) < 0.6
