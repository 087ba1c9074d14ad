"""The nonlinearity on the sphere and the encoder of shells: exact symmetries, sets, and controls that fail."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from dmri_monai.equivariant.shell_encoder import ShellEncoder
from dmri_monai.equivariant.sphere_activation import (
    SphereActivation,
    from_functions,
    sphere_grid,
    to_functions,
)
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.so3 import as_irreps, representation_matrix, sh_basis
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations

GROUP = cube_rotations(reflections=True)
TURNS = [GROUP[i] for i in (1, 9, 19, 30, 44)]
FIELD = "3x0e+3x2e+3x4e+3x6e+3x8e"
SHELLS, SLOTS = shell_irreps(3, 6), 3


def field(irreps, size=2, batch=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        batch, as_irreps(irreps).dim, size, size, size, generator=generator, dtype=torch.float64
    )


def shells(batch=2, size=2) -> torch.Tensor:
    """Two shells present, one slot empty."""
    x = field(SHELLS, size, batch)
    scalars = x[:, 1 : 1 + 4 * SLOTS].unflatten(1, (4, SLOTS))
    scalars[:, 0] = scalars[:, 0].abs()
    scalars[:, 1] = torch.tensor([1.0, 1.0, 0.0]).view(-1, 1, 1, 1)
    scalars[:, 2] = torch.tensor([1.0, 2.5, 0.0]).view(-1, 1, 1, 1)
    scalars[:, 3] = torch.tensor([3.0, 4.0, 0.0]).view(-1, 1, 1, 1)
    return x


def layer(irreps_in=FIELD, irreps_out=None, **options) -> SphereActivation:
    torch.manual_seed(0)
    return SphereActivation(irreps_in, irreps_out, hidden=5, **options).double()


def encoder() -> ShellEncoder:
    torch.manual_seed(0)
    return ShellEncoder(4, scalars=6, hidden=8).double()


def rotation() -> torch.Tensor:
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    return q * torch.linalg.det(q)


def test_the_grid_integrates_products_of_two_harmonics_of_degree_eight():
    points, weights = sphere_grid()
    assert points.shape == (55, 3)
    basis = sh_basis(points, 8)
    assert_close(basis.T @ (weights.unsqueeze(1) * basis), torch.eye(45, dtype=torch.float64))


@pytest.mark.parametrize("g", GROUP, ids=range(48))
def test_the_cube_group_permutes_the_grid(g):
    points, weights = sphere_grid()
    closeness = (points @ g.T @ points.T).abs()
    nearest = closeness.argmax(dim=1)
    assert_close(closeness.amax(dim=1), torch.ones(55, dtype=torch.float64))
    assert sorted(nearest.tolist()) == list(range(55))
    assert_close(weights[nearest], weights)


@pytest.mark.parametrize(("activation", "group"), [("relu", GROUP), ("silu", TURNS), (torch.sin, TURNS)])
def test_activation_commutes_with_rotations_and_reflections_of_the_cube(activation, group):
    assert_equivariant(layer(activation=activation), field(FIELD), FIELD, FIELD, group, rtol=1e-10)


def test_activation_raises_the_degree_equivariantly():
    low = "3x0e+3x2e"
    raised = layer(low, "2x0e+2x2e+2x4e+2x6e+2x8e", activation="relu")
    assert_equivariant(raised, field(low), low, raised.irreps_out, TURNS, rtol=1e-10)
    assert raised(field(low))[:, -2 * 17 :].abs().max() > 1e-2  # l = 8, which the input has not


def test_activation_nearly_commutes_with_other_rotations():
    activation, x = layer(), 0.3 * field(FIELD)
    matrix = representation_matrix(FIELD, rotation())
    turned = torch.einsum("ij,bj...->bi...", matrix, x)
    expected = torch.einsum("ij,bj...->bi...", matrix, activation(x))
    assert (activation(turned) - expected).norm() < 0.05 * expected.norm()


def test_an_activation_of_coefficients_is_not_equivariant():
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(torch.nn.SiLU(), field(FIELD), FIELD, FIELD, TURNS, rtol=1e-2)


def test_a_grid_without_the_symmetry_of_the_cube_is_not_equivariant():
    activation = layer(activation="relu")
    points, weights = sphere_grid()
    basis = sh_basis(points @ rotation().T, 8)
    activation.grid.synthesis, activation.grid.analysis = basis, basis.T * weights
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(activation, field(FIELD), FIELD, FIELD, TURNS, rtol=1e-4)


def test_the_identity_between_two_linear_maps_is_linear_in_the_coefficients():
    activation, x = layer(activation="identity"), field(FIELD)
    weight = activation.narrow.weight @ activation.widen.weight
    mixed = from_functions(torch.einsum("kj,bjnxyz->bknxyz", weight, to_functions(x, 3, 8)), 8)
    offset = activation(torch.zeros_like(x))
    assert_close(activation(x) - offset, mixed)
    assert_close(offset[:, 3:], torch.zeros_like(offset[:, 3:]))  # a constant is l = 0


def test_scalars_steer_the_activation():
    activation, x = layer(scalars=2), field(FIELD)
    scalars = field("2x0e")
    both = "2x0e+" + FIELD
    steered = lambda z: activation(z[:, 2:], z[:, :2])  # noqa: E731
    assert_equivariant(steered, torch.cat([scalars, x], dim=1), both, FIELD, TURNS, rtol=1e-10)
    assert (activation(x, scalars) - activation(x, 2 * scalars)).abs().max() > 1e-2


@pytest.mark.parametrize("make", [layer, encoder], ids=["activation", "encoder"])
def test_voxels_do_not_need_axes(make):
    module = make()
    x = field(FIELD) if isinstance(module, SphereActivation) else shells()
    flat = x.movedim(1, -1).flatten(0, 3)
    assert_close(module(flat), module(x).movedim(1, -1).flatten(0, 3))


def test_chunks_without_gradients_give_the_same(monkeypatch):
    activation, x, scalars = layer(scalars=2), field(FIELD), field("2x0e")
    whole = activation(x, scalars).detach()
    monkeypatch.setattr("dmri_monai.equivariant.sphere_activation.CHUNK", 3)
    with torch.no_grad():
        assert_close(activation(x, scalars), whole)


def test_gradients_are_right():
    activation = layer("2x0e+2x2e", scalars=1)
    x, scalars = field("2x0e+2x2e", 1).requires_grad_(), field("1x0e", 1).requires_grad_()
    assert torch.autograd.gradcheck(activation, (x, scalars))


@pytest.mark.parametrize("make", [layer, encoder], ids=["activation", "encoder"])
def test_bfloat16_is_finite_and_near(make):
    module = make()
    x = field(FIELD) if isinstance(module, SphereActivation) else shells()
    expected = module(x)
    low = module.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert (low.double() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("make", [layer, encoder], ids=["activation", "encoder"])
def test_a_traced_layer_takes_other_sizes(make):
    module = make()
    x = field(FIELD) if isinstance(module, SphereActivation) else shells()
    traced = torch.jit.trace(module, x, check_trace=False)
    assert_close(traced(x[..., :1]), module(x[..., :1]))


@pytest.mark.parametrize("irreps", ["2x0e+2x1o", "2x0e+3x2e", "2x0e+2x4e", "2x2e"])
def test_what_is_no_set_of_even_functions_is_refused(irreps):
    with pytest.raises(ValueError, match="no even functions"):
        SphereActivation(irreps)


def test_missing_or_surplus_scalars_are_refused():
    with pytest.raises(ValueError, match="0 scalar channels, expected 2"):
        layer(scalars=2)(field(FIELD))
    with pytest.raises(ValueError, match="other voxels"):
        layer(scalars=2)(field(FIELD), field("2x0e", 1))


def test_encoder_commutes_with_the_whole_cube_group():
    module = encoder()
    assert_equivariant(module, shells(), SHELLS, module.irreps_out, TURNS, rtol=1e-10)


def test_encoder_commutes_with_any_rotation_of_the_directions():
    module, x, turn = encoder(), shells(), rotation()
    before, after = (representation_matrix(irreps, turn) for irreps in (SHELLS, str(module.irreps_out)))
    turned = torch.einsum("ij,bj...->bi...", before, x)
    assert_close(module(turned), torch.einsum("ij,bj...->bi...", after, module(x)))


def permuted(x: torch.Tensor, order: list[int], scalars: bool = True) -> torch.Tensor:
    """Slots in another order; without `scalars` their b-values stay where they were, as a control."""
    b0, rest = x[:, :1], x[:, 1:]
    parts = rest.split([SLOTS] * 4 + [SLOTS * 5, SLOTS * 9, SLOTS * 13], dim=1)
    moved = [part.unflatten(1, (SLOTS, -1))[:, order].flatten(1, 2) for part in parts]
    if not scalars:
        moved[2] = parts[2]
    return torch.cat([b0, *moved], dim=1)


def test_the_order_of_the_shells_changes_nothing():
    module, x = encoder(), shells()
    assert_close(module(permuted(x, [2, 1, 0])), module(x))
    swapped_b = module(permuted(x, [1, 0, 2], scalars=False))
    assert (swapped_b - module(x)).abs().max() > 1e-3


def test_what_an_absent_slot_holds_changes_nothing():
    module, x = encoder(), shells()
    other = x.clone()
    for channel in (3, 9, 12):  # l = 0, b, log n of the third slot
        other[:, channel] = 7.0
    other[:, 13 + 10 : 13 + 15] = 3.0  # its l = 2
    assert_close(module(other), module(x))
    other[:, 6] = 1.0  # present
    assert (module(other) - module(x)).abs().max() > 1e-3


def test_more_slots_take_the_same_weights_and_change_nothing():
    module, x = encoder(), shells()
    parts = x[:, 1:].split([SLOTS] * 4 + [SLOTS * 5, SLOTS * 9, SLOTS * 13], dim=1)
    wider = []
    for part in parts:
        slots = part.unflatten(1, (SLOTS, -1))
        wider.append(torch.cat([slots, torch.zeros_like(slots[:, :2])], dim=1).flatten(1, 2))
    assert_close(module(torch.cat([x[:, :1], *wider], dim=1)), module(x))


def test_channels_that_fill_no_slots_are_refused():
    with pytest.raises(ValueError, match="30 channels are not 1"):
        encoder()(torch.zeros(1, 30, 2, 2, 2))


def test_reordering_into_functions_and_back_is_the_identity():
    x = field(FIELD)
    functions = to_functions(x, 3, 8)
    assert_close(from_functions(functions, 8), x)
    g = GROUP[17]
    turned = to_functions(act_on_field(g, x, FIELD), 3, 8)[:, 1]  # one function alone turns by itself
    one = "1x0e+1x2e+1x4e+1x6e+1x8e"
    assert_close(turned, act_on_field(g, functions[:, 1], one))
