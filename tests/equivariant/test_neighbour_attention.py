"""Averages over neighbours: exact symmetries on any grid, what counts as a neighbour, and controls that fail."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from torch.testing import assert_close

from dmri_monai.equivariant import NeighbourAttention
from dmri_monai.equivariant.neighbour_attention import OFFSETS
from dmri_monai.so3 import as_irreps, sh_basis
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations

FIELD = "1x0e+2x1o+1x1e+1x2e+1x4e"
DIM, SCALARS = as_irreps(FIELD).dim, 3
WHOLE = f"{FIELD}+{SCALARS}x0e+1x0e"  # with scalars, and which voxels count
GROUP = cube_rotations(reflections=True)
SPACING = torch.tensor([[1.5, 2.0, 5.0]], dtype=torch.float64)


def layer(irreps: str = FIELD, scalars: int = SCALARS) -> NeighbourAttention:
    """With weights that tell: untrained ones are zero."""
    torch.manual_seed(0)
    module = NeighbourAttention(irreps, scalars, hidden=5).double()
    for parameter in module.answer.parameters():
        torch.nn.init.normal_(parameter, std=2.0)
    torch.nn.init.normal_(module.pair.weight)
    torch.nn.init.constant_(module.level, -1.0)
    return module


def volume(size=(4, 5, 3), batch=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, DIM + SCALARS + 1, *size, generator=generator, dtype=torch.float64)
    x[:, -1] = (x[:, -1] > -0.6).double()
    return x


def on_grid(module: NeighbourAttention, spacing: torch.Tensor | None = None):
    """Of a whole volume, on voxels of `spacing`."""

    def apply(x: torch.Tensor) -> torch.Tensor:
        geometry = None if spacing is None else module.geometry(spacing.expand(len(x), 3))
        return module(x[:, :DIM], x[:, DIM:-1], x[:, -1:] > 0.5, geometry)

    return apply


def test_layer_commutes_with_rotations_and_reflections_of_the_cube():
    assert_equivariant(on_grid(layer()), volume(), WHOLE, FIELD, GROUP, rtol=1e-10)


def test_on_anisotropic_voxels_it_commutes_with_what_keeps_them():
    kept = [g for g in GROUP if g.abs().equal(torch.eye(3, dtype=g.dtype))]
    module = layer()
    assert_equivariant(on_grid(module, SPACING), volume(), WHOLE, FIELD, kept, rtol=1e-10)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(on_grid(module, SPACING), volume(), WHOLE, FIELD, GROUP, rtol=1e-3)


@pytest.mark.parametrize("turn", range(0, 48, 7))
def test_turning_the_grid_with_the_voxels_turns_the_answer(turn):
    """Storage order changes the voxel's sizes along the array's axes, too."""
    g, module = GROUP[turn], layer()
    turned = SPACING @ g.abs().T

    first = on_grid(module, SPACING)(volume())
    second = on_grid(module, turned)(act_on_field(g, volume(), WHOLE))
    assert_close(second, act_on_field(g, first, FIELD), rtol=1e-9, atol=1e-10)


def test_any_rotation_of_frame_and_grid_together_changes_nothing_but_the_frame():
    """Weights are invariants: with the directions to the neighbours turned as the fields are, by e3nn's matrices."""
    module, x = layer(), volume(batch=1)
    torch.manual_seed(2)
    rotation = o3.rand_matrix().double()
    matrix = as_irreps(FIELD).D_from_matrix(rotation.float()).double()
    geometry = module.geometry(SPACING)
    turned = geometry.clone()
    natural = as_irreps("1x0e+2x1o+1x1o+1x2e+1x4e").D_from_matrix(rotation.float()).double()
    turned[..., :-1] = geometry[..., :-1] @ natural.T
    fields = torch.einsum("ij,bj...->bi...", matrix, x[:, :DIM])
    found = module(fields, x[:, DIM:-1], x[:, -1:] > 0.5, turned)
    expected = module(x[:, :DIM], x[:, DIM:-1], x[:, -1:] > 0.5, geometry)
    assert_close(found, torch.einsum("ij,bj...->bi...", matrix, expected), rtol=1e-4, atol=1e-5)
    wrong = module(fields, x[:, DIM:-1], x[:, -1:] > 0.5, geometry)  # neighbours elsewhere
    assert (wrong - found).norm() > 1e-2 * found.norm()


def test_layer_is_the_weighted_mean_that_its_docstring_says():
    """Written anew, voxel by voxel, for functions on the sphere."""
    irreps = "1x2e+1x4e"
    module, dim = layer(irreps, 2), 14
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, dim, 3, 3, 3, generator=generator, dtype=torch.float64)
    scalars = torch.randn(1, 2, 3, 3, 3, generator=generator, dtype=torch.float64)
    there = torch.rand(1, 1, 3, 3, 3, generator=generator) > 0.3
    there[0, 0, 1, 1, 1] = True
    spacing = torch.tensor([2.0, 2.0, 3.0], dtype=torch.float64)
    found = module(x, scalars, there, module.geometry(spacing[None]))[0, :, 1, 1, 1]

    def lengths(f):
        return torch.stack([part.norm() for part in f.split([5, 9])])

    own, weights, total = x[0, :, 1, 1, 1], 1.0, x[0, :, 1, 1, 1].clone()
    for offset in OFFSETS:
        i, j, k = (1 + step for step in offset)
        if not there[0, 0, i, j, k]:
            continue
        other, step = x[0, :, i, j, k], torch.tensor(offset).double() * spacing
        harmonics = sh_basis(step, 4)[1:]
        along = [
            torch.stack([a @ b for a, b in zip(f.split([5, 9]), harmonics.split([5, 9]), strict=True)])
            for f in (own, other)
        ]
        cosines = torch.stack([a @ b for a, b in zip(own.split([5, 9]), other.split([5, 9]), strict=True)])
        cosines = cosines / lengths(own) / lengths(other)
        pair = torch.cat([cosines, *along, (step.norm() / 2.0)[None]])
        hidden = module.query(torch.cat([scalars[0, :, 1, 1, 1], lengths(own)]))
        hidden = hidden + module.key(torch.cat([scalars[0, :, i, j, k], lengths(other)])) + module.pair(pair)
        answer = module.answer(torch.nn.functional.silu(hidden))
        weight = torch.exp(module.level + 5 * torch.tanh(answer / 5))
        total, weights = total + weight * other, weights + weight
    assert_close(found, total / weights, rtol=1e-5, atol=1e-5)


def test_voxels_that_do_not_count_neither_change_nor_are_seen():
    module, x = layer(), volume()
    there = x[:, -1:] > 0.5
    found = on_grid(module)(x)
    assert_close(found.where(~there, 0.0), x[:, :DIM].where(~there, 0.0))
    other = x.clone()
    other[:, :-1] = torch.where(there, x[:, :-1], 100.0)
    assert_close(on_grid(module)(other).where(there, 0.0), found.where(there, 0.0))
    seen = x.clone()
    seen[:, -1] = 1.0
    assert (on_grid(module)(seen) - found).where(there, 0.0).abs().max() > 1e-3


def test_a_voxel_on_its_own_and_an_empty_volume_stay_as_they_are():
    module, x = layer(), volume()
    x[:, -1] = 0.0
    assert_close(on_grid(module)(x), x[:, :DIM])
    x[:, -1, 2, 2, 1] = 1.0
    assert_close(on_grid(module)(x), x[:, :DIM])


def test_what_lies_two_voxels_away_is_not_seen():
    module, x = layer(), volume((5, 4, 4))
    other = x.clone()
    other[:, :DIM, 4] = 0.0
    change = (on_grid(module)(other) - on_grid(module)(x)).abs().amax(dim=(0, 1, 3, 4))
    assert change[:3].max() == 0
    assert change[3] > 1e-4


def test_items_of_a_batch_have_voxels_of_their_own():
    module, x = layer(), volume()
    sizes = torch.cat([SPACING, torch.ones(1, 3, dtype=torch.float64)])
    both = on_grid(module, sizes)(x)
    for b in range(2):
        assert_close(both[b : b + 1], on_grid(module, sizes[b : b + 1])(x[b : b + 1]))
    assert_close(both[1:], on_grid(module)(x[1:]))  # without geometry: cubes


def test_chunks_change_neither_answer_nor_gradients(monkeypatch):
    module, x = layer(), volume()
    on_grid(module)(x).square().sum().backward()
    whole = [parameter.grad.clone() for parameter in module.parameters()]
    with torch.no_grad():
        quiet = on_grid(module)(x)
    module.zero_grad()
    monkeypatch.setattr("dmri_monai.equivariant.neighbour_attention.TRAINING_CHUNK", 7)
    module.chunk = 7
    on_grid(module)(x).square().sum().backward()
    for parameter, expected in zip(module.parameters(), whole, strict=True):
        assert_close(parameter.grad, expected)
    with torch.no_grad():
        assert_close(on_grid(module)(x), quiet)


def test_gradients_are_those_of_finite_differences():
    module, x = layer("1x1o+1x2e", 0), volume((2, 2, 2), 1)
    there = torch.ones(1, 1, 2, 2, 2, dtype=torch.bool)
    fields, none = x[:, :8].clone().requires_grad_(), x[:, :0]
    assert torch.autograd.gradcheck(lambda f: module(f, none, there), (fields,), fast_mode=True)


def test_compiled_and_traced_layers_are_the_same():
    module, x = layer(), volume()
    given = (x[:, :DIM], x[:, DIM:-1], x[:, -1:] > 0.5)
    with torch.no_grad():
        assert_close(torch.jit.script(module)(*given), module(*given))
        traced = torch.jit.trace(module, given, check_trace=False)
        empty = (x[:, :DIM], x[:, DIM:-1], x[:, -1:] > 2.0)  # other voxels count than in the recorded run
        for example in (given, empty):
            assert_close(traced(*example), module(*example))


def test_other_channels_are_refused():
    module, x = layer(), volume()
    with pytest.raises(ValueError, match=r"fields \[2, 18.*expected 5 axes, 24 and 3 channels"):
        module(x[:, :18], x[:, DIM:-1], x[:, -1:] > 0.5)
    with pytest.raises(ValueError, match="no irreps"):
        NeighbourAttention("0x0e")


def test_one_geometry_does_for_all_items_and_others_are_refused():
    module, x = layer(), volume()
    given = (x[:, :DIM], x[:, DIM:-1], x[:, -1:] > 0.5)
    assert_close(module(*given, module.geometry(SPACING)), on_grid(module, SPACING)(x))
    for sizes in (SPACING[0], SPACING.expand(3, 3)):
        with pytest.raises(ValueError, match=r"expected that of voxel sizes \(1, 3\) or \(2, 3\)"):
            module(*given, module.geometry(sizes))
