"""From a scan on disk to directions in the world frame: what the symmetry of the networks is for."""

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientationd
from torch.nn.functional import normalize

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.io import write_dwi
from dmri_monai.networks import EquivariantUNet, PlainUNet, PQSegmentationNet
from dmri_monai.qspace.shell_fit import harmonic_irreps
from dmri_monai.testing import act_on_field, cube_rotations
from dmri_monai.transforms import (
    DirectionsToWorldFramed,
    LoadDWId,
    SphericalHarmonicsd,
    ToVoxelFramed,
    turn_directions,
)
from tests.conftest import ORIENTATIONS, grid_affine

VOLUMES, SIZE, OUTPUT = 22, (16, 16, 16), "1x0e+1x1o+1x2e"
AFFINE = grid_affine(ORIENTATIONS["oblique-left"], (2.0, 2.0, 2.0))
REFLECTION = torch.tensor([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
# three run every time, the rest in the full suite
ROTATIONS = [
    pytest.param(g, id=str(i), marks=() if i % 8 == 1 else pytest.mark.slow)
    for i, g in enumerate(cube_rotations())
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def scan():
    signal = 0.1 + torch.rand(VOLUMES, *SIZE)
    signal[:2] += 1
    bvecs = normalize(torch.randn(VOLUMES, 3, dtype=torch.float64), dim=-1)
    bvals = torch.full((VOLUMES,), 1000.0, dtype=torch.float64)
    bvals[:2] = 0
    return signal, GradientTable(bvals, bvecs), AFFINE


def turned_voxels(g, field):
    """The array (C, X, Y, Z) turned by `g` without its components."""
    return act_on_field(g, field.unsqueeze(0), f"{len(field)}x0e")[0]


def turned_head(g, scan):
    """The same head turned in the scanner by the rotation that is `g` in voxel axes: world directions turn with it."""
    signal, table, affine = scan
    frame = grid_rotation(affine)
    world = frame @ g @ frame.T
    return (turned_voxels(g, signal), GradientTable(table.bvals, table.bvecs @ world.T), affine), world


def stored_otherwise(g, scan):
    """The same head and table, array axes permuted and flipped by `g`, the affine along with them."""
    signal, table, affine = scan
    other = affine.clone()
    other[:3, :3] = affine[:3, :3] @ g.T
    centre = (torch.tensor(SIZE, dtype=torch.float64) - 1) / 2
    other[:3, 3] = affine[:3, 3] + (affine[:3, :3] - other[:3, :3]) @ centre
    return turned_voxels(g, signal), table, other


def predict(network, scan, tmp_path, axcodes=None):
    """World-frame output (C, X, Y, Z) for a scan that is written to disk, read again and brought to `axcodes`."""
    signal, table, affine = scan
    write_dwi(tmp_path / "dwi.nii.gz", MetaTensor(signal, affine=affine), table)
    item = LoadDWId()({"image": tmp_path / "dwi.nii.gz"})
    if axcodes is not None:
        item = Orientationd("image", axcodes=axcodes, labels=None)(item)
    with torch.no_grad():
        if isinstance(network, PQSegmentationNet):
            item = ToVoxelFramed("image")(item)
            table = (item[key].unsqueeze(0) for key in ("bvals", "bvecs_voxel"))
            item["pred"] = network(item["image"].unsqueeze(0), *table)[0]
        else:
            item = SphericalHarmonicsd()(item)
            item["pred"] = network(item["image"].unsqueeze(0))[0]
    return DirectionsToWorldFramed("pred", OUTPUT, ref_key="image")(item)["pred"].as_tensor()


EQUIVARIANT = {
    "unet": lambda: EquivariantUNet(harmonic_irreps(1, 4), OUTPUT, "tiny").eval(),
    "pq": lambda: PQSegmentationNet(OUTPUT, 1000.0, [[2, 1]], [[2, 1]], 3).eval(),
}


def plain():
    return PlainUNet(16, 9, filters=2).eval()


def relative_error(output, expected):
    assert expected.std() > 1e-3
    return float((output - expected).norm() / expected.norm())


def head_error(network, g, scan, tmp_path):
    turned, world = turned_head(g, scan)
    expected = turn_directions(turned_voxels(g, predict(network, scan, tmp_path)), OUTPUT, world)
    return relative_error(predict(network, turned, tmp_path), expected)


def storage_error(network, g, scan, tmp_path):
    expected = turned_voxels(g, predict(network, scan, tmp_path))
    return relative_error(predict(network, stored_otherwise(g, scan), tmp_path), expected)


@pytest.mark.parametrize("make", EQUIVARIANT.values(), ids=EQUIVARIANT.keys())
@pytest.mark.parametrize("g", ROTATIONS)
def test_answer_turns_with_a_head_turned_in_the_scanner(make, g, scan, tmp_path):
    assert head_error(make(), g, scan, tmp_path) <= 1e-4


@pytest.mark.parametrize("make", EQUIVARIANT.values(), ids=EQUIVARIANT.keys())
def test_storage_order_and_handedness_of_the_array_do_not_matter(make, scan, tmp_path):
    assert storage_error(make(), REFLECTION, scan, tmp_path) <= 1e-4


@pytest.mark.parametrize("make", [*EQUIVARIANT.values(), plain], ids=[*EQUIVARIANT, "plain"])
def test_storage_does_not_matter_to_any_network_where_the_axes_are_fixed_first(make, scan, tmp_path):
    network = make()
    expected = predict(network, scan, tmp_path, "RAS")
    stored = predict(network, stored_otherwise(REFLECTION, scan), tmp_path, "RAS")
    assert relative_error(stored, expected) <= 1e-4


def test_answer_of_a_plain_network_does_not_turn_with_the_head(scan, tmp_path):
    assert head_error(plain(), cube_rotations()[1], scan, tmp_path) > 0.1


def test_answer_of_a_plain_network_depends_on_storage(scan, tmp_path):
    assert storage_error(plain(), REFLECTION, scan, tmp_path) > 0.1
