"""Image and b-values are judged before the b-vectors are blamed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmri_monai.check.finding import CODES
from dmri_monai.check.levels import MAX_VOXELS, measure_levels
from dmri_monai.check.scan_check import quick_check
from dmri_monai.gradients import GradientTable
from dmri_monai.scan import Scan
from tests.check.fibres import checked, ring_scan, table
from tests.conftest import STANDARD_AFFINES

AFFINE = STANDARD_AFFINES["oblique-left-iso2"]


@pytest.fixture(scope="module")
def scan() -> tuple[torch.Tensor, GradientTable]:
    """Three b0, then thirty directions at b = 1000."""
    return ring_scan(AFFINE)


def as_b0(
    scan: tuple[torch.Tensor, GradientTable], volume: torch.Tensor
) -> tuple[torch.Tensor, GradientTable]:
    """The scan with one volume more, which the table calls b0."""
    image, table = scan
    bvals = torch.cat([table.bvals, table.bvals.new_zeros(1)])
    bvecs = torch.cat([table.bvecs, table.bvecs.new_zeros(1, 3)])
    return torch.cat([image, volume[None]]), GradientTable(bvals, bvecs)


def trace(scan: tuple[torch.Tensor, GradientTable]) -> torch.Tensor:
    return scan[0][3:].log().mean(0).exp()


def adc(scan: tuple[torch.Tensor, GradientTable]) -> torch.Tensor:
    return (scan[0][:3].mean(0).log() - trace(scan).log()).clamp(min=1e-3)


def found(image: torch.Tensor, table: GradientTable) -> list[str]:
    return [f.code for f in checked(image, table, AFFINE).findings if f.severity != "note"]


def test_a_scan_as_it_should_be_has_no_finding(scan):
    assert found(*scan) == []


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (torch.zeros_like, "no-signal"),
        (lambda x: torch.full_like(x, 7.0), "constant-signal"),
        (lambda x: -x, "negated-signal"),
        (lambda x: x.clone().index_fill_(0, torch.tensor([5]), torch.nan), "not-finite"),
        (lambda x: x.clone().index_fill_(0, torch.tensor([5]), torch.inf), "not-finite"),
    ],
    ids=["zeros", "constant", "negated", "nan", "inf"],
)
def test_an_image_without_signal_is_said_and_nothing_else_is_blamed(scan, spoil, code):
    result = checked(spoil(scan[0]), scan[1], AFFINE)
    assert [f.code for f in result.findings] == [code]
    assert set(result.not_judged) == {"b-values", "slices", "b-vectors"}
    assert "b-vectors    not judged because" in "\n".join(result.lines())
    assert CODES[code][1] == "error"


@pytest.mark.parametrize("volume", [0, 2, 10, 32])
def test_an_empty_volume_is_named(scan, volume):
    image = scan[0].clone()
    image[volume] = 0
    result = checked(image, scan[1], AFFINE)
    assert [(f.code, f.volumes) for f in result.findings if f.severity != "note"] == [
        ("empty-volume", (volume,))
    ]


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.2])
def test_a_trace_volume_that_counts_as_b0_is_found(scan, scale):
    assert found(*as_b0(scan, scale * trace(scan))) == ["derived-volume"]


@pytest.mark.parametrize("scale", [0.7, 1000.0, 1200.0, 3000.0])
def test_an_adc_volume_that_counts_as_b0_is_found_whatever_its_unit(scan, scale):
    assert found(*as_b0(scan, scale * adc(scan))) in (["derived-volume"], ["empty-volume"])


@pytest.mark.parametrize("scale", [0.85, 1.0, 1.15])
def test_one_more_b0_is_not_taken_for_a_derived_volume(scan, scale):
    generator = torch.Generator().manual_seed(1)
    noise = 20 * torch.randn(scan[0].shape[1:], generator=generator)
    assert found(*as_b0(scan, (scale * scan[0][0] + noise).abs())) == []


@pytest.mark.parametrize("shift", [1, -1, 7])
def test_volumes_moved_on_against_the_table_are_another_order(scan, shift):
    result = checked(scan[0].roll(shift, 0), scan[1], AFFINE)
    assert result.codes[-1] == "volume-order"
    assert f"moved on by {shift % 33} would fit" in result.findings[-1].message
    assert result.coherence is None


def test_volumes_in_reverse_are_another_order(scan):
    result = checked(scan[0].flip(0), scan[1], AFFINE)
    assert result.codes[-1] == "volume-order"
    assert "reversed would fit" in result.findings[-1].message


@pytest.mark.parametrize("factor", [0.2, 0.6, 1.6, 5.0])
@pytest.mark.parametrize("volume", [4, 20])
def test_one_volume_of_another_scale_is_named(scan, volume, factor):
    image = scan[0].clone()
    image[volume] *= factor
    result = checked(image, scan[1], AFFINE)
    assert [(f.code, f.volumes) for f in result.findings if f.severity != "note"] == [
        ("volume-level", (volume,))
    ]


def test_a_drift_of_some_percent_is_no_finding(scan):
    drift = torch.linspace(1.0, 0.85, len(scan[0])).view(-1, 1, 1, 1)
    assert found(scan[0] * drift, scan[1]) == []


def test_a_b0_that_is_darker_than_the_shell_is_not_the_brightest(scan):
    image, table = scan
    assert found(torch.cat([trace(scan)[None], image[3:]]), table.select(torch.arange(2, 33))) == [
        "b0-not-brightest"
    ]


def test_two_shells_the_wrong_way_round_rise_with_b(scan):
    image, table = scan
    bvals = table.bvals.clone()
    bvals[18:] = 2000.0
    louder = image.clone()
    louder[18:] *= 1.2
    assert found(louder, GradientTable(bvals, table.bvecs)) == ["levels-not-decaying"]


def test_what_counts_as_b0_is_said_without_being_a_fault(scan):
    bvals = scan[1].bvals.clone()
    bvals[1:3] = torch.tensor([5.0, 40.0])
    result = checked(scan[0], GradientTable(bvals, scan[1].bvecs), AFFINE)
    assert result.ok
    assert result.b0_range == (0.0, 40.0)
    assert "b0-range" in result.codes


def test_a_small_block_and_a_single_slice_are_said(scan):
    image, table = scan
    assert "small-block" in checked(image, table, AFFINE).codes
    single = checked(image[..., 10:11], table, AFFINE)
    assert "single-slice" in single.codes
    assert single.coherence.verdict == "inconclusive"


def test_the_quick_check_names_the_same_faults(scan):
    image, table = scan
    spoilt = image.clone()
    spoilt[4] *= 5
    for values, expected in ((image, None), (spoilt, "volume-level"), (-image, "negated-signal")):
        codes = {
            f.code
            for f in quick_check(Scan.of_arrays(values, table.bvals, table.bvecs, AFFINE))
            if f.severity != "note"
        }
        assert codes == ({expected} if expected else set())


@pytest.mark.parametrize(
    "shape", [(224, 224, 25), (224, 224, 45), (224, 25, 224), (160, 160, 30), (112, 112, 60), (60, 60, 60)]
)
def test_levels_are_of_voxels_from_all_over_the_grid(shape):
    index = torch.arange(shape[0] * shape[1] * shape[2]).view(1, *shape)
    sample = measure_levels(index.expand(2, *shape)).sample[0].long().sort().values
    for axis, n in enumerate(shape):  # the darkest tenth or so counts as air
        share = (torch.unravel_index(sample, shape)[axis].bincount(minlength=n) / len(sample) * n)[n // 2 :]
        assert share.min() > 0.6, f"axis {axis}"
        assert share.max() < 2.0, f"axis {axis}"
    assert len(sample) <= MAX_VOXELS


@pytest.mark.parametrize("spoil", ["order", "level", None])
def test_a_first_slice_without_signal_hides_nothing_on_a_grid_whose_stride_is_its_slices(scan, spoil):
    image, table = scan
    wide = torch.nn.functional.pad(image[..., :21], (0, 0, *(101, 101) * 2))
    assert wide.shape[1:] == (224, 224, 21)
    wide[..., 0] = 0
    if spoil == "order":
        wide = wide.roll(3, 0)
    elif spoil == "level":
        wide[5] *= 5
    found = [f.code for f in quick_check(Scan.of_arrays(wide, table.bvals, table.bvecs, AFFINE))]
    assert [code for code in found if code != "small-block"] == ([] if spoil is None else [f"volume-{spoil}"])


def ball(bval: float, snr: float, n_b0: int, contrast: float = 0.0) -> tuple[torch.Tensor, GradientTable]:
    """A ball of tissue in much air: diffusivity 0.3 to 0.9e-3 mm2/s, b0 that grows with it by `contrast`."""
    rng = np.random.default_rng(0)
    points = np.stack(np.meshgrid(*[np.arange(28) - 13.5] * 3, indexing="ij"), -1)
    diffusivity = rng.uniform(0.3e-3, 0.9e-3, points.shape[:3])
    b0 = 1000.0 * np.exp(contrast * (diffusivity / 0.6e-3 - 1)) * (np.linalg.norm(points, axis=-1) < 9)
    gradients = table(n_b0, bval=bval)
    clean = b0 * np.exp(-gradients.bvals.numpy()[:, None, None, None] * diffusivity)
    noise = rng.normal(size=(2, *clean.shape)) * 1000.0 / snr
    return torch.tensor(np.hypot(clean + noise[0], noise[1]), dtype=torch.float32), gradients


@pytest.mark.parametrize(("bval", "snr"), [(3000.0, 8.0), (1000.0, 20.0)])
@pytest.mark.parametrize("n_b0", [1, 3])
def test_air_as_bright_as_attenuated_tissue_does_not_hide_that_b0_is_the_brightest(bval, snr, n_b0):
    assert set(found(*ball(bval, snr, n_b0))) <= {"low-snr"}


def test_several_b0_that_rank_tissue_as_the_diffusivity_does_are_no_maps_of_it():
    image, gradients = ball(1000.0, 60.0, 3, contrast=0.5)
    assert found(image, gradients) == []
    assert "b0-not-brightest" in found(image.flip(0), gradients) or "volume-order" in found(
        image.flip(0), gradients
    )
