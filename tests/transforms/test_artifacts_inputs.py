"""Scans as they come: odd sizes, few volumes, half precision, strange memory; and what is refused by name."""

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from dmri_monai.artifacts.engine import (
    ARTIFACTS,
    Ghost,
    Motion,
    Noise,
    Preset,
    Susceptibility,
    VenetianBlind,
    corrupt,
    ground_truth,
    replay,
)
from dmri_monai.gradients import grid_rotation
from dmri_monai.transforms.artifacts import RandDWIArtifactsd
from tests.transforms.test_artifacts import EVERYTHING, make_item

AFFINE = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))


def raw(count=8, shape=(6, 7, 9), n_b0=1, scale=1000.0):
    """Rough scan (N, X, Y, Z) with its b-values and b-vectors."""
    generator = torch.Generator().manual_seed(0)
    bvecs = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    bvals = torch.full((count,), 1000.0)
    bvals[:n_b0], bvecs[:n_b0] = 0.0, 0.0
    return torch.rand(count, *shape, generator=generator) * scale + 1, bvals, bvecs


def everything(image, bvals, bvecs, seed=0, **options):
    return corrupt(image, bvals, bvecs, **({"affine": AFFINE, "preset": EVERYTHING} | options), seed=seed)


SHAPES = [(7, 9, 5), (8, 8, 1), (1, 8, 8), (8, 1, 8), (2, 2, 2), (1, 1, 1)]
TABLES = [(1, 1), (1, 0), (2, 0), (5, 5), (30, 0)]
CASES = [(8, shape, 1) for shape in SHAPES] + [(count, (8, 9, 6), n_b0) for count, n_b0 in TABLES]


@pytest.mark.parametrize(
    ("count", "shape", "n_b0"),
    CASES,
    ids=["odd", "one-slice", "one-sagittal", "one-coronal", "two", "one-voxel"]
    + ["one-b0", "one-weighted", "two-weighted", "b0-only", "no-b0"],
)
@pytest.mark.parametrize("seed", [0, 1], ids=["seed-0", "seed-1"])
def test_every_artifact_takes_every_scan_and_replays(count, shape, n_b0, seed):
    scan = raw(count, shape, n_b0)
    corrupted, record = everything(*scan, seed=seed)
    assert corrupted.shape == scan[0].shape
    assert bool(corrupted.isfinite().all())
    assert float(corrupted.min()) >= 0
    assert [entry["artifact"] for entry in record["applied"]] == list(ARTIFACTS)
    again = replay(*scan, affine=AFFINE, record=record)
    torch.testing.assert_close(again, corrupted, rtol=0, atol=0)
    assert all(hits.shape == (count, shape[2]) for hits in ground_truth(record, AFFINE).values())


def test_empty_scan_stays_empty():
    image, bvals, bvecs = raw()
    corrupted, _ = everything(0 * image, bvals, bvecs)
    assert float(corrupted.abs().max()) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_is_the_rounded_result_of_single_precision(dtype):
    image, bvals, bvecs = raw(shape=(24, 24, 24))  # the sum of a volume is beyond float16
    half = image.to(dtype)
    corrupted, _ = everything(half, bvals, bvecs)
    expected, _ = everything(half.float(), bvals, bvecs)
    assert corrupted.dtype == dtype
    torch.testing.assert_close(corrupted, expected.to(dtype), rtol=0, atol=0)


def test_signal_beyond_half_precision_becomes_its_largest_number():
    image, bvals, bvecs = raw(scale=60000.0)
    corrupted, _ = everything(image.half(), bvals, bvecs, preset=VenetianBlind(strength=1.0))
    assert bool(corrupted.isfinite().all())
    assert float(corrupted.max()) == torch.finfo(torch.float16).max


def test_double_precision_is_kept():
    image, bvals, bvecs = raw()
    quiet = {"preset": Preset("quiet", tuple(a for a in EVERYTHING.artifacts if a.name not in RANDOM_FIELDS))}
    corrupted, _ = everything(image.double(), bvals, bvecs, **quiet)
    assert corrupted.dtype == torch.float64
    expected, _ = everything(image, bvals, bvecs, **quiet)
    torch.testing.assert_close(corrupted, expected.double(), rtol=1e-4, atol=0.1)


RANDOM_FIELDS = ("noise", "zipper")


@pytest.mark.parametrize(
    "view",
    [lambda x: x.permute(0, 3, 1, 2), lambda x: x[:, ::2], lambda x: x[:1].expand(8, 6, 7, 9)],
    ids=["permuted", "strided", "expanded"],
)
def test_memory_layout_does_not_matter(view):
    image, bvals, bvecs = raw()
    strange = view(image)
    before = strange.clone()
    torch.testing.assert_close(
        everything(strange, bvals, bvecs)[0], everything(before, bvals, bvecs)[0], rtol=0, atol=0
    )
    torch.testing.assert_close(strange, before, rtol=0, atol=0)


def test_meta_tensor_is_taken_and_a_plain_tensor_returned():
    image, bvals, bvecs = raw()
    expected, _ = everything(image, bvals, bvecs)
    single, _ = everything(MetaTensor(image, affine=AFFINE), bvals, bvecs)
    batch, _ = everything(MetaTensor(image[None], affine=AFFINE), bvals[None], bvecs[None], seed=[0])
    for result in (single, batch[0]):
        assert type(result) is torch.Tensor
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_no_gradient_leaves_the_corruption():
    image, bvals, bvecs = raw()
    assert not everything(image.requires_grad_(), bvals, bvecs)[0].requires_grad


def test_invalid_volumes_between_valid_ones_are_left_alone():
    image, bvals, bvecs = raw(10)
    valid = torch.ones(10, dtype=torch.bool)
    valid[[3, 7]] = False
    image[~valid] = -1.0  # whatever padding holds
    bvals[7] = math.nan
    corrupted, record = everything(image, bvals, bvecs, valid=valid)
    torch.testing.assert_close(corrupted[~valid], image[~valid], rtol=0, atol=0)
    alone, _ = everything(image[valid], bvals[valid], bvecs[valid])
    torch.testing.assert_close(corrupted[valid], alone, rtol=0, atol=0)
    truth = ground_truth(record, AFFINE)["noise"]
    assert truth.any(1).tolist() == valid.tolist()


def test_record_is_replayed_on_the_scan_stored_in_another_orientation():
    item = make_item()
    image, q = item["image"].as_tensor(), grid_rotation(item["image"].affine)
    affine = torch.as_tensor(item["image"].affine)
    corrupted, record = corrupt(
        image, item["bvals"], item["bvecs"].double() @ q, affine=affine, preset=EVERYTHING, seed=3
    )
    step = torch.eye(4, dtype=torch.float64)[[1, 2, 0, 3]]  # new array axes: y, -z, x
    step[2, 1], step[2, 3] = -1.0, image.shape[3] - 1.0
    step[:3, :3] = torch.tensor([[0, 0, 1], [1, 0, 0], [0, -1, 0]])
    turned = replay(
        image.permute(0, 2, 3, 1).flip(2),
        item["bvals"],
        item["bvecs"].double() @ grid_rotation(affine @ step),
        affine=affine @ step,
        record=record,
    )
    torch.testing.assert_close(turned, corrupted.permute(0, 2, 3, 1).flip(2), rtol=1e-4, atol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"seed": 3.7}, "seed is 3.7"),
        ({"seed": [1, 2]}, r"seed is \[1, 2\]"),
        ({"valid": torch.ones(5).bool()}, r"valid has shape \(5,\), expected \(8,\)"),
        ({"valid": torch.zeros(8).bool()}, "valid: none of 8 volumes"),
        ({"affine": torch.eye(3)}, r"affine has shape \(3, 3\)"),
        ({"field_hz": torch.full((6, 7, 9), math.nan)}, "field_hz is nan"),
        ({"field_hz": torch.zeros(6, 7, 8)}, r"field_hz has shape \(6, 7, 8\), expected \(6, 7, 9\)"),
        ({"meta": {"multiband_factor": -2}}, "multiband_factor is -2"),
        ({"meta": {"multiband_factor": 2.5}}, "multiband_factor is 2.5"),
        ({"meta": {"total_readout_time_s": -0.5}}, "total_readout_time_s is -0.5"),
        ({"meta": {"slice_timing_s": [math.nan] * 9}}, "slice_timing_s is nan"),
        ({"meta": {"phase_encoding_world": [1.0, 1.0, 0.0]}}, r"phase_encoding_world is \[1.0, 1.0, 0.0\]"),
    ],
    ids=["negative-seed", "fraction-seed", "seeds", "valid-shape", "none-valid", "affine", "field-nan"]
    + ["field-shape", "multiband", "multiband-fraction", "readout", "timing", "phase-encoding"],
)
def test_bad_arguments_are_named(change, message):
    scan = raw()
    with pytest.raises(ValueError, match=message):
        corrupt(*scan, **({"affine": AFFINE, "preset": Susceptibility(), "seed": 0} | change))


@pytest.mark.parametrize(
    ("row", "message"),
    [("nan-b", "bvals is nan"), ("negative-b", "bvals is -5"), ("nan-g", "bvecs_voxel is nan")],
    ids=lambda v: v.replace(" ", "-"),
)
def test_bad_tables_are_named(row, message):
    image, bvals, bvecs = raw()
    if row == "nan-g":
        bvecs[3, 1] = math.nan
    else:
        bvals[3] = math.nan if row == "nan-b" else -5.0
    with pytest.raises(ValueError, match=message):
        everything(image, bvals, bvecs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Noise(coils=(1.5, 4)), r"noise: coils is \(1.5, 4\), expected whole numbers"),
        (lambda: Motion(events=0.5), r"motion: events is \(0.5, 0.5\), expected whole numbers"),
        (lambda: Ghost(prob=True), "ghost: prob is True"),
        (lambda: RandDWIArtifactsd(prob=2.0), "prob is 2.0, expected 0 to 1"),
        (lambda: RandDWIArtifactsd(prob=math.nan), "prob is nan"),
        (lambda: RandDWIArtifactsd("dwi", target_key="dwi"), "target_key is 'dwi'"),
    ],
    ids=["coils", "events", "bool", "prob", "nan", "target"],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numpy_numbers_are_numbers():
    _, record = everything(*raw(), preset=Ghost(phase_deg=np.float32(3.0)), seed=np.int64(4))
    assert record["applied"][0]["drawn"]["phase_deg"] == 3.0
    assert record["seed"] == 4
