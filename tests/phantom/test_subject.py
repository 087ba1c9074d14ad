import numpy as np
import pytest
import torch
from dipy.core.gradients import gradient_table
from dipy.reconst.dti import TensorModel

from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.phantom import Acquisition, Subject, make_subject
from dmri_monai.phantom.fields import rotation

SHAPE, SPACING = (24, 28, 24), (5.0, 5.0, 5.0)
B0_ONLY = GradientTable(torch.zeros(1), torch.zeros(1, 3))


def centred(linear: np.ndarray, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = -linear @ (np.array(shape) - 1) / 2
    return torch.from_numpy(affine)


OBLIQUE = rotation(np.random.default_rng(3), 25.0)
GRIDS = [
    pytest.param(np.diag(SPACING), id="right-handed"),
    pytest.param(np.diag([-5.0, 5.0, 5.0]), id="left-handed"),
    pytest.param(OBLIQUE @ np.diag(SPACING), id="oblique-right-handed"),
    pytest.param(OBLIQUE @ np.diag([-5.0, 5.0, 5.0]), id="oblique-left-handed"),
    pytest.param(OBLIQUE @ np.diag([-4.5, 5.0, 6.0]), id="oblique-left-handed-anisotropic"),
]


def single_fibre(subject: Subject) -> torch.Tensor:
    """Voxels that one fibre population fills; the others stay below 6 % of the voxel."""
    return subject.peaks_world[:3].norm(dim=0) >= 0.94


def tensor_error_degrees(subject: Subject, bvecs_voxel: np.ndarray) -> float:
    """Median angle between DIPY's first eigenvector of the noise-free signal, turned to world, and the truth."""
    where = single_fibre(subject)
    assert int(where.sum()) >= 10
    table = gradient_table(subject.table.bvals.numpy(), bvecs=bvecs_voxel, b0_threshold=50)
    fit = TensorModel(table).fit(subject.clean[:, where].T.double().numpy())
    fitted = torch.from_numpy(fit.evecs[:, :, 0]) @ grid_rotation(subject.affine).T
    truth = torch.nn.functional.normalize(subject.peaks_world[:3, where].T.double(), dim=1)
    cosine = (fitted * truth).sum(dim=1).abs().clamp(max=1)
    return float(torch.rad2deg(torch.arccos(cosine)).median())


def test_same_seed_gives_the_same_scan(subject):
    again = make_subject(7, shape=SHAPE, spacing_mm=SPACING)
    assert torch.equal(subject.image.as_tensor(), again.image.as_tensor())
    assert subject.table == again.table
    assert torch.equal(subject.affine, again.affine)


def test_another_seed_gives_another_head_table_and_affine(subject):
    other = make_subject(8, shape=SHAPE, spacing_mm=SPACING)
    assert not torch.equal(subject.dseg, other.dseg)
    assert subject.table != other.table
    assert not torch.equal(subject.affine, other.affine)
    assert subject.parameters["SNR"] != other.parameters["SNR"]


def test_table_and_snr_do_not_change_the_head(subject):
    other = make_subject(7, shape=SHAPE, spacing_mm=SPACING, scheme="clinical-32", snr=10.0)
    assert torch.equal(subject.dseg, other.dseg)
    torch.testing.assert_close(subject.peaks_world, other.peaks_world, equal_nan=True, rtol=0, atol=0)
    assert len(other.table) == 36


def test_image_is_raw_positive_float32_with_one_volume_per_gradient(subject):
    assert subject.image.dtype == torch.float32
    assert subject.image.shape == (len(subject.table), *SHAPE)
    assert float(subject.image.min()) >= 0
    torch.testing.assert_close(subject.image.affine, subject.affine)


def test_mirrored_storage_shows_the_same_world():
    right = make_subject(5, affine=centred(np.diag(SPACING)), shape=SHAPE, scheme="clinical-32")
    left = make_subject(5, affine=centred(np.diag([-5.0, 5.0, 5.0])), shape=SHAPE, scheme="clinical-32")
    assert torch.equal(right.dseg, left.dseg.flip(0))
    torch.testing.assert_close(right.peaks_world, left.peaks_world.flip(1), equal_nan=True)
    torch.testing.assert_close(right.clean, left.clean.flip(1), rtol=1e-4, atol=1e-2)


def test_finer_grid_sees_the_same_tissue_volumes():
    coarse = make_subject(5, affine=centred(np.diag(SPACING)), shape=SHAPE, scheme=B0_ONLY)
    fine_shape = (48, 56, 48)
    fine = make_subject(5, affine=centred(np.eye(3) * 2.5, fine_shape), shape=fine_shape, scheme=B0_ONLY)
    litres = [torch.bincount(s.dseg.flatten().long()) * v for s, v in ((coarse, 125.0), (fine, 15.625))]
    torch.testing.assert_close(litres[0], litres[1], rtol=0.25, atol=0)


@pytest.mark.parametrize("linear", GRIDS)
def test_dipy_finds_the_direction_of_single_fibres_in_noise_free_signal(linear):
    subject = make_subject(5, affine=centred(linear), shape=SHAPE, scheme="single-64")
    voxel = subject.table.in_voxel_frame(subject.affine).numpy()
    assert tensor_error_degrees(subject, voxel) < 2.0


@pytest.mark.parametrize("linear", GRIDS)
def test_dipy_misses_the_direction_when_x_is_flipped(linear):
    subject = make_subject(5, affine=centred(linear), shape=SHAPE, scheme="single-64")
    voxel = subject.table.in_voxel_frame(subject.affine).numpy() * [-1, 1, 1]
    assert tensor_error_degrees(subject, voxel) > 10.0


def test_every_tissue_and_every_number_of_peaks_occurs(subject):
    assert torch.bincount(subject.dseg.flatten().long()).min() > 200
    assert torch.bincount(subject.npeaks.flatten().long(), minlength=4).min() > 20


def test_most_white_matter_holds_crossing_fibres():
    subject = make_subject(5, scheme=B0_ONLY)
    share = float((subject.npeaks[subject.dseg == 1] >= 2).float().mean())
    assert 0.6 <= share <= 0.9


def test_number_of_peaks_counts_the_vectors_that_are_present(subject):
    present = subject.peaks_world.unflatten(0, (3, 3)).isfinite().all(dim=1)
    assert torch.equal(present.sum(dim=0).byte(), subject.npeaks)
    assert torch.equal(present, present.sort(dim=0, descending=True, stable=True).values)


def test_peaks_are_fractions_above_the_rule_and_descend(subject):
    lengths = subject.peaks_world.unflatten(0, (3, 3)).norm(dim=1)
    finite = lengths[lengths.isfinite()]
    assert float(finite.min()) >= 0.1 - 1e-6
    assert float(lengths.nan_to_num().sum(dim=0).max()) <= 1 + 1e-5
    assert bool((lengths.nan_to_num()[:-1] >= lengths.nan_to_num()[1:]).all())


def test_peaks_of_a_voxel_are_at_least_25_degrees_apart(subject):
    peaks = subject.peaks_world.unflatten(0, (3, 3)).flatten(2)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        cosine = torch.nn.functional.cosine_similarity(peaks[i], peaks[j], dim=0).abs()
        cosine = cosine[cosine.isfinite()]
        assert float(cosine.max()) <= np.cos(np.deg2rad(25)) + 1e-5


def test_lesions_lie_in_white_matter_and_diffuse_faster():
    subject = make_subject(5, shape=SHAPE, spacing_mm=SPACING)
    lesion, healthy = subject.lesion == 1, (subject.dseg == 1) & (subject.lesion == 0)
    assert int(lesion.sum()) > 3
    assert bool((subject.dseg[lesion] == 1).all())
    clean, weighted = subject.clean, ~subject.table.b0_mask
    attenuation = -torch.log(clean[weighted].mean(0) / clean[~weighted].mean(0).clamp(min=1e-3))
    deep = healthy & (subject.peaks_world.unflatten(0, (3, 3)).norm(dim=1).nan_to_num().sum(0) > 0.8)
    assert float(attenuation[lesion].mean()) > 1.1 * float(attenuation[deep].mean())


def test_signal_to_noise_ratio_is_the_one_asked_for():
    subject = make_subject(5, shape=SHAPE, spacing_mm=SPACING, snr=20.0)
    air = subject.clean.amax(dim=0) == 0
    rayleigh_mean = float(subject.image.as_tensor()[:, air].mean())
    level = float(subject.parameters["SignalLevel"])
    assert level / (rayleigh_mean / np.sqrt(np.pi / 2)) == pytest.approx(20.0, rel=0.03)


def test_mean_signal_of_white_matter_is_the_level_in_the_parameters():
    subject = make_subject(5, shape=SHAPE, spacing_mm=SPACING)
    white = subject.clean[subject.table.b0_mask].mean(0)[single_fibre(subject)]
    assert float(white.mean()) == pytest.approx(float(subject.parameters["SignalLevel"]), rel=0.35)


@pytest.mark.parametrize(
    "snr",
    [0.0, -1.0, (30.0, 15.0), float("inf"), [30.0, 15.0]],
    ids=["zero", "negative", "descending", "infinite", "descending list"],
)
def test_impossible_snr_is_refused(snr):
    with pytest.raises(ValueError, match="snr"):
        make_subject(1, shape=(4, 4, 4), snr=snr)


def test_impossible_shape_is_refused():
    with pytest.raises(ValueError, match="shape"):
        make_subject(1, shape=(4, 4))


def test_singular_affine_is_refused():
    with pytest.raises(ValueError, match="singular"):
        make_subject(1, shape=(4, 4, 4), affine=torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])))


@pytest.mark.parametrize("randomise", [False, True], ids=["one protocol", "any protocol"])
@pytest.mark.parametrize(
    "spacing",
    [(0.0, 0.0, 0.0), (-2.0, 2.0, 2.0), (float("nan"), 2.0, 2.0), (2.0, 2.0), 2.0],
    ids=["zero", "negative", "nan", "two", "one number"],
)
def test_impossible_spacing_is_refused(spacing, randomise):
    with pytest.raises(ValueError, match="spacing_mm"):
        make_subject(1, spacing_mm=spacing, acquisition=Acquisition(randomise=randomise))


def test_affine_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"affine: shape \(3, 3\)"):
        make_subject(1, shape=(4, 4, 4), affine=torch.eye(3))


@pytest.mark.parametrize("seed", [-1, (3, -1), 1.5], ids=["negative", "negative part", "fraction"])
def test_impossible_seed_is_refused_by_name(seed):
    with pytest.raises(ValueError, match="seed"):
        make_subject(seed, shape=(4, 4, 4))


def test_grid_beside_the_head_is_refused():
    beside = torch.eye(4, dtype=torch.float64)
    beside[:3, 3] = 1000
    with pytest.raises(ValueError, match="no part of the head"):
        make_subject(1, shape=(4, 4, 4), affine=beside)
