from __future__ import annotations

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.reorientation import finite_strain, principal_rotation, push_forward, reorient_signal
from dmri_monai.transforms import RandElasticDWId, ToVoxelFramed
from dmri_monai.transforms.warp import bspline_warp, control_shape, resample
from tests.transforms.fields import axial_degrees, dipy_v1, field_item, thinned, true_direction, world_points

SHAPE = (30, 32, 28)
CONTROL_MM = 20.0


def stretch_of(affine: torch.Tensor) -> torch.Tensor:
    return grid_rotation(affine).T @ affine[:3, :3].double()


class Warped:
    """A scan with single fibres everywhere, warped at maximum strength, and where its fibres must then lie."""

    def __init__(self, orientation: str, spacing: str) -> None:
        self.item = field_item(orientation, spacing, SHAPE, n=60)
        affine = self.item["image"].affine
        fibres = true_direction(world_points(affine.numpy(), SHAPE))
        self.item["peaks"] = MetaTensor(torch.tensor(np.moveaxis(fibres, -1, 0)), affine=affine)
        transform = RandElasticDWId(prob=1, strength=1.0, control_mm=CONTROL_MM, peaks_keys="peaks")
        self.out = transform.set_random_state(0)(self.item)
        self.rotation = grid_rotation(affine)
        self.warp = bspline_warp(transform.control, SHAPE, stretch_of(affine), CONTROL_MM)
        world_source = self.warp.source.numpy() @ affine.numpy()[:3, :3].T + affine.numpy()[:3, 3]
        jacobian = (self.rotation @ self.warp.jacobian @ self.rotation.T).numpy()
        self.expected = np.einsum("xyzij,xyzj->xyzi", jacobian, true_direction(world_source))
        self.expected /= np.linalg.norm(self.expected, axis=-1, keepdims=True)
        source, upper = self.warp.source, torch.tensor(SHAPE) - 2
        self.inside = thinned(((source >= 1) & (source <= upper)).all(-1).numpy(), 2000)

    def error(self, image: torch.Tensor) -> np.ndarray:
        v1 = dipy_v1(image[:, self.inside], self.item["bvals"], self.item["bvecs"])
        return axial_degrees(v1, self.expected[self.inside])

    def naive(self) -> torch.Tensor:
        return resample(self.item["image"].as_tensor(), self.warp.source, "bilinear", "zeros")


@pytest.fixture(scope="module", params=["oblique-aniso", "LAS-thick"])
def warped(request) -> Warped:
    return Warped(*request.param.split("-"))


def test_fibres_follow_the_push_forward_where_the_naive_warp_is_far_off(warped):
    naive = warped.error(warped.naive())
    far = naive >= 8
    ours = warped.error(warped.out["image"].as_tensor())
    voxel_bvecs = warped.item["bvecs"].double() @ warped.rotation
    strain = finite_strain(warped.warp.jacobian.flatten(0, 2)).float()
    moved = warped.naive()
    turned = reorient_signal(moved.flatten(1), warped.item["bvals"], voxel_bvecs, strain).view_as(moved)
    finite_only = np.median(warped.error(turned)[far])
    print(f"median error: naive {np.median(naive[far]):.1f}°, finite strain {finite_only:.1f}°, "
          f"ours {np.median(ours[far]):.3f}° in {far.sum()} voxels")  # fmt: skip
    assert far.sum() > 100
    assert np.median(ours[far]) <= 2.0
    assert np.median(ours) <= 2.0
    assert finite_only > 2.0


def test_peaks_follow_the_push_forward(warped):
    peaks = np.moveaxis(warped.out["peaks"].numpy(), 0, -1)[warped.inside]
    error = axial_degrees(peaks, warped.expected[warped.inside])
    assert np.median(error) <= 2.0
    np.testing.assert_allclose(np.linalg.norm(peaks, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.7, 1.7, 5.0)], ids=["iso", "thick"])
def test_the_warp_never_folds_at_maximum_strength(seed, spacing):
    generator = torch.Generator().manual_seed(seed)
    stretch = torch.diag(torch.tensor(spacing, dtype=torch.float64))
    size = control_shape(SHAPE, torch.tensor(spacing), 15.0)
    # every control point at an extreme, the worst that can be drawn
    control = 0.4 * torch.sign(torch.rand(3, *size, generator=generator, dtype=torch.float64) - 0.5)
    warp = bspline_warp(control, SHAPE, stretch, 15.0)
    assert torch.linalg.det(warp.jacobian).min() > 0


def test_jacobian_is_the_derivative_of_the_map():
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.tensor([[2.0, 0.3, 0.0], [0.0, 1.6, 0.2], [0.1, 0.0, 2.4]])
    stretch = stretch_of(affine)
    size = control_shape((41, 41, 41), stretch.norm(dim=0), 40.0)
    control = (
        torch.rand(3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    ) * 0.8
    warp = bspline_warp(control, (41, 41, 41), stretch, 40.0)
    position = warp.source @ stretch.T  # voxel frame, mm
    centre = (20, 20, 20)
    steps = []
    for axis in range(3):
        ahead, behind = list(centre), list(centre)
        ahead[axis] += 1
        behind[axis] -= 1
        steps.append((position[tuple(ahead)] - position[tuple(behind)]) / 2)
    backward = torch.stack(steps, dim=1) @ torch.linalg.inv(stretch)
    torch.testing.assert_close(torch.linalg.inv(warp.jacobian[centre]), backward, atol=2e-3, rtol=0)


def test_too_large_displacements_are_refused():
    with pytest.raises(ValueError, match=r"move by 0.5 of their spacing, at most 0.4"):
        bspline_warp(torch.full((3, 6, 6, 6), 0.5), (8, 8, 8), torch.eye(3), 4.0)


def test_zero_strength_changes_nothing():
    item = field_item(shape=(8, 8, 8))
    out = RandElasticDWId(prob=1, strength=0.0)(item)
    torch.testing.assert_close(out["image"].as_tensor(), item["image"].as_tensor(), atol=0, rtol=0)


def test_the_identity_rotation_leaves_noise_in_place():
    signal = torch.rand(61, 50)
    bvals, bvecs = field_item(n=60, shape=(2, 2, 2))["bvals"], field_item(n=60, shape=(2, 2, 2))["bvecs"]
    identity = torch.eye(3).expand(50, 3, 3)
    torch.testing.assert_close(reorient_signal(signal, bvals, bvecs, identity), signal, atol=2e-5, rtol=0)


def test_low_anisotropy_is_turned_by_finite_strain_alone():
    jacobian = torch.eye(3, dtype=torch.float64).expand(2, 3, 3).clone()
    jacobian[:, 0, 1] = 0.5
    v1 = torch.tensor([[0.0, 1.0, 0.0]] * 2, dtype=torch.float64)
    rotation = principal_rotation(jacobian, v1, torch.tensor([0.1, 0.9], dtype=torch.float64))
    torch.testing.assert_close(rotation[0], finite_strain(jacobian)[0])
    torch.testing.assert_close(rotation[1] @ v1[1], push_forward(jacobian, v1)[1])
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(2, 3, 3))


def test_finite_strain_is_the_polar_factor():
    jacobian = torch.eye(3).double() + 0.4 * torch.rand(20, 3, 3, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(jacobian)
    torch.testing.assert_close(finite_strain(jacobian), u @ vh)


def test_a_folding_jacobian_is_refused():
    with pytest.raises(ValueError, match="the warp folds"):
        finite_strain(torch.diag(torch.tensor([1.0, 1.0, -1.0])).unsqueeze(0))


def test_missing_peaks_stay_missing():
    item = field_item(shape=(10, 10, 10))
    item["peaks"] = MetaTensor(torch.full((6, 10, 10, 10), torch.nan), affine=item["image"].affine)
    item["peaks"][:3] = torch.tensor([0.0, 0.0, 0.5]).view(3, 1, 1, 1)
    out = RandElasticDWId(prob=1, strength=1.0, peaks_keys="peaks").set_random_state(0)(item)["peaks"]
    lengths = out[:3].as_tensor().norm(dim=0)[3:7, 3:7, 3:7]
    torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5))
    assert out[3:, 3:7, 3:7, 3:7].isnan().all()


def test_labels_keep_their_classes_and_type():
    item = field_item(shape=(10, 10, 10))
    item["label"] = MetaTensor(torch.randint(0, 4, (1, 10, 10, 10)), affine=item["image"].affine)
    out = RandElasticDWId(prob=1, strength=1.0, label_keys="label").set_random_state(0)(item)["label"]
    assert out.dtype == item["label"].dtype
    assert set(out.unique().tolist()) <= {0, 1, 2, 3}


def test_the_same_seed_gives_the_same_warp():
    item = ToVoxelFramed()(field_item(shape=(10, 10, 10)))
    outs = [RandElasticDWId(prob=1).set_random_state(s)(item)["image"].as_tensor() for s in (3, 3, 4)]
    torch.testing.assert_close(outs[0], outs[1], atol=0, rtol=0)
    assert (outs[0] - outs[2]).abs().max() > 0


def test_grids_that_differ_are_an_error():
    item = field_item(shape=(10, 10, 10))
    item["label"] = torch.zeros(1, 9, 10, 10)
    with pytest.raises(ValueError, match=r"'label' has grid \(9, 10, 10\)"):
        RandElasticDWId(prob=1, label_keys="label").set_random_state(0)(item)


def test_a_shell_with_too_few_directions_is_an_error():
    item = field_item(shape=(8, 8, 8), n=20)
    item["bvals"][:5] = torch.tensor([0.0, 3000, 3000, 3000, 3000])
    with pytest.raises(ValueError, match="shell b = 3000 has 4 directions"):
        RandElasticDWId(prob=1).set_random_state(0)(item)


def labelled(**meta) -> dict:
    item = field_item(shape=(8, 8, 8))
    item["label"] = MetaTensor(torch.ones(3, 8, 8, 8), affine=item["image"].affine, meta=meta)
    return item


def test_a_label_on_a_mirrored_grid_of_the_same_size_is_an_error():
    item = labelled()
    item["label"].affine = field_item("LAS", shape=(8, 8, 8))["image"].affine
    with pytest.raises(ValueError, match=r"'label' lies up to .* mm beside the image"):
        RandElasticDWId(prob=1, label_keys="label")(item)


def test_a_label_with_pending_operations_is_an_error():
    item = mt.Flipd("label", 0, lazy=True)(labelled())
    with pytest.raises(ValueError, match="'label' has 1 pending lazy operations"):
        RandElasticDWId(prob=1, label_keys="label")(item)


def test_peaks_in_the_voxel_frame_are_an_error():
    with pytest.raises(ValueError, match="'label' is in the voxel frame, expected the world frame"):
        RandElasticDWId(prob=1, peaks_keys="label")(labelled(direction_frame="voxel"))


def test_a_missing_label_is_an_error_unless_allowed():
    item = field_item(shape=(8, 8, 8))
    with pytest.raises(ValueError, match="the item has no 'label'"):
        RandElasticDWId(prob=1, label_keys="label")(item)
    assert "label" not in RandElasticDWId(prob=1, label_keys="label", allow_missing_keys=True)(item)


def test_a_lambda_in_the_trace_is_refused_unless_allowed():
    item = mt.Lambdad("image", lambda x: x.flip(1))(field_item(shape=(8, 8, 8)))
    with pytest.raises(ValueError, match="RandElasticDWId: Lambda"):
        RandElasticDWId(prob=1)(item)
    RandElasticDWId(prob=1, allow_lambda=True)(item)


def test_b0_volumes_above_the_default_threshold_are_not_turned():
    item = field_item("RAS", "iso", (12, 12, 12), n=30)
    raised = {**item, "bvals": torch.where(item["bvals"] == 0, 100.0, item["bvals"])}
    raised["image"] = item["image"].clone()
    raised["image"].meta["b0_threshold"] = 100.0
    one, two = (
        RandElasticDWId(prob=1, strength=0.5, control_mm=CONTROL_MM).set_random_state(0)(given)["image"]
        for given in (item, raised)
    )
    assert not torch.equal(one.as_tensor(), item["image"].as_tensor())
    torch.testing.assert_close(one.as_tensor(), two.as_tensor(), rtol=1e-4, atol=1e-3)
