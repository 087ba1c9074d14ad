"""Blocks without the shape of a head: the released models of whole heads hand them on to voxel-wise ones."""

import pytest
import torch
from dipy.data import get_fnames

from dmri_monai.inference.model import load_model, predict_all
from dmri_monai.inference.released import FOR_BLOCKS, released_models
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
    assert not any("known to fail" in warning for warning in found.warnings)
    direct = load_model(FOR_BLOCKS[task], "cpu").predict(block)
    torch.testing.assert_close(found.image, direct.image, rtol=0, atol=0)
    assert direct.warnings == found.warnings[1:]
    (again,) = predict_all([load_model(task, "cpu")], block)
    torch.testing.assert_close(again.image, direct.image, rtol=0, atol=0)
    whole = load_model(released_models()[task], "cpu").predict(block)  # the file itself, as asked for
    assert whole.provenance["Model"] == f"{task}.pt"
    assert any("known to fail" in warning for warning in whole.warnings)
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
