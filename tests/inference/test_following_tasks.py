"""Tasks whose prediction follows from a density: main direction and number of fibres."""

import json

import nibabel
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.model import TrainedModel, load_model, predict_all
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.inference.study import StudyOptions, predict_study
from dmri_monai.inference.study_files import places_of
from dmri_monai.inference.weights import save_model
from dmri_monai.io import scans
from dmri_monai.qspace.fibre_density import density_of_peaks
from dmri_monai.scan import Scan
from dmri_monai.transforms.task_labels import DensityToAxisd, DensityToCountd
from tests.conftest import ORIENTATIONS, SPACINGS_MM, grid_affine

ANSWERS = ("fod", "orientation", "crossings")
SMALL = {"channels": 2, "scalars": 6, "hidden": 4, "blocks": 1}
ALONE = ("4x0e", "4x0e")
GRIDS = {
    f"{name}-{size}": grid_affine(ORIENTATIONS[name], SPACINGS_MM[size])
    for name, size in (
        ("RAS", "iso2"),
        ("LAS", "iso2"),
        ("oblique-right", "1.7x1.7x5"),
        ("oblique-left", "1.7x1.7x5"),
    )
}


def described(task):
    learned = None if task == "fod" else "fod"
    return ModelSpec(
        task=task, learned=learned, architecture="any", size=ALONE, network_options=SMALL, spacing_mm=None
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One network under three names, with weights large enough for peaks."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(3)
    network = build_network(described("fod"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3.0)
    for task in ANSWERS:
        save_model(network, folder / f"{task}.pt", described(task))
    return [load_model(folder / f"{task}.pt", "cpu") for task in ANSWERS]


def test_direction_and_number_are_those_of_the_densitys_peaks(models, scan, tmp_path):
    density, axis, number = (model.predict(Scan.read(scan)).write(tmp_path) for model in models)
    peaks = nibabel.load(density.files["peaks"]).get_fdata()
    first = peaks[..., :3]
    np.testing.assert_allclose(
        nibabel.load(axis.files["prediction"]).get_fdata(),
        first / np.linalg.norm(first, axis=-1, keepdims=True),
        atol=1e-5,
    )
    counted = np.isfinite(peaks[..., ::3]).sum(-1)
    np.testing.assert_array_equal(np.asarray(nibabel.load(number.files["prediction"]).dataobj), counted)
    np.testing.assert_array_equal(np.asarray(nibabel.load(density.files["npeaks"]).dataobj), counted)
    assert {0, 1, 2} <= set(np.unique(counted))  # the control: there is something to agree about
    sidecars = [json.loads(found.files["sidecar"].read_text()) for found in (density, axis, number)]
    assert [sidecar["Task"] for sidecar in sidecars] == list(ANSWERS)
    assert len({sidecar["ModelSHA256"] for sidecar in sidecars}) == 1
    assert [sidecar["Model"] for sidecar in sidecars] == [f"{task}.pt" for task in ANSWERS]


def test_ensemble_tells_the_spread_of_the_density(models, scan):
    found = [model.predict(Scan.read(scan), ensemble="flips") for model in models]
    assert found[1].image.shape[0] == 3
    assert found[0].uncertainty is not None
    for other in found[1:]:
        assert_close(other.uncertainty, found[0].uncertainty)


def test_models_of_the_same_weights_run_their_network_once(models, scan):
    calls = []
    handles = [
        model.network.register_forward_hook(lambda *_, name=model.task.name: calls.append(name))
        for model in models
    ]
    together = list(predict_all(models, Scan.read(scan)))
    for handle in handles:
        handle.remove()
    alone = [model.predict(Scan.read(scan)) for model in models]
    assert set(calls) == {"fod"}
    calls.clear()
    first = models[0]
    other = TrainedModel(first.spec.replace(b0_threshold=10.0), first.network, first.device, first.weights)
    handle = first.network.register_forward_hook(lambda *_: calls.append("again"))
    list(predict_all([first], Scan.read(scan)))
    once = len(calls)
    list(predict_all([first, other], Scan.read(scan)))
    handle.remove()
    assert len(calls) == 3 * once  # the control: other settings are another prediction
    for one, other in zip(together, alone, strict=True):
        assert (one.task, one.provenance) == (other.task, other.provenance)
        assert_close(one.image.as_tensor(), other.image.as_tensor(), equal_nan=True)


def test_study_gets_all_three_maps(models, scan, tmp_path):
    source = scan.parents[2]
    options = StudyOptions(models=[str(model.weights) for model in models], device="cpu", reports=False)
    (outcome,) = predict_study(scans(source), source, tmp_path / "out", options)
    assert outcome.status == "predicted"
    for task in ANSWERS:
        assert places_of(scan, source, tmp_path / "out", task)["prediction"].is_file()


class OneFibre(nn.Module):
    """A density from the l = 2 harmonics of the first shell: least signal is along the fibre."""

    def __init__(self, sign):
        super().__init__()
        self.sign = sign

    def forward(self, image):
        second = image[:, 17:22]
        rest = image.new_zeros(len(image), 39, *image.shape[2:])
        return torch.cat([torch.full_like(image[:, :1], 0.28), self.sign * second, rest], dim=1)


@pytest.mark.parametrize("sign", [-1.0, 1.0], ids=["along", "control-across"])
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS.keys())
def test_direction_leaves_in_the_world_frame(models, affine, sign):
    fibre = normalize(torch.tensor([0.5, -0.3, 0.8], dtype=torch.float64), dim=0)
    bvals = torch.tensor([0.0, *[2000.0] * 60], dtype=torch.float64)
    bvecs = normalize(torch.randn(61, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    bvecs[0] = 0
    signal = 800 * torch.exp(-bvals * (0.2e-3 + 1.5e-3 * (bvecs @ fibre).square()))
    image = signal.float()[:, None, None, None].expand(-1, 6, 5, 4).clone()
    model = load_model(models[1].weights, "cpu")
    model.network = OneFibre(sign)
    found = model.predict(Scan.of_arrays(image, bvals, bvecs, affine)).image.as_tensor()[:, 3, 2, 2]
    angle = float(torch.rad2deg((found.double() @ fibre).abs().clamp(max=1).acos()))
    assert angle < 1 if sign < 0 else angle > 60


def test_no_direction_and_no_fibre_where_there_is_little_density():
    peaks = torch.zeros(6, 3, 1, 1)
    peaks[2, 0], peaks[3, 0] = 0.4, 0.3  # two fibres
    peaks[0, 1] = 0.5  # one, then none
    density = density_of_peaks(peaks)
    axis = DensityToAxisd("pred")({"pred": density})["pred"][:, :, 0, 0]
    assert_close(axis[:, :2].T.abs(), torch.tensor([[0.0, 0, 1], [1, 0, 0]]), atol=2e-2, rtol=0)
    assert axis[:, 2].isnan().all()
    assert DensityToCountd("pred")({"pred": density})["pred"].flatten().tolist() == [2, 1, 0]


@pytest.mark.parametrize(
    ("task", "learned"), [("tissue", "fod"), ("fod", "fod"), ("orientation", "crossings"), (None, "fod")]
)
def test_only_what_follows_can_be_said_to_follow(task, learned):
    with pytest.raises(ValueError, match=f"learned is '{learned}', from which {task!r} does not follow"):
        ModelSpec.of({"task": task, "learned": learned, "architecture": "any"})


def test_another_training_goes_on_with_the_networks_own_task():
    spec = described("crossings").untrained()
    assert (spec.task, spec.learned) == ("fod", None)
    assert spec == described("fod")


def test_released_models_of_fibres_are_one_network():
    specs = {task: load_model(task, "cpu").spec for task in ANSWERS}
    assert {spec.learned for spec in specs.values()} == {None, "fod"}
    assert len({spec.sha256 for spec in specs.values()}) == 1
    assert load_model("tissue", "cpu").spec.sha256 != specs["fod"].sha256


def test_own_grid_of_a_scan_is_kept(models, scan):
    read = Scan.read(scan)
    encoded = models[0].encode(read)["image"]
    assert sorted(encoded.shape[1:]) == sorted(read.signal.shape[1:])
    other = TrainedModel(
        described("fod").replace(spacing_mm=(9.0, 9.0, 9.0)),
        models[0].network,
        models[0].device,
        models[0].weights,
    )
    assert max(other.encode(read)["image"].shape[1:]) < max(encoded.shape[1:])
