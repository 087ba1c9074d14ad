"""`fill_extracted` of a model: a brain that was extracted is filled, whichever way the prediction is asked for."""

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.inferers import FullVolumeInferer
from dmri_monai.inference.model import EXTRACTED, load_model
from dmri_monai.inference.released import bundle_folder
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.weights import save_model
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.scan import Scan

SMALL = {"architecture": "plain", "network_options": {"filters": 4}, "spacing_mm": (6.0, 6.0, 6.0)}


def extracted(path, folder, air):
    """The scan with `air`, times its mean, off its head, and where that is not."""
    scan = Scan.read(path)
    there = head_mask(mean_b0(scan.signal, scan.table.bvals))
    signal = torch.where(there, scan.signal, air * scan.signal.mean())
    Scan.of_arrays(signal, scan.table.bvals, scan.table.bvecs, scan.affine).write(folder / "brain_dwi.nii.gz")
    return folder / "brain_dwi.nii.gz", there


@pytest.fixture(scope="module")
def brain(scan, tmp_path_factory):
    return extracted(scan, tmp_path_factory.mktemp("extracted"), 0.0)


@pytest.fixture(scope="module", params=["tissue", "fractions"])
def pair(request, brain, tmp_path_factory):
    """One network twice, with the key and without, that leaves a tenth of this brain's voxels to no tissue."""
    path, _ = brain
    folder = tmp_path_factory.mktemp(request.param)
    spec = ModelSpec(task=request.param, **SMALL)
    torch.manual_seed(0)
    network = build_network(spec).eval()
    outside = 0 if request.param == "tissue" else 3
    save_model(network, folder / "leaves.pt", spec)
    with torch.no_grad():
        image = load_model(folder / "leaves.pt", "cpu").encode(Scan.read(path))["image"]
        logits = FullVolumeInferer(multiple=8)(image[None], network)[0].as_tensor()
        others = logits[[i for i in range(4) if i != outside]]
        most = others.amax(0) if request.param == "tissue" else others.logsumexp(0)
        margin = (logits[outside] - most)[image.as_tensor()[0] != 0]
        network.head.bias[outside] -= margin.quantile(0.9)
    for name, share in (("fills", 0.15), ("leaves", None)):  # both would drop something of what is left
        save_model(network, folder / f"{name}.pt", spec.replace(fill_extracted=share, body_mm=12.0))
    return folder / "fills.pt", folder / "leaves.pt"


def tissue(values):
    return values[0] > 0 if len(values) == 1 else values.sum(0) > 0.5


@pytest.mark.parametrize("ensemble", [None, "flips"])
def test_extracted_brain_is_filled_and_the_prediction_says_so(pair, brain, ensemble):
    path, there = brain
    fills, leaves = (load_model(p, "cpu").predict(Scan.read(path), ensemble=ensemble) for p in pair)
    left = there & ~tissue(leaves.image.as_tensor())
    assert left.any()  # the control: there is something to fill
    assert torch.equal(tissue(fills.image.as_tensor()), there)
    assert EXTRACTED in fills.warnings
    assert EXTRACTED not in leaves.warnings


def test_whole_scan_with_noise_around_is_left(pair, scan):
    fills, leaves = (load_model(path, "cpu").predict(Scan.read(scan)) for path in pair)
    assert bool((Scan.read(scan).signal > 0).any(0).float().mean() > 0.95)
    torch.testing.assert_close(fills.image, leaves.image, rtol=0, atol=0)
    assert EXTRACTED not in fills.warnings


@pytest.mark.parametrize("air", [1e-6, -1e-3], ids=["next to 0", "offset of stored integers"])
def test_air_next_to_0_is_air(pair, scan, brain, tmp_path, air):
    path, there = extracted(scan, tmp_path, air)
    found = load_model(pair[0], "cpu").predict(Scan.read(path))
    assert EXTRACTED in found.warnings
    assert torch.equal(tissue(found.image.as_tensor()), there)


def test_bundle_fills_as_the_model_does(pair, brain, tmp_path):
    expected = load_model(pair[0], "cpu").predict(Scan.read(brain[0])).values.numpy()
    workflow = ConfigWorkflow(
        config_file=str(bundle_folder() / "configs" / "inference.json"),
        logging_file=False,
        workflow_type="infer",
        dataset_dir=str(brain[0]),
        output_dir=str(tmp_path),
        device="cpu",
        checkpoint=str(pair[0]),
    )
    workflow.initialize()
    workflow.run()
    (written,) = tmp_path.glob("*.nii.gz")
    found = np.asarray(nibabel.load(written).dataobj)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 0) if found.ndim == 4 else found, expected)
    (sidecar,) = tmp_path.glob("*seg.json") if found.ndim == 3 else tmp_path.glob("*.json")
    assert EXTRACTED in json.loads(sidecar.read_text())["Warnings"]
