"""From a description to a network that takes what its encoding gives."""

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from torch.nn.functional import normalize

from dmri_monai.inference.architectures import build_network, prepare_batch
from dmri_monai.inference.encoding import encode, subsample_measurements
from dmri_monai.inference.spec import TAKES, ModelSpec
from dmri_monai.transforms import collate_dwi

OUT = {"4x0e": 4, "1x0e": 1, "1x2e": 5}
SCALARS = ("4x0e", "1x0e")


def scan(n=20, b=(1000.0,), size=(8, 8, 8)):
    """Item of a raw scan with `n` directions per shell."""
    generator = torch.Generator().manual_seed(0)
    bvals = torch.tensor([0.0, 0.0, *(v for v in b for _ in range(n))])
    bvecs = normalize(torch.randn(len(bvals), 3, generator=generator), dim=1) * (bvals > 0).unsqueeze(1)
    image = MetaTensor(100 + 50 * torch.rand(len(bvals), *size, generator=generator), affine=torch.eye(4))
    return {"image": image, "bvals": bvals, "bvecs": bvecs}


@pytest.mark.parametrize("irreps", OUT)
@pytest.mark.parametrize("architecture", TAKES)
def test_every_architecture_takes_what_its_encoding_gives(architecture, irreps):
    spec = ModelSpec(architecture=architecture, size="tiny", n_directions=12)
    size = (16, 16, 16) if architecture == "invariants" else (16, 8, 8)
    batch = collate_dwi([Compose(encode(spec))(scan(size=size))])
    if architecture == "invariants" and irreps not in SCALARS:
        with pytest.raises(ValueError, match="expected scalars"):
            build_network(spec, irreps)
        return
    image, _, *table = (*prepare_batch(spec)(batch, torch.device("cpu")), (), {})[:4]
    assert spec.in_channels in (None, image.shape[1])
    network = build_network(spec, irreps).eval()
    with torch.no_grad():
        assert network(image, *table[0], **table[1]).shape == (1, OUT[irreps], *size)


@pytest.mark.parametrize(("task", "channels"), [("tissue", 4), ("lesion", 1), ("orientation", 5), (None, 16)])
def test_output_of_a_network_is_that_of_its_task(task, channels):
    """None: a pretrained network gives the harmonic channels of a scan."""
    network = build_network(ModelSpec(architecture="plain", size="tiny", task=task))
    assert network.head.out_channels == channels


def test_size_and_options_reach_the_network():
    plain = {"architecture": "plain", "size": "base"}
    assert build_network(ModelSpec(**plain), "4x0e").head.in_channels == 32
    narrow = ModelSpec(**plain, network_options={"filters": 5})
    assert build_network(narrow, "4x0e").head.in_channels == 5
    levels = ModelSpec(architecture="equivariant", size=["4x0e+1x2e", "8x0e+2x2e"])
    assert build_network(levels, "4x0e").irreps_features == "4x0e+1x2e"


@pytest.mark.parametrize("architecture", TAKES)
def test_option_that_a_network_does_not_have_is_named_with_its_class(architecture):
    spec = ModelSpec(architecture=architecture, size="tiny", network_options={"filterz": 3})
    with pytest.raises(ValueError, match=r"network_options of \w+: .*filterz"):
        build_network(spec, "4x0e")


def test_scale_of_q_is_the_largest_shell_or_what_the_options_say():
    assert build_network(ModelSpec(architecture="pq", size="tiny", shells=[1000, 3000]), "1x0e").b_max == 3000
    own = ModelSpec(architecture="pq", size="tiny", network_options={"b_max": 2500})
    assert own.b_max == 2500
    assert build_network(own, "1x0e").b_max == 2500


def test_thinning_keeps_as_many_directions_as_asked_for():
    spec = ModelSpec(architecture="plain")
    item = Compose(subsample_measurements(spec, [12, 12]))(scan(n=40, b=(1000.0, 2000.0)))
    assert [int((item["bvals"] == b).sum()) for b in (1000, 2000)] == [12, 12]
    assert len(item["image"]) == len(item["bvecs"]) == len(item["bvals"])


def test_dropped_shells_become_zero_channels():
    spec = ModelSpec(architecture="plain", shells=[1000.0, 2000.0], missing="zero")
    item = Compose([*subsample_measurements(spec, drop_shells=1.0), *encode(spec)])(scan(b=(1000.0, 2000.0)))
    assert len(item["image"]) == spec.in_channels == 33
    presence = item["image"][3:5].as_tensor()
    assert sorted(presence.amax(dim=(1, 2, 3)).tolist()) == [0, 1]


def test_dropping_shells_needs_a_model_that_can_do_without():
    with pytest.raises(ValueError, match="drop_shells = 0.3 needs missing='zero', got missing='error'"):
        subsample_measurements(ModelSpec(architecture="plain"), drop_shells=0.3)
