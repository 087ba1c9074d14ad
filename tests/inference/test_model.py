import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.nn.functional import normalize

from dmri_monai.equivariant import Concat, Cosine, Gaussian, PQDiff, PQTensorProduct, PSpace, RadialMLP, Sum
from dmri_monai.inference.encoding import encode, subsample_measurements
from dmri_monai.inference.model import ARCHITECTURES, Model, build_network, prepare_batch
from dmri_monai.networks import PQOptions
from dmri_monai.transforms import collate_dwi

OUT = {"4x0e": 4, "1x0e": 1, "1x2e": 5}


def scan(n=20, b=(1000.0,), size=(8, 8, 8)):
    """Item of a raw scan with `n` directions a shell."""
    generator = torch.Generator().manual_seed(0)
    bvals = torch.tensor([0.0, 0.0, *(v for v in b for _ in range(n))])
    bvecs = normalize(torch.randn(len(bvals), 3, generator=generator), dim=1) * (bvals > 0).unsqueeze(1)
    image = MetaTensor(100 + 50 * torch.rand(len(bvals), *size, generator=generator), affine=torch.eye(4))
    return {"image": image, "bvals": bvals, "bvecs": bvecs}


@pytest.mark.parametrize("irreps", OUT)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_takes_what_its_encoding_gives(architecture, irreps):
    model = Model(architecture=architecture, size="tiny", n_directions=12)
    batch = collate_dwi([Compose(encode(model))(scan(size=(16, 8, 8)))])
    image, _, *table = (*prepare_batch(model)(batch, torch.device("cpu")), (), {})[:4]
    assert model.in_channels in (None, image.shape[1])
    network = build_network(model, irreps).eval()
    with torch.no_grad():
        assert network(image, *table[0], **table[1]).shape == (1, OUT[irreps], 16, 8, 8)


def test_size_and_options_reach_the_network():
    assert build_network(Model("plain", "base"), "4x0e").head.in_channels == 32
    assert build_network(Model("plain", "base", {"filters": 5}), "4x0e").head.in_channels == 5
    assert (
        build_network(Model("equivariant", ["4x0e+1x2e", "8x0e+2x2e"]), "4x0e").irreps_features == "4x0e+1x2e"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"architecture": "unet"},
            "architecture is 'unet', expected one of equivariant, plain, plain-directions, pq",
        ),
        ({"size": "huge"}, "size is 'huge', expected one of tiny, small, base"),
        ({"architecture": "plain-directions", "missing": "zero"}, "missing='zero' needs harmonic channels"),
        ({"missing": "skip"}, "missing must be 'error' or 'zero', got 'skip'"),
    ],
    ids=["architecture", "size", "directions", "missing"],
)
def test_settings_that_do_not_exist_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Model(**settings)


def test_settings_are_plain_json_values():
    settings = Model("plain", order_scale=(1.0, 2.0, 3.0)).settings(task="lesion")
    assert settings["task"] == "lesion"
    assert settings["order_scale"] == [1.0, 2.0, 3.0]


OBJECTS = {
    "kernel": PQTensorProduct(rule="TP-vec", p_radial=Cosine(mlp=RadialMLP((5, 5)))),
    "sum": Sum(PQDiff(l_max=2), PSpace(l_max=2)),
    "concat": Concat((PQDiff(), "2x0e"), (PSpace(p_radial=Gaussian(n=3)), "1x0e+1x1o")),
    "options": PQOptions(parity=False, q_out=(5, None)),
}


@pytest.mark.parametrize("value", OBJECTS.values(), ids=OBJECTS.keys())
def test_settings_hold_the_config_of_an_object_among_the_options(value):
    settings = Model("pq", "tiny", {"value": value}).settings()
    again = ConfigParser(settings["options"]).get_parsed_content("value")
    assert type(again) is type(value)
    assert Model("pq", "tiny", {"value": again}).settings() == settings


def test_settings_tell_radial_functions_apart():
    kernels = [PQTensorProduct(p_radial=radial) for radial in (Cosine(), Gaussian())]
    one, other = (Model("pq", "tiny", {"kernel": kernel}).settings() for kernel in kernels)
    assert one != other


def test_settings_of_a_network_on_samples_hold_the_scale_of_q():
    assert Model("pq", shells=[1000.0, 3000.0]).settings()["b_max"] == 3000
    assert Model("pq", options={"b_max": 2500}).settings()["b_max"] == 2500
    assert build_network(Model("pq", "tiny", {"b_max": 2500}), "1x0e").b_max == 2500
    assert "b_max" not in Model("plain").settings()


def test_thinning_keeps_as_many_directions_as_asked_for():
    item = Compose(subsample_measurements(Model("plain"), [12, 12]))(scan(n=40, b=(1000.0, 2000.0)))
    assert [int((item["bvals"] == b).sum()) for b in (1000, 2000)] == [12, 12]
    assert len(item["image"]) == len(item["bvecs"]) == len(item["bvals"])


def test_dropped_shells_become_zero_channels():
    model = Model("plain", shells=[1000.0, 2000.0], missing="zero")
    item = Compose([*subsample_measurements(model, drop_shells=1.0), *encode(model)])(
        scan(b=(1000.0, 2000.0))
    )
    assert len(item["image"]) == model.in_channels == 33
    presence = item["image"][3:5].as_tensor()
    assert sorted(presence.amax(dim=(1, 2, 3)).tolist()) == [0, 1]


def test_dropping_shells_needs_a_model_that_can_do_without():
    with pytest.raises(ValueError, match="drop_shells = 0.3 needs missing='zero', got missing='error'"):
        subsample_measurements(Model("plain"), drop_shells=0.3)
