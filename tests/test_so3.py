import pytest
import torch
from e3nn import o3
from torch.testing import assert_close

from dmri_monai.equivariant import as_irreps, irreps_from_multiplicities, representation_matrix
from dmri_monai.so3 import Constants, channels_of, check_channels, sh_basis, spherical_harmonics, wigner_d


def orthogonal(seed: int, reflect: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    q = q * torch.diagonal(r).sign()
    return q if (torch.linalg.det(q) < 0) == reflect else -q


@pytest.fixture
def float64_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def test_spherical_harmonics_are_those_of_e3nn(float64_default):
    v = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    ours = torch.cat(spherical_harmonics(v, 8), dim=-1)
    assert_close(ours, o3.spherical_harmonics(list(range(9)), v, True, "component"))


def test_harmonics_of_the_zero_vector_keep_only_degree_zero():
    values = spherical_harmonics(torch.zeros(1, 3), 3)
    assert values[0].item() == 1.0
    assert all((y == 0).all() for y in values[1:])


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "rotoreflection"])
def test_representation_matrix_is_that_of_e3nn(float64_default, reflect):
    R, irreps = orthogonal(1, reflect), o3.Irreps("2x0e+1x0o+2x1o+1x1e+1x2e+1x3o+1x4e")
    assert_close(representation_matrix(irreps, R), irreps.D_from_matrix(R), atol=1e-7, rtol=0)


def test_wigner_matrices_multiply_like_rotations():
    a, b = orthogonal(2, False), orthogonal(3, False)
    assert_close(wigner_d(4, a) @ wigner_d(4, b), wigner_d(4, a @ b))


@pytest.mark.parametrize("reflect", [False, True], ids=["rotation", "rotoreflection"])
def test_wigner_matrices_turn_harmonics_to_rounding(reflect):
    v = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    R = orthogonal(4, reflect)
    for degree, (y, turned) in enumerate(
        zip(spherical_harmonics(v, 8), spherical_harmonics(v @ R.T, 8), strict=True)
    ):
        assert_close(y @ wigner_d(degree, R).T, turned, atol=1e-13, rtol=0)
    assert (y @ wigner_d(8, -R).T - turned).abs().max() < 1e-12  # even degrees do not see the inversion
    odd = spherical_harmonics(v, 3)[3]
    assert (odd @ wigner_d(3, -R).T - odd @ wigner_d(3, R).T).abs().max() > 0.1  # the control: odd ones do


def test_many_rotations_give_the_matrices_of_each():
    R = torch.stack([orthogonal(seed, seed % 2 == 0) for seed in range(6)]).view(2, 3, 3, 3)
    irreps = "1x0e+1x0o+2x1o+1x1e+1x4e"
    one_by_one = torch.stack([representation_matrix(irreps, r) for r in R.flatten(0, 1)])
    assert_close(representation_matrix(irreps, R), one_by_one.view(2, 3, 20, 20))


def test_even_harmonics_are_orthonormal_and_refuse_an_odd_degree():
    v = torch.randn(3, 2000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis = sh_basis(v, 4)
    gram = 4 * torch.pi * basis.mT @ basis / v.shape[1]
    assert_close(gram, torch.eye(15, dtype=torch.float64).expand(3, -1, -1), atol=0.15, rtol=0)
    with pytest.raises(ValueError, match="even and at least 0, got 3"):
        sh_basis(v, 3)


def test_multiplicities_give_natural_parity():
    assert str(irreps_from_multiplicities([7, 4, 0, 2])) == "7x0e+4x1o+2x3o"
    assert str(irreps_from_multiplicities([1, 2], parity="even")) == "1x0e+2x1e"


def test_constants_regain_float64_precision_and_never_fall_below_float32():
    constants = Constants(third=torch.tensor(1 / 3, dtype=torch.float64))
    assert constants.bfloat16().third.dtype == torch.float32
    assert constants.double().third.item() == 1 / 3
    assert not constants.state_dict()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: as_irreps(3), TypeError, "int"),
        (lambda: as_irreps("4x1z"), ValueError, "4x1z"),
        (lambda: irreps_from_multiplicities([1, -1]), ValueError, r"\[1, -1\]"),
        (lambda: irreps_from_multiplicities([1], parity="odd"), ValueError, "odd"),
        (
            lambda: check_channels(torch.zeros(1, 3, 2), channels_of(as_irreps("1x0e+1x1o")), (3,), "Layer"),
            ValueError,
            "3 channels.*need 4",
        ),
    ],
    ids=["type", "unreadable", "negative", "parity", "channels"],
)
def test_wrong_irreps_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
