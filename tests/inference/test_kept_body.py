"""`body_mm` of a model: its prediction keeps the largest body of tissue, whichever way it is asked for."""

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.model import load_model
from dmri_monai.inference.released import bundle_folder
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import save_model
from dmri_monai.integrations.bundle_export import export_bundle
from dmri_monai.scan import Scan
from dmri_monai.transforms import KeepBrainBodyd

BODY_MM = 12.0  # voxels of the scan have 6
SMALL = {"architecture": "plain", "network_options": {"filters": 4}}


@pytest.fixture(scope="module", params=["tissue", "fractions"])
def pair(request, tmp_path_factory):
    """One network twice, described with a depth and without one."""
    folder = tmp_path_factory.mktemp(request.param)
    spec = ModelSpec(task=request.param, spacing_mm=(6.0, 6.0, 6.0), **SMALL)
    torch.manual_seed(0)
    network = build_network(spec)
    if request.param == "fractions":
        with torch.no_grad():
            network.head.bias[-1] += 2.0  # the tissues have less than half of some voxels
    for name, depth in (("kept", BODY_MM), ("whole", None)):
        save_model(network, folder / f"{name}.pt", spec.replace(body_mm=depth))
    return folder / "kept.pt", folder / "whole.pt"


@pytest.mark.parametrize("ensemble", [None, "flips"])
def test_prediction_is_that_without_a_depth_and_then_the_body(pair, scan, ensemble):
    kept, whole = (load_model(path, "cpu").predict(Scan.read(scan), ensemble=ensemble) for path in pair)
    expected = KeepBrainBodyd("pred", BODY_MM)({"pred": whole.image})["pred"]
    torch.testing.assert_close(kept.image, expected, rtol=0, atol=0)
    assert (kept.image != whole.image).any()  # the control: there is something to drop
    assert (kept.image > 0).any()
    if ensemble:
        torch.testing.assert_close(kept.uncertainty, whole.uncertainty, rtol=0, atol=0)


@pytest.mark.parametrize("exported", [False, True], ids=["bundle", "exported"])
def test_bundles_keep_the_body_as_the_model_does(pair, scan, tmp_path, exported):
    kept, whole = (load_model(path, "cpu").predict(Scan.read(scan)).values.numpy() for path in pair)
    folder = export_bundle(pair[0], tmp_path / "bundle") if exported else bundle_folder()
    own = {"bundle_root": str(folder)} if exported else {"checkpoint": str(pair[0])}
    workflow = ConfigWorkflow(
        config_file=str(folder / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        dataset_dir=str(scan),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        **own,
    )
    workflow.initialize()
    workflow.run()
    (written,) = (tmp_path / "out").glob("*.nii.gz")
    found = np.asarray(nibabel.load(written).dataobj)
    found = np.moveaxis(found, -1, 0) if found.ndim == 4 else found
    np.testing.assert_array_equal(found, kept)
    assert (found != whole).any()


def test_weights_go_on_under_another_depth(tmp_path):
    """Unlike what gives channels their meaning: the network never sees it."""
    assert "body_mm" not in ModelSpec.meaning()
    spec = ModelSpec(task="tissue", body_mm=BODY_MM, **SMALL)
    save_model(build_network(spec), tmp_path / "model.pt", spec)
    save_model(build_network(spec), tmp_path / "model.pt", spec.replace(body_mm=None))
    spec = ModelSpec.load(tmp_path / "model.json")
    assert spec.body_mm is None
    assert spec.previous_sha256 is not None
