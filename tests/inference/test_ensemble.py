import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from dmri_monai.inference.architectures import build_network
from dmri_monai.inference.ensemble import RotationEnsemble, SplitUncertaintyd, ensemble_of, grid_symmetries
from dmri_monai.inference.inferers import FullVolumeInferer
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.networks import PQSegmentationNet
from dmri_monai.networks.input_checks import spacing_of
from dmri_monai.tasks import find_task
from dmri_monai.testing import act_on_field, assert_equivariant
from tests.conftest import ORIENTATIONS, grid_affine

MODEL = ModelSpec(architecture="plain", size="tiny")
IRREPS = MODEL.irreps


def volume(seed=0):
    return torch.rand(1, 16, 8, 7, 6, generator=torch.Generator().manual_seed(seed))


def network(out=4):
    torch.manual_seed(0)
    return nn.Conv3d(16, out, 3, padding=1).requires_grad_(False)


@pytest.mark.parametrize(
    ("group", "spacing", "count"),
    [
        ("rotations", (2, 2, 2), 24),
        ("rotations", (2, 2, 3), 8),
        ("rotations", (2, 2.5, 3), 4),
        ("flips", (2, 2, 3), 8),
    ],
)
def test_only_turns_that_keep_the_voxel_size_of_the_scan_are_used(group, spacing, count):
    seen = []

    def counting(image):
        seen.append(image)
        assert spacing_of(image).tolist() == [pytest.approx(spacing)]
        return image[:, :4]

    affine = grid_affine(ORIENTATIONS["oblique-left"], spacing)
    image = MetaTensor(volume(), affine=affine)
    ensemble_of(FullVolumeInferer(), group, MODEL, find_task("tissue"))(image, counting)
    assert len(seen) == count


@pytest.mark.parametrize("name", ["tissue", "orientation"])
def test_ensemble_makes_any_network_equivariant(name):
    this = find_task(name)
    single = network(4 if name == "tissue" else 5)
    ensemble = ensemble_of(FullVolumeInferer(), "rotations", MODEL, this)
    channels = 4 if name == "tissue" else 5

    def answer(image):
        return ensemble(image, single)[:, :channels]

    assert_equivariant(answer, volume(), IRREPS, this.irreps_out, rtol=1e-4)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(single, volume(), IRREPS, this.irreps_out, rtol=1e-4)


def test_turns_of_a_network_for_any_protocol_agree():
    model = ModelSpec(
        architecture="any", slots=2, size=["4x0e+1x1o+1x2e", "4x0e+1x1o+1x2e"], task="orientation"
    )
    torch.manual_seed(0)
    single, image = (
        build_network(model).eval().requires_grad_(False),
        torch.rand(1, model.in_channels, 5, 6, 7),
    )
    for parameter in single.head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ensemble = ensemble_of(FullVolumeInferer(), "rotations", model, find_task("orientation"))
    output = ensemble(image, single)
    torch.testing.assert_close(output[:, :5], single(image), rtol=1e-3, atol=1e-4)
    assert float(output[:, 5].max()) < 2e-2


def test_spread_is_zero_where_all_members_agree_and_positive_where_not():
    def invariant(image):
        return torch.cat([image[:, :2], image[:, 2:7].norm(dim=1, keepdim=True), image[:, :1]], dim=1)

    ensemble = ensemble_of(FullVolumeInferer(), "rotations", MODEL, find_task("tissue"))
    assert float(ensemble(volume(), invariant)[:, 4].max()) < 1e-3
    assert float(ensemble(volume(), network())[:, 4].mean()) > 1e-2


def test_table_of_a_network_on_samples_turns_with_the_scan():
    torch.manual_seed(0)
    pq = PQSegmentationNet("1x2e", 1000.0, pq=[[2, 1]], p=[[3, 1]], kernel_size=3).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    bvecs = nn.functional.normalize(torch.randn(1, 6, 3, generator=generator), dim=-1)
    bvecs[:, 0] = 0
    bvals = torch.tensor([[0.0] + [1000.0] * 5])
    image = torch.rand(1, 6, 5, 6, 7, generator=generator)
    ensemble = RotationEnsemble(
        FullVolumeInferer(),
        grid_symmetries("rotations")[:5],
        None,
        "1x2e",
        find_task("orientation").output.features,
    )
    result = ensemble(image, pq, bvals=bvals, bvecs_voxel=bvecs)
    single = pq(image, bvals=bvals, bvecs_voxel=bvecs)
    torch.testing.assert_close(result[:, :5], single, rtol=1e-3, atol=1e-4)
    assert float(result[:, 5].max()) < 2e-2


def test_turned_volume_is_turned_back_exactly():
    for turn in grid_symmetries("flips"):
        there = act_on_field(turn, volume(), IRREPS)
        torch.testing.assert_close(act_on_field(turn.T, there, IRREPS), volume())


def test_fixed_directions_cannot_be_turned():
    model = ModelSpec(architecture="plain-directions", size="tiny")
    with pytest.raises(ValueError, match="'plain-directions' has directions fixed"):
        ensemble_of(FullVolumeInferer(), "rotations", model, find_task("tissue"))


def test_unknown_group_names_the_choices():
    with pytest.raises(ValueError, match="ensemble is 'tta', expected null or one of rotations, flips"):
        ensemble_of(FullVolumeInferer(), "tta", MODEL, find_task("tissue"))


def test_uncertainty_is_split_from_the_prediction():
    item = SplitUncertaintyd("pred")({"pred": torch.arange(5.0).view(5, 1, 1, 1)})
    assert item["pred"].flatten().tolist() == [0, 1, 2, 3]
    assert item["uncertainty"].flatten().tolist() == [4]
