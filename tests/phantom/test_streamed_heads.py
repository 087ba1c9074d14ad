import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom.head_contrast import draw_contrast
from dmri_monai.phantom.head_model import HeadModel, load_model, save_model
from dmri_monai.phantom.head_pose import HeadPose, draw_pose
from dmri_monai.phantom.head_protocol import draw_protocol
from dmri_monai.phantom.head_sampling import CLASSES, sample_head
from dmri_monai.phantom.head_signal import head_signal, orientation_density
from dmri_monai.phantom.streamed_heads import StreamedHeads, make_head_item
from dmri_monai.so3 import sh_basis
from tests.phantom.small_head import DIAGONAL, small_head

GRID = torch.tensor(
    [[5.0, 0, 0, -57.5], [0, 5, 0, -57.5], [0, 0, 5, -57.5], [0, 0, 0, 1]], dtype=torch.float64
)
SHAPE = (24, 24, 24)
TURN = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # world x of the head's -y: a quarter turn about z


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return small_head()


def still(head: HeadModel, **changes) -> HeadPose:
    """A pose that changes nothing, but for `changes`."""
    rng = np.random.default_rng(0)
    drawn = draw_pose(rng, head, np.array([0.0, 1, 0]), te_ms=80)
    plain = {
        "linear": torch.eye(3), "centre_world": torch.zeros(3), "stages": (), "bias": (0.0, 0.0, 0.0),
        "border_noise": 0.0, "ventricle_mm": -60.0, "field_mm": torch.zeros(len(drawn.cavities)),
        "coil_strength": 0.0, "surface": 0.0, "centre_head": torch.zeros(3),
    }  # fmt: skip
    return HeadPose(**{**vars(drawn), **plain, **changes})


def sampled(head: HeadModel, pose: HeadPose):
    return sample_head(head, pose, GRID, SHAPE, torch.Generator().manual_seed(0))


def test_shares_of_the_tissues_sum_to_one_and_follow_the_model(head):
    found = sampled(head, still(head))
    torch.testing.assert_close(found.fractions.sum(0), torch.ones(math.prod(SHAPE)))
    centre = found.fractions.view(-1, *SHAPE)[:, 12, 12, 12]
    assert centre[0] == 1
    assert found.fractions.view(-1, *SHAPE)[CLASSES.index("air"), 0, 0, 0] == 1
    brain_l = float(found.fractions[:3].sum()) * 0.125e-3
    assert abs(brain_l / float(head.size_l) - 1) < 0.15  # a rim of fluid comes on top


def test_a_pose_that_changes_nothing_has_gain_one(head):
    torch.testing.assert_close(sampled(head, still(head)).gain, torch.ones(math.prod(SHAPE)))


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        (torch.eye(3), DIAGONAL),
        (TURN.T, TURN @ DIAGONAL),
        (torch.diag(torch.tensor([-1.0, 1, 1])), DIAGONAL * torch.tensor([-1.0, 1, 1])),
    ],
    ids=["still", "turned", "mirrored"],
)
def test_fibres_turn_with_the_head(head, linear, expected):
    found = sampled(head, still(head, linear=linear))
    along = found.directions[found.fractions[0, found.index] > 0.9, 0] @ expected
    assert along.abs().min() > 0.99


def test_a_turned_head_has_other_fibres_than_a_still_one(head):
    found = sampled(head, still(head, linear=TURN.T))
    along = found.directions[found.fractions[0, found.index] > 0.9, 0] @ DIAGONAL
    assert along.abs().max() < 0.5


def test_the_field_moves_signal_along_phase_encoding_only_and_fades_with_distance(head):
    pose = still(head, field_mm=torch.tensor([6.0]), cavities=torch.tensor([[0.0, 0, 0, 15.0]]))
    points = torch.tensor([[0.0, 0, 18.0], [0, 0, 90.0]])
    moved, gain = pose.distorted(points)
    shift = moved - points
    assert shift[:, [0, 2]].abs().max() == 0
    assert shift[0, 1].abs() > 10 * shift[1, 1].abs() > 0
    assert gain[0] < gain[1] <= 1.0


def test_orientation_density_integrates_to_the_white_matter_and_peaks_along_the_fibres(head):
    found = sampled(head, still(head))
    density = orientation_density(found, torch.full((len(found.index),), 0.02))
    torch.testing.assert_close(density[0] * (4 * math.pi) ** 0.5, found.fractions[0, found.index])
    white = int(torch.nonzero(found.fractions[0, found.index] == 1)[0])
    ends = torch.stack([DIAGONAL, DIAGONAL * torch.tensor([1.0, -1, 1])])
    along, across = sh_basis(ends, 8) @ density[:, white]
    assert along > 5 * across.abs()


def test_signal_is_weakest_along_the_fibres_and_free_of_direction_in_fluid(head):
    found = sampled(head, still(head))
    contrast = draw_contrast(np.random.default_rng(1))
    density = orientation_density(found, torch.full((len(found.index),), contrast.dispersion))
    ends = torch.stack([torch.zeros(3), DIAGONAL, DIAGONAL * torch.tensor([1.0, -1, 1])]).double()
    table = GradientTable(torch.tensor([0.0, 1500, 1500]), ends)
    b0, along, across = head_signal(found, contrast, table, density, torch.zeros(3, math.prod(SHAPE)))
    white = found.fractions[0] == 1
    assert (along[white] < 0.6 * across[white]).all()
    torch.testing.assert_close(b0[white], contrast.s0[0].expand(int(white.sum())), rtol=2e-2, atol=0)
    fluid = found.fractions[CLASSES.index("csf")] > 0.9
    assert fluid.any()
    torch.testing.assert_close(along[fluid], across[fluid], rtol=0.2, atol=1e-3)


def test_an_old_head_has_more_fluid_than_a_young_one(head):
    young = sampled(head, still(head))
    old = sampled(head, still(head, bias=(0.0, 0.0, 0.3)))
    fluid = CLASSES.index("csf")
    assert old.fractions[fluid].sum() > 1.05 * young.fractions[fluid].sum()


def test_item_holds_a_scan_and_its_truth_on_one_grid(head):
    item = make_head_item((0, 0, 3), {"small": head}, size=20)
    n, *shape = item["image"].shape
    assert n == len(item["bvals"]) == len(item["bvecs"])
    assert max(shape) <= 20
    assert item["image"].isfinite().all()
    assert (item["image"] >= 0).all()
    for key, channels in {"label": 1, "mask": 1, "fractions": 3, "fod": 45, "peaks": 9}.items():
        assert item[key].shape == (channels, *shape)
        torch.testing.assert_close(item[key].affine, item["image"].affine)
    outside = 1 - item["fractions"].as_tensor().sum(0, keepdim=True)
    expected = torch.cat([outside, item["fractions"].as_tensor()]).argmax(0)
    assert torch.equal(item["label"].as_tensor()[0].long(), expected)


def test_item_is_a_function_of_its_seed_and_no_two_are_the_same(head):
    first, again, other = (make_head_item((0, 1, i), {"small": head}, size=16) for i in (4, 4, 5))
    assert torch.equal(first["image"].as_tensor(), again["image"].as_tensor())
    assert first["image"].shape != other["image"].shape or not torch.equal(
        first["image"].as_tensor(), other["image"].as_tensor()
    )


def test_scan_without_noise_or_artifacts_follows_the_units_of_the_scanner(head):
    item = make_head_item((0, 0, 7), {"small": head}, size=20, artifact_share=0.0)
    b0 = item["image"].as_tensor()[item["bvals"] == 0].mean(0)
    white = item["fractions"].as_tensor()[0] > 0.9
    assert b0[white].median() > 3 * b0[item["mask"].as_tensor()[0] == 0].median()


def test_two_workers_yield_the_items_of_one(head):
    def images(workers: int) -> list[torch.Tensor]:
        stream = StreamedHeads({"small": head}, length=4, seed=2, size=12)
        context = "fork" if workers else None
        loader = DataLoader(stream, batch_size=None, num_workers=workers, multiprocessing_context=context)
        return [item["image"].as_tensor() for item in loader]

    for alone, shared in zip(images(0), images(2), strict=True):
        assert torch.equal(alone, shared)


def test_protocols_cover_clinical_and_research_scans():
    drawn = [draw_protocol(np.random.default_rng(i), 48) for i in range(200)]
    counts = [len(p.table) for p in drawn]
    spacing = torch.stack([p.affine[:3, :3].norm(dim=0) for p in drawn])
    assert min(counts) < 12
    assert max(counts) > 80
    assert {len(p.table.shells()) for p in drawn} >= {1, 2, 3}
    assert spacing.min() < 1.7
    assert spacing.max() > 5.0
    assert sum(int(p.table.b0_mask.sum()) == 1 for p in drawn) > 60
    assert all(max(p.shape) <= 48 for p in drawn)
    assert {int(torch.linalg.det(p.affine).sign()) for p in drawn} == {-1, 1}
    assert all(p.phase_axis != p.slice_axis for p in drawn)


def test_a_model_is_read_as_it_was_written(head, tmp_path):
    save_model(tmp_path / "small.head.npz", head)
    again = load_model(tmp_path / "small.head.npz")
    for name, value in vars(head).items():
        assert torch.equal(getattr(again, name), value), name


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "other.head.npz", tissue=np.zeros(3))
    with pytest.raises(ValueError, match=r"affine.*missing: .*other\.head\.npz"):
        load_model(tmp_path / "other.head.npz")


@pytest.mark.parametrize(
    ("options", "message"), [({"size": 4}, "size: 4"), ({"length": 0}, "length: 0")], ids=["size", "length"]
)
def test_impossible_streams_of_heads_are_refused(head, options, message):
    with pytest.raises(ValueError, match=message):
        StreamedHeads({"small": head}, **{"length": 2, **options})


def test_a_stream_without_heads_is_refused():
    with pytest.raises(ValueError, match="at least one head"):
        StreamedHeads({}, length=2)
