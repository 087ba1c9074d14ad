"""`SphericalHarmonicsd(shells="auto")`: any protocol in a fixed number of channels."""

from __future__ import annotations

import math

import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from torch.testing import assert_close

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.so3 import representation_matrix
from dmri_monai.transforms import RandDropShelld, RandSubsampleDirectionsd, SphericalHarmonicsd
from tests.conftest import STANDARD_AFFINES


def item(
    shells: dict[float, int], affine: torch.Tensor | None = None, size: int = 3
) -> dict[str, torch.Tensor]:
    """A scan of one tensor in every voxel, in the world frame."""
    bvals = torch.cat([torch.zeros(2), *(torch.full((n,), b) for b, n in shells.items())]).double()
    bvecs = torch.cat([torch.zeros(2, 3).double(), *(spread_directions(n) for n in shells.values())])
    signal = 100 * torch.exp(-bvals / 1000 * (bvecs.square() @ torch.tensor([0.3, 0.5, 1.7]).double()))
    image = signal.float().view(-1, 1, 1, 1).expand(-1, size, size, size).contiguous()
    return {"image": MetaTensor(image, affine=affine), "bvals": bvals, "bvecs": bvecs}


def auto(**options) -> SphericalHarmonicsd:
    return SphericalHarmonicsd("image", "auto", 6, **options)


def test_scans_of_different_protocols_have_the_same_channels_and_collate():
    items = [auto()(item(shells)) for shells in ({1000.0: 30}, {700.0: 12, 1300.0: 20, 2800.0: 60})]
    images = [{"image": entry["image"]} for entry in items]
    batch = list_data_collate(images)["image"]
    assert batch.shape == (2, 1 + 4 * 31, 3, 3, 3)
    assert batch.meta["irreps"] == ["17x0e+4x2e+4x4e+4x6e"] * 2
    presence, b = batch[:, 5:9, 0, 0, 0], batch[:, 9:13, 0, 0, 0]
    assert_close(presence.as_tensor(), torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0]]))
    assert_close(b.as_tensor(), torch.tensor([[1.0, 0, 0, 0], [0.7, 1.3, 2.8, 0]]))


@pytest.mark.parametrize("name", ["RAS-iso2", "LAS-2x2x2.5", "oblique-left-1.7x1.7x5", "oblique-right-iso2"])
def test_channels_are_those_of_the_voxel_frame(name):
    affine = STANDARD_AFFINES[name]
    world = auto()(item({1000.0: 45}, torch.eye(4).double()))["image"]
    voxel = auto()(item({1000.0: 45}, affine))["image"]
    into = representation_matrix(voxel.meta["irreps"], grid_rotation(affine).T).float()
    expected = torch.einsum("ij,jxyz->ixyz", into, world.as_tensor())
    assert_close(voxel.as_tensor(), expected, atol=2e-4, rtol=0)
    assert ((voxel.as_tensor() - world.as_tensor()).abs().max() > 0.05) == (name[:3] not in ("RAS", "LAS"))
    assert_close(torch.as_tensor(voxel.meta["voxel_frame"]).double(), grid_rotation(affine))


def test_thinning_shows_in_the_number_of_measurements_and_dropping_in_presence():
    scan = item({1000.0: 40, 2000.0: 40})
    thin = RandSubsampleDirectionsd("image", directions=(10, 10)).set_random_state(0)
    drop = RandDropShelld("image", prob=1.0).set_random_state(0)
    thinned, dropped = (auto()(random(scan))["image"][:, 0, 0, 0] for random in (thin, drop))
    assert_close(thinned[13:15].as_tensor(), torch.full((2,), math.log(10)))
    assert float(dropped[5:9].sum()) == 1
    assert float(dropped[13]) == pytest.approx(math.log(40))


def test_more_shells_than_slots_still_fit():
    scan = item({float(b): 8 for b in range(500, 4000, 500)})
    image = auto(slots=2)(scan)["image"]
    assert len(image) == 1 + 2 * 31
    assert float(image[3:5, 0, 0, 0].sum()) == 2


def test_options_that_only_named_shells_have_are_refused():
    with pytest.raises(ValueError, match="shells='auto' takes no missing, weights_key"):
        auto(missing="zero", weights_key="weights")
    with pytest.raises(ValueError, match="b-values or 'auto', got 'all'"):
        SphericalHarmonicsd("image", "all")
