import pytest
import torch
from torch.testing import assert_close

from dmri_monai.testing import act_on_field, assert_equivariant, band_limited_volume, cube_rotations


@pytest.mark.parametrize(("reflections", "count"), [(False, 24), (True, 48)])
def test_cube_group_has_all_its_elements_and_is_closed(reflections, count):
    group = cube_rotations(reflections)
    names = {tuple(g.flatten().tolist()) for g in group}
    assert len(names) == count
    assert all(tuple((a @ b).flatten().tolist()) in names for a in group for b in group)


def test_action_moves_voxels_and_turns_vectors():
    R = next(
        g for g in cube_rotations() if g.tolist() == [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    )  # x to y about z
    x = torch.zeros(1, 3, 3, 3, 3, dtype=torch.float64)
    x[0, 0, 2, 1, 1] = 1.0  # at +x, pointing along +x
    y = act_on_field(R, x, "1x1o")
    assert y[0, 1, 1, 2, 1] == pytest.approx(1.0)
    assert y.abs().sum().item() == pytest.approx(1.0)


def test_action_is_a_representation():
    x = torch.randn(1, 9, 2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    irreps = "1x0e+1x1o+1x2e"
    a, b = cube_rotations(True)[7], cube_rotations(True)[30]
    assert_close(act_on_field(a, act_on_field(b, x, irreps), irreps), act_on_field(a @ b, x, irreps))


def test_band_limited_volume_turns_exactly_with_the_cube_and_smoothly_with_any_rotation():
    R = cube_rotations()[9]
    volume = band_limited_volume((6, 6, 6), channels=2)
    assert_close(band_limited_volume((6, 6, 6), channels=2, rotation=R), act_on_field(R, volume, "2x0e"))
    spectrum = torch.fft.fftn(
        band_limited_volume((32, 32, 32), cutoff=0.1) * torch.hann_window(32)[:, None, None]
    ).abs()
    high = spectrum[0, 0, 8:24].sum() / spectrum.sum()
    assert high < 0.01


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda x: x * float("nan"), "non-finite"),
        (torch.zeros_like, "nearly.*constant"),
        (lambda x: x.cumsum(2), "relative error"),
        (lambda x: x[..., :-1], "shape"),
    ],
    ids=["nan", "constant", "not equivariant", "shape"],
)
def test_check_fails_where_it_should(layer, message):
    x = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match=message):
        assert_equivariant(layer, x, "1x0e", "1x0e", group=[cube_rotations()[-1]])


def test_check_refuses_an_empty_group():
    with pytest.raises(AssertionError, match="empty"):
        assert_equivariant(lambda x: x, torch.randn(1, 1, 4, 4, 4), "1x0e", "1x0e", group=[])


def test_identity_passes_the_check():
    x = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_equivariant(lambda x: x, x, "1x0e+1x1o", "1x0e+1x1o")


def test_rotations_that_need_interpolation_are_refused():
    R = torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, 0], [-0.3, 0, 0], [0, 0, 0]]))
    with pytest.raises(ValueError, match="signed permutation"):
        act_on_field(R, torch.zeros(1, 1, 3, 3, 3), "1x0e")


def test_cutoff_beyond_nyquist_is_refused():
    with pytest.raises(ValueError, match="0.7"):
        band_limited_volume((4, 4, 4), cutoff=0.7)
