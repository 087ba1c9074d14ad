"""Kernels on anisotropic voxels are samples of one function of the offset in millimetres."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.equivariant import PQConv3d, PQDiff, PQTensorProduct, PSpace, SteerableConv3d, as_irreps
from dmri_monai.testing import act_on_field, cube_rotations

FIELD = "1x0e+1x1o"
SPACING = (1.0, 1.5, 2.5)
KERNELS = {"PSpace": PSpace(), "PQDiff": PQDiff(), "TP": PQTensorProduct()}
TURNS = cube_rotations(reflections=True)[1::5]


def table(samples=4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(samples, 3, dtype=torch.float64, generator=generator), dim=1)


def steerable(spacing):
    torch.manual_seed(0)
    return SteerableConv3d(FIELD, FIELD, spacing=spacing).double()


def pq(kernel):
    def make(spacing):
        torch.manual_seed(0)
        layer = PQConv3d(FIELD, FIELD, 3, kernel, spacing=spacing).double()
        return lambda x, q=None: layer(x, table() if q is None else q)

    return make


def turned_spacing(R) -> tuple[float, ...]:
    return tuple((R.abs() @ torch.tensor(SPACING, dtype=torch.float64)).tolist())


def relative_error(make, R, spacing_there, has_q):
    """Between a layer on the turned scan, of voxel size `spacing_there`, and the turned output of the layer."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, as_irreps(FIELD).dim, *((4,) if has_q else ()), 4, 4, 4)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    tables = (table() @ R.T,) if has_q else ()
    expected = act_on_field(R, make(SPACING)(x), FIELD)
    there = make(spacing_there)
    with torch.no_grad():
        return ((there(act_on_field(R, x, FIELD), *tables) - expected).norm() / expected.norm()).item()


CASES = {"steerable": (steerable, False)} | {name: (pq(kernel), True) for name, kernel in KERNELS.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_scan_stored_with_other_axes_gives_the_same_output(name):
    make, has_q = CASES[name]
    for R in TURNS:
        assert relative_error(make, R, turned_spacing(R), has_q) <= 1e-6


@pytest.mark.parametrize("name", CASES)
def test_the_wrong_voxel_size_is_noticed(name):
    make, has_q = CASES[name]
    R = cube_rotations()[9]
    assert turned_spacing(R) != SPACING
    assert relative_error(make, R, SPACING, has_q) > 1e-2


@pytest.mark.parametrize("name", ["PQDiff", "TP"])
def test_kernel_on_the_grid_samples_the_kernel_function_in_millimetres(name):
    layer = PQConv3d(FIELD, FIELD, 3, KERNELS[name], spacing=SPACING).double()
    steps = torch.arange(3, dtype=torch.float64) - 1
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = grid * torch.tensor(SPACING, dtype=torch.float64) / max(SPACING)
    sampled = layer.operator.dense(table(), table(), points) / len(table())
    assert_close(layer.dense_kernel(table(), table()).flatten(-3), sampled)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), 2.0, (1.0, 1.0, 0.0)], ids=["two", "number", "zero"])
@pytest.mark.parametrize("layer", [SteerableConv3d, PQConv3d])
def test_voxel_sizes_that_are_not_three_lengths_are_refused(layer, spacing):
    with pytest.raises(ValueError, match="spacing must be three positive lengths"):
        layer(FIELD, FIELD, spacing=spacing)
