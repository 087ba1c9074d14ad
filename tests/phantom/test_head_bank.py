import logging

import nibabel
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dmri_monai.phantom import head_bank
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.head_model import save_model
from dmri_monai.phantom.head_registration import coordinates_in, directions_from, jacobian, sampled
from dmri_monai.phantom.head_shell import REGIONS, regions
from dmri_monai.phantom.individual_anatomy import brain_of_head, brain_tissue, read_t1
from dmri_monai.phantom.measured_fibres import FibreMap, carried, read_peaks
from tests.phantom.small_head import small_head

TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])


def ball(radius_mm: float, shape=(40, 40, 40), spacing_mm: float = 4.0) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    centre = (np.array(shape) - 1).reshape(3, 1, 1, 1) / 2
    return np.linalg.norm((index - centre) * spacing_mm, axis=0) < radius_mm


def test_heads_are_made_once_and_then_read(tmp_path, monkeypatch, caplog):
    made = []
    monkeypatch.setattr(head_bank, "_template_head", lambda: made.append(1) or small_head())
    with caplog.at_level(logging.WARNING):
        first = head_models(tmp_path)
    assert "MNI152 template alone" in caplog.text
    assert list(first) == list(head_models(tmp_path)) == ["mni152"]
    assert made == [1]


def test_heads_that_the_folder_holds_need_no_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(head_bank, "_template_head", small_head)
    save_model(tmp_path / "person.head.npz", small_head())
    assert list(head_models(tmp_path, HeadSources())) == ["mni152", "person"]


def test_the_brain_is_found_within_skull_and_scalp():
    t1 = np.zeros((80, 80, 80), np.float32)
    for radius, signal in ((74, 250), (66, 15), (58, 95), (50, 130)):  # scalp, skull, grey and white matter
        t1[ball(radius, t1.shape, 2.0)] = signal
    brain = brain_of_head(t1, 2.0)
    truth = ball(58, t1.shape, 2.0)
    assert 2 * (brain & truth).sum() / (brain.sum() + truth.sum()) > 0.95


def test_an_image_without_a_brain_is_refused():
    with pytest.raises(ValueError, match="no brain found"):
        brain_of_head(np.eye(30, dtype=np.float32)[None].repeat(30, 0), 2.0)


def test_tissue_is_ordered_by_its_signal():
    t1 = np.zeros((40, 40, 40), np.float32)
    for radius, signal in ((70, 40), (60, 90), (48, 130)):
        t1[ball(radius)] = signal
    t1 = gaussian_filter(t1, 1.0) + np.random.default_rng(0).normal(0, 5, t1.shape).astype(np.float32)
    found = brain_tissue(t1.clip(1), ball(70))
    for place, tissue in ((20, 0), (6, 1), (4, 2)):  # from the middle outwards
        assert found[:, place, 20, 20].argmax() == tissue
    assert found[:, 0, 0, 0].max() == 0


def test_flawed_anatomy_is_refused_by_name(tmp_path):
    path = tmp_path / "flat_T1w.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"4 axes.*flat_T1w"):
        read_t1(path)


def test_a_shifted_and_turned_ball_is_found_again():
    affine = np.diag([4.0, 4, 4, 1])
    static = (ball(60) * 1.0 + ball(30)).astype(np.float32)
    static[20:30, 10:20, 18:24] *= 0.5
    moving_affine = affine.copy()
    moving_affine[:3, 3] = [12.0, -8, 4]
    places = coordinates_in(static, moving_affine, static, affine)
    index = np.stack(np.meshgrid(*map(np.arange, static.shape), indexing="ij"))
    expected = index * 4.0 + np.array([12.0, -8, 4]).reshape(3, 1, 1, 1)
    error = np.linalg.norm(places - expected, axis=0)[ball(60)]
    assert np.median(error) < 1.5


def test_directions_follow_a_turned_map():
    affine = np.diag([2.0, 2, 3, 1])
    index = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"))
    world = np.tensordot(affine[:3, :3], index, 1)
    derivative = jacobian(np.tensordot(TURN, world, 1), affine)
    np.testing.assert_allclose(derivative, np.broadcast_to(TURN, derivative.shape), atol=1e-6)
    there = np.broadcast_to(np.array([[1.0, 0, 0]]), (*derivative.shape[:3], 1, 3))
    here = directions_from(there, derivative)
    np.testing.assert_allclose(here, np.broadcast_to(np.linalg.inv(TURN)[:, 0], here.shape), atol=1e-6)


def test_sampling_reads_world_positions():
    affine = np.diag([2.0, 2, 2, 1])
    volume = np.arange(27.0).reshape(3, 3, 3)
    points = np.array([[2.0, 0.0], [2.0, 0.0], [3.0, -9.0]])
    np.testing.assert_allclose(sampled(volume, affine, points), [13.5, 0.0])


def test_carried_fibres_turn_with_the_map_and_keep_their_shares():
    affine = np.diag([2.0, 2, 2, 1])
    shares = np.zeros((6, 6, 6, 3), np.float32)
    shares[..., :2] = (0.7, 0.3)
    directions = np.zeros((6, 6, 6, 3, 3), np.float32)
    directions[..., 0, 0] = directions[..., 1, 2] = 1
    index = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"))
    places = np.tensordot(TURN, 2.0 * index, 1)
    found = carried(FibreMap(shares, directions, affine), places, affine)
    np.testing.assert_allclose(found.shares[2, 2, 2], (0.7, 0.3, 0), atol=1e-5)
    np.testing.assert_allclose(np.abs(found.directions[2, 2, 2, 0]), (0, 1, 0), atol=1e-5)
    np.testing.assert_allclose(np.abs(found.directions[2, 2, 2, 1]), (0, 0, 1), atol=1e-5)


def test_voxels_without_peaks_take_those_of_the_nearest(tmp_path):
    peaks = np.full((5, 5, 5, 9), np.nan, np.float32)
    peaks[2, 2, 2] = [0.4, 0, 0, 0, 0.2, 0, np.nan, np.nan, np.nan]
    path = tmp_path / "peaks.nii.gz"
    nibabel.save(nibabel.Nifti1Image(peaks, np.eye(4)), path)
    found = read_peaks(path)
    np.testing.assert_allclose(found.shares[0, 4, 1], (2 / 3, 1 / 3, 0), atol=1e-5)
    np.testing.assert_allclose(np.abs(found.directions[0, 4, 1, :2]), [(1, 0, 0), (0, 1, 0)], atol=1e-5)


def test_a_file_that_holds_no_peaks_is_refused_by_name(tmp_path):
    path = tmp_path / "fa.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 3), np.float32), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"expected \(X, Y, Z, 9\).*fa\.nii"):
        read_peaks(path)


@pytest.mark.parametrize(
    ("place", "region"),
    [
        ((32, 62, -40), "eye"),
        ((-32, 62, -40), "eye"),
        ((0, 0, 10), "none"),
        ((0, 24, -34), "air"),
        ((0, -50, -110), "cord"),
    ],
    ids=["right-eye", "left-eye", "brain", "sinus", "cord"],
)
def test_regions_lie_where_anatomy_has_them(place, region):
    assert REGIONS[int(regions(np.array(place, float)))] == region


@pytest.mark.slow
def test_individual_anatomy_of_real_heads_is_segmented(shared_dir):
    t1, affine = read_t1(shared_dir / "data" / "anatomy" / "head_T1w.nii.gz")
    volume_l = float(brain_of_head(t1, 0.88).sum() * abs(np.linalg.det(affine))) / 1e6
    assert 0.95 < volume_l < 1.7
