"""Metrics of orientation densities and of volume fractions."""

import pytest
import torch
from torch.nn.functional import normalize

from dmri_monai.metrics import DensityCorrelation, FibreAgreement, FractionError
from dmri_monai.qspace.fibre_density import density_of_peaks

SIZE = (4, 5, 6)


def axes(seed=0, length=0.6):
    return length * normalize(torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(seed)), dim=0)


def row(metric, pred, target, **inputs):
    given = {key: value.unsqueeze(0) for key, value in inputs.items()}
    metric(pred.unsqueeze(0), target.unsqueeze(0), **given)
    return dict(zip(metric.names, metric.get_buffer()[0].tolist(), strict=True))


def test_equal_densities_agree_in_everything():
    density = density_of_peaks(axes())
    assert row(DensityCorrelation(), density, density)["correlation"] == pytest.approx(1)
    found = row(FibreAgreement(), density, density)
    assert found == {"angle_deg": pytest.approx(0, abs=1e-4), "same_count": 1, "mass_error": 0}


def test_turned_axes_have_their_angle_and_a_lower_correlation():
    first = axes()
    other = normalize(torch.linalg.cross(first, axes(1), dim=0), dim=0) * 0.6
    turned = normalize(first + 0.3640 * other, dim=0) * 0.3  # 20 degrees, half of the mass
    found = row(FibreAgreement(), density_of_peaks(turned), density_of_peaks(first))
    assert found["angle_deg"] == pytest.approx(20, abs=0.2)
    assert found["mass_error"] == pytest.approx(0.3, abs=1e-3)
    correlation = row(DensityCorrelation(), density_of_peaks(turned), density_of_peaks(first))["correlation"]
    assert 0.2 < correlation < 0.9


def test_a_second_fibre_is_counted():
    two = torch.cat([axes(), normalize(torch.linalg.cross(axes(), axes(1), dim=0), dim=0) * 0.5])
    found = row(FibreAgreement(), density_of_peaks(axes()), density_of_peaks(two))
    assert found["same_count"] == 0
    assert found["angle_deg"] < 3


def test_only_voxels_with_fibres_and_known_truth_count():
    truth = axes()
    truth[:, 0] *= 0.1  # hardly any fibre
    target = density_of_peaks(truth)
    target[:, 1] = torch.nan
    mask = torch.ones(1, *SIZE)
    mask[:, 2] = 0
    pred = density_of_peaks(axes(3))
    pred[:, 3] = target[:, 3]
    assert row(DensityCorrelation(), pred, target, mask=mask)["correlation"] == pytest.approx(1)
    assert row(FibreAgreement(), pred, target, mask=mask)["angle_deg"] == pytest.approx(0, abs=1e-4)
    nothing = row(DensityCorrelation(), pred, target, mask=torch.zeros(1, *SIZE))["correlation"]
    assert nothing != nothing


def fractions(seed=0):
    return torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(seed)).softmax(dim=0)[:3]


def test_fraction_error_is_that_of_each_tissue():
    true = fractions()
    shifted = true.clone()
    shifted[1] += 0.05
    assert row(FractionError(), shifted, true) == {
        "WM": 0, "GM": pytest.approx(0.05, abs=1e-6), "CSF": 0
    }  # fmt: skip
    correlation = row(FractionError("correlation"), shifted, true)
    assert all(value == pytest.approx(1, abs=1e-5) for value in correlation.values())
    other = row(FractionError("correlation"), fractions(1), true)
    assert all(abs(value) < 0.5 for value in other.values())


def test_air_and_unknown_voxels_do_not_make_fractions_look_right():
    true, pred = fractions(), fractions(1)
    inside = row(FractionError(), pred, true)
    for values in (true, pred):
        values[:, 0] = 0
    true[:, 1] = torch.nan
    assert row(FractionError(), pred, true)["WM"] == pytest.approx(inside["WM"], rel=0.3)
    alone = row(FractionError(), pred[:, 2:], true[:, 2:])
    assert row(FractionError(), pred, true) == pytest.approx(alone)


def test_unknown_score_and_shapes_are_refused():
    with pytest.raises(ValueError, match="score is 'mse', expected one of"):
        FractionError("mse")
    with pytest.raises(ValueError, match="expected 3 of both"):
        FractionError()(torch.zeros(1, 4, *SIZE), torch.zeros(1, 4, *SIZE))
    with pytest.raises(ValueError, match="predicted density has shape"):
        DensityCorrelation()(torch.zeros(1, 28, *SIZE), torch.zeros(1, 45, *SIZE))
