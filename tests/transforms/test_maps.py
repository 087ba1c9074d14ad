from __future__ import annotations

import os

import dipy.data
import monai.transforms as mt
import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.sims.voxel import multi_tensor
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.phantom import make_subject
from dmri_monai.transforms import (
    BrainMaskd,
    LoadDWId,
    RandRotateMMd,
    ResampleDirectionsd,
    RotationInvariantsd,
    SphericalHarmonicsd,
    TensorMetricsd,
)
from tests.transforms.fields import (
    ORIENTATIONS,
    axial_degrees,
    directions,
    field_item,
    true_direction,
    world_points,
)

FILES = os.path.join(os.path.dirname(dipy.data.__file__), "files")


def crossing(bvecs: np.ndarray, n_voxels: int = 40) -> torch.Tensor:
    """(N, V, 1, 1) noise-free signal at b = 1000 (first volume b0) of DIPY's multi-tensor crossings."""
    bvals = np.r_[0.0, np.full(len(bvecs), 1000.0)]
    table = gradient_table(bvals, bvecs=np.r_[np.zeros((1, 3)), bvecs])
    rng, signals = np.random.default_rng(0), []
    for _ in range(n_voxels):
        angles = [(rng.uniform(0, 180), rng.uniform(0, 360)) for _ in range(2)]
        fraction = rng.uniform(20, 80)
        evals = np.array([[1.7e-3, 0.3e-3, 0.3e-3], [1.5e-3, 0.4e-3, 0.4e-3]])
        signals.append(
            multi_tensor(table, evals, S0=100, angles=angles, fractions=[fraction, 100 - fraction], snr=None)[
                0
            ]
        )
    return torch.tensor(np.stack(signals, axis=1), dtype=torch.float32).view(-1, n_voxels, 1, 1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_thirty_directions_become_sixty_four_with_two_percent_error(orientation):
    item = field_item(orientation, n=30, shape=(40, 1, 1))
    bvecs = directions(30)
    item["image"] = type(item["image"])(crossing(bvecs), affine=item["image"].affine)
    out = ResampleDirectionsd(n_directions=64)(item)
    assert out["image"].shape == (65, 40, 1, 1)
    expected = crossing(out["bvecs"][1:].double().numpy())
    error = (out["image"].as_tensor() - expected).norm(dim=0) / expected.norm(dim=0)
    assert error.max() <= 0.02


def phantom(bvecs: torch.Tensor) -> dict:
    """Noise-free phantom at b = 1000 along world vectors (N, 3), its first volume b0, as an item with its brain."""
    bvals, vectors = torch.tensor([0.0] + [1000.0] * len(bvecs)), torch.cat([torch.zeros(1, 3), bvecs])
    subject = make_subject(
        7, shape=(24, 28, 24), spacing_mm=(5.0, 5.0, 5.0), scheme=GradientTable(bvals, vectors)
    )
    image = MetaTensor(subject.clean, affine=subject.affine)
    return {
        "image": image,
        "bvals": bvals,
        "bvecs": vectors.float(),
        "brain": subject.brain_mask.squeeze() > 0,
    }


def test_thirty_directions_of_the_phantom_become_sixty_four_with_two_percent_error():
    item = phantom(torch.tensor(directions(30)))
    out = ResampleDirectionsd(n_directions=64)(item)
    expected = phantom(out["bvecs"][1:].double())["image"].as_tensor()[1:, item["brain"]]
    ours = out["image"].as_tensor()[1:, item["brain"]]
    assert ((ours - expected).norm(dim=0) / expected.norm(dim=0)).max() <= 0.02
    shuffled = ours.roll(1, dims=0)  # the control: the same signal along other directions
    assert ((shuffled - expected).norm(dim=0) / expected.norm(dim=0)).max() > 0.1


def test_the_scheme_is_fixed_in_the_voxel_frame():
    tables = []
    for orientation in ORIENTATIONS:
        out = ResampleDirectionsd(n_directions=20)(field_item(orientation, shape=(4, 4, 4)))
        tables.append(out["bvecs"].double() @ grid_rotation(out["image"].affine))
    for table in tables[1:]:
        torch.testing.assert_close(table, tables[0], atol=1e-6, rtol=0)


def test_resampled_scans_still_give_the_right_tensors():
    item = field_item("oblique", "aniso", (10, 10, 10))
    out = TensorMetricsd(metrics=("v1",))(ResampleDirectionsd(n_directions=64)(item))
    truth = true_direction(world_points(item["image"].affine.numpy(), (10, 10, 10)))
    assert axial_degrees(np.moveaxis(out["v1"].as_tensor().numpy(), 0, -1), truth).max() < 1.0


def test_directions_of_ones_own_and_no_b0():
    own = directions(12).tolist()
    out = ResampleDirectionsd(directions=own, b0="drop", shells=[1000])(field_item(shape=(3, 3, 3)))
    assert out["image"].shape == (12, 3, 3, 3)
    assert out["bvals"].tolist() == [1000.0] * 12


def test_a_flip_after_resampling_directions_is_caught():
    from dmri_monai.transforms import check_voxel_frame

    item = mt.Flipd("image", 0)(ResampleDirectionsd(n_directions=20)(field_item(shape=(4, 4, 4))))
    with pytest.raises(ValueError, match="mirrored"):
        check_voxel_frame(item["image"])


def test_invariants_do_not_depend_on_the_rotation():
    item = field_item("oblique", "aniso", (15, 15, 15), n=60)
    both = mt.Compose([SphericalHarmonicsd(shells=[1000]), RotationInvariantsd("image")])
    turn = RandRotateMMd(prob=1).set_random_state(0)
    before, after = both(item)["image"], both(turn(item))["image"]
    assert before.shape[0] == 4
    centre = (slice(None), 7, 7, 7)
    torch.testing.assert_close(after.as_tensor()[centre], before.as_tensor()[centre], rtol=5e-3, atol=1e-5)
    assert before.meta["irreps"] == "4x0e"
    assert "voxel_frame" not in before.meta


def test_invariant_power_is_the_energy_of_the_function():
    from dmri_monai.qspace.invariants import power_spectrum
    from dmri_monai.so3 import sh_basis

    field = torch.randn(1, 15, 1, 1, 1, dtype=torch.float64)
    points = torch.nn.functional.normalize(torch.randn(200_000, 3, dtype=torch.float64), dim=1)
    energy = (sh_basis(points, 4) @ field.flatten()).square().mean() * 4 * np.pi
    power = power_spectrum(field, "1x0e+1x2e+1x4e").flatten()
    torch.testing.assert_close(power[0] ** 2 + power[1] + power[2], energy, rtol=0.03, atol=0)


def test_invariants_need_harmonics():
    with pytest.raises(ValueError, match="holds no harmonics"):
        RotationInvariantsd("image")(field_item(shape=(3, 3, 3)))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_principal_direction_is_given_in_the_world_frame(orientation):
    item = mt.Flipd("image", 2)(field_item(orientation, "thick", (8, 8, 8)))
    out = TensorMetricsd(metrics=("fa", "v1", "tensor"))(item)
    truth = true_direction(world_points(item["image"].affine.numpy(), (8, 8, 8)))
    assert axial_degrees(np.moveaxis(out["v1"].as_tensor().numpy(), 0, -1), truth).max() < 0.05
    assert out["tensor"].shape == (6, 8, 8, 8)
    torch.testing.assert_close(out["fa"].affine, item["image"].affine)


def test_unknown_metrics_are_an_error():
    with pytest.raises(ValueError, match=r"\['mk'\] are not among"):
        TensorMetricsd(metrics=("fa", "mk"))


def test_brain_mask_of_a_ball_is_the_ball():
    item = field_item("RAS", "iso", (24, 24, 24), n=6)
    radius = torch.tensor(world_points(item["image"].affine.numpy(), (24, 24, 24))).norm(dim=-1)
    item["image"] = item["image"] * (radius < 15)
    mask = BrainMaskd(median_radius=1)(item)["mask"]
    assert mask.shape == (1, 24, 24, 24)
    overlap = (mask[0].bool() & (radius < 15)).sum() * 2 / (mask.sum() + (radius < 15).sum())
    assert overlap > 0.9


def test_a_mask_given_is_kept():
    item = LoadDWId()({"image": os.path.join(FILES, "small_64D.nii")})
    item["mask"] = torch.ones(1, 10, 10, 10)
    assert BrainMaskd()(item)["mask"] is item["mask"]


@pytest.mark.parametrize(
    "make", [TensorMetricsd, ResampleDirectionsd], ids=["tensor", "resampled directions"]
)
def test_a_lambda_in_the_trace_is_refused_unless_allowed(make):
    item = mt.Lambdad("image", lambda x: x.flip(1))(field_item(shape=(4, 4, 4)))
    with pytest.raises(ValueError, match="Lambdad? was applied"):
        make()(item)
    make(allow_lambda=True)(item)


@pytest.mark.parametrize(
    "own", [[[0.0, 0.0, 0.0]], [[1.0, 0.0]], [1.0, 0.0, 0.0]], ids=["zero", "2-d", "flat"]
)
def test_directions_that_are_none_are_an_error(own):
    with pytest.raises(ValueError, match=r"directions must be \(M, 3\) vectors longer than 0"):
        ResampleDirectionsd(directions=own)
