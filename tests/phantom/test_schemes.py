import numpy as np
import pytest
import torch

from dmri_monai.gradients import GradientTable
from dmri_monai.phantom import draw_scheme, make_subject
from dmri_monai.phantom.schemes import repelled_directions


@pytest.mark.parametrize("seed", range(5))
def test_random_protocol_has_one_shell_near_1000_and_a_few_b0(seed):
    table = draw_scheme(np.random.default_rng(seed))
    (shell,) = table.shells()
    assert 24 <= len(shell.indices) <= 64
    assert 940 <= shell.bval <= 1060
    assert 3 <= int(table.b0_mask.sum()) <= 6
    assert bool(table.b0_mask[0])


def test_table_without_volumes_is_refused():
    with pytest.raises(ValueError, match="without volumes"):
        make_subject(0, scheme=GradientTable(torch.zeros(0), torch.zeros(0, 3)))


def test_three_shell_preset_has_three_shells_of_90():
    table = draw_scheme(np.random.default_rng(0), "hcp-3shell")
    assert [len(s.indices) for s in table.shells()] == [90, 90, 90]


def test_repelled_axes_are_farther_apart_than_random_ones():
    def smallest_angle(directions: np.ndarray) -> float:
        cosine = np.abs(directions @ directions.T) - np.eye(len(directions))
        return float(np.rad2deg(np.arccos(cosine.max())))

    rng = np.random.default_rng(0)
    random = rng.normal(size=(32, 3))
    random /= np.linalg.norm(random, axis=1, keepdims=True)
    assert smallest_angle(repelled_directions(rng, 32)) > 20 > smallest_angle(random)


def test_directions_differ_between_draws_and_are_unit_length():
    a, b = (draw_scheme(np.random.default_rng(s), "clinical-32") for s in (0, 1))
    assert a != b
    torch.testing.assert_close(a.bvecs[~a.b0_mask].norm(dim=1), torch.ones(32, dtype=torch.float64))


def test_unknown_preset_is_refused_by_name():
    with pytest.raises(ValueError, match="unknown gradient scheme 'hpc'"):
        draw_scheme(np.random.default_rng(0), "hpc")
