import copy
import io
import pickle

import pytest
import torch
from torch.testing import assert_close

from dmri_monai.equivariant import (
    Bessel,
    Cosine,
    Gaussian,
    RadialMLP,
    SteerableConv3d,
    as_irreps,
    representation_matrix,
)
from dmri_monai.testing import assert_equivariant, cube_rotations

FIELD_IN, FIELD_OUT = "4x0e+2x1o+2x2e+2x0o+2x1e", "2x0e+2x1o+2x0o+2x2o"
TURNS = [cube_rotations(reflections=True)[i] for i in (1, 9, 19, 30, 44)]
OPTIONS = {
    "k1": ("4x0e+2x1o", "2x0e+2x1o", {"kernel_size": 1}, 5),
    "k3": (FIELD_IN, FIELD_OUT, {}, 5),
    "k5": (FIELD_IN, FIELD_OUT, {"kernel_size": 5}, 5),
    "valid": (FIELD_IN, FIELD_OUT, {"padding": "valid"}, 5),
    "k2 unpadded": (FIELD_IN, FIELD_OUT, {"kernel_size": 2, "padding": 0}, 5),
    "k2 stride 2 even": (FIELD_IN, FIELD_OUT, {"kernel_size": 2, "stride": 2}, 6),
    "k4 stride 2 even": (FIELD_IN, FIELD_OUT, {"kernel_size": 4, "stride": 2, "padding": 1}, 6),
    "k3 stride 2 odd": (FIELD_IN, FIELD_OUT, {"kernel_size": 3, "stride": 2}, 5),
    "k5 stride 2 odd": (FIELD_IN, FIELD_OUT, {"kernel_size": 5, "stride": 2}, 5),
    "k3 stride 3": (FIELD_IN, FIELD_OUT, {"kernel_size": 3, "stride": 3, "padding": 0}, 6),
    "dilation": (FIELD_IN, FIELD_OUT, {"dilation": 2}, 5),
    "groups": (FIELD_IN, FIELD_OUT, {"groups": 2}, 5),
    "transposed k4": (
        FIELD_IN,
        FIELD_OUT,
        {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True},
        4,
    ),
    "transposed k3": (FIELD_IN, FIELD_OUT, {"stride": 2, "transposed": True}, 4),
    "transposed groups": (
        FIELD_IN,
        FIELD_OUT,
        {"kernel_size": 2, "stride": 2, "transposed": True, "groups": 2},
        4,
    ),
    "no bias": (FIELD_IN, FIELD_OUT, {"bias": False}, 4),
    "cosine": (FIELD_IN, FIELD_OUT, {"radial": Cosine()}, 4),
    "bessel": (FIELD_IN, FIELD_OUT, {"radial": Bessel()}, 4),
    "r_max": (FIELD_IN, FIELD_OUT, {"radial": Gaussian(n=3, r_max=1.8)}, 4),
    "mlp": (FIELD_IN, FIELD_OUT, {"radial": Gaussian(mlp=RadialMLP((8, 8)))}, 4),
    "mlp basis": (
        FIELD_IN,
        FIELD_OUT,
        {"radial": Cosine(mlp=RadialMLP((8,), "silu")), "zero_offset": "basis"},
        4,
    ),
    "zero offset basis": (FIELD_IN, FIELD_OUT, {"zero_offset": "basis"}, 4),
    "l_max": ("2x0e+2x1o", "2x0e+2x1o", {"l_max": 1}, 4),
}


def layer_of(irreps_in, irreps_out, options, dtype=torch.float64, seed=0) -> SteerableConv3d:
    torch.manual_seed(seed)
    layer = SteerableConv3d(irreps_in, irreps_out, **options).to(dtype)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def field(irreps, size, dtype=torch.float64, batch=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(
        batch, as_irreps(irreps).dim, size, size, size, dtype=torch.float64, generator=generator
    ).to(dtype)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_commutes_with_rotations_and_reflections(name):
    irreps_in, irreps_out, options, size = OPTIONS[name]
    layer = layer_of(irreps_in, irreps_out, options)
    assert_equivariant(layer, field(irreps_in, size), irreps_in, irreps_out, TURNS, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_default_layer_commutes_with_the_whole_cube_group(dtype):
    layer = layer_of(FIELD_IN, FIELD_OUT, {}, dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    group = cube_rotations(reflections=True)
    assert_equivariant(layer, field(FIELD_IN, 4, dtype), FIELD_IN, FIELD_OUT, group, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["32", "64"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_commutes_with_the_whole_cube_group(name, dtype, rtol):
    irreps_in, irreps_out, options, size = OPTIONS[name]
    layer = layer_of(irreps_in, irreps_out, options, dtype)
    x = field(irreps_in, size, dtype)
    assert_equivariant(layer, x, irreps_in, irreps_out, cube_rotations(reflections=True), rtol=rtol)


def test_layer_without_parity_commutes_with_rotations_but_not_with_reflections():
    irreps_in, irreps_out = "2x0e+1x1o", "1x0e+1x1o+1x2e"
    layer = layer_of(irreps_in, irreps_out, {"parity": False})
    x = field(irreps_in, 4)
    assert_equivariant(layer, x, irreps_in, irreps_out, cube_rotations(), rtol=1e-10)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(layer, x, irreps_in, irreps_out, cube_rotations(reflections=True), rtol=1e-3)


def test_plain_convolution_is_not_equivariant():
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(
            torch.nn.Conv3d(1, 1, 3, padding=1), field("1x0e", 4, torch.float32), "1x0e", "1x0e"
        )


def test_a_vector_read_as_three_scalars_fails_the_check():
    layer = layer_of("2x0e", "1x1o", {})
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(layer, field("2x0e", 4), "2x0e", "3x0e", rtol=1e-3)


@pytest.mark.parametrize("reflect", [1.0, -1.0], ids=["rotation", "rotoreflection"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kernel_size": 5, "radial": Bessel()},
        {"radial": Cosine(mlp=RadialMLP((6,)))},
        {"spacing": (1.0, 1.0, 2.5)},
    ],
    ids=["default", "bessel k5", "mlp", "anisotropic"],
)
def test_kernel_function_is_steered_by_any_rotation(options, reflect):
    layer = layer_of("2x0e+1x1o+1x2e", "1x0e+2x1o+1x2e", options)
    generator = torch.Generator().manual_seed(5)
    points = torch.randn(30, 3, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    R = q * torch.diagonal(r).sign()
    R = R * torch.linalg.det(R).sign() * reflect
    d_in, d_out = (representation_matrix(i, R) for i in (layer.irreps_in, layer.irreps_out))
    expected = torch.einsum("ab,bcp,dc->adp", d_out, layer.kernel_at(points), d_in)
    turned = layer.kernel_at(points @ R.T)
    assert ((turned - expected).norm() / expected.norm()).item() <= 1e-6
    assert ((layer.kernel_at(points) - expected).norm() / expected.norm()).item() > 1e-2  # the control


def test_kernel_on_the_grid_samples_the_kernel_function_in_millimetres():
    layer = layer_of("1x0e+1x1o", "1x0e+1x1o", {"spacing": (1.0, 1.0, 2.0)})
    steps = torch.arange(3, dtype=torch.float64) - 1
    grid = torch.stack(torch.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    points = grid * torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64) / 2.0
    assert_close(layer.kernel().flatten(2), layer.kernel_at(points))


def test_kernel_basis_is_orthonormal():
    kernel = SteerableConv3d("1x1o", "1x1o").kernels[0]
    basis = kernel.constants.originals["in_1o_out_1o"]
    assert_close(basis @ basis.T, torch.eye(len(basis), dtype=torch.float64))


def test_output_has_about_the_variance_of_the_input():
    torch.manual_seed(0)
    layer = SteerableConv3d("16x0e+8x1o+4x2e", "16x0e+8x1o+4x2e")
    y = layer(torch.randn(2, 60, 10, 10, 10))[:, :, 1:-1, 1:-1, 1:-1]
    for part in y.split([16, 24, 20], dim=1):
        assert 0.6 < part.std() < 1.5


@pytest.mark.parametrize(
    "name", ["k3", "groups", "transposed k4", "transposed groups", "k4 stride 2 even", "mlp"]
)
def test_dense_export_gives_the_same_output(name):
    irreps_in, irreps_out, options, size = OPTIONS[name]
    layer = layer_of(irreps_in, irreps_out, options)
    dense = layer.to_dense()
    assert type(dense) in (torch.nn.Conv3d, torch.nn.ConvTranspose3d)
    assert_close(dense(field(irreps_in, size)), layer(field(irreps_in, size)))


def change_by_load(layer):
    layer.load_state_dict({key: value + 1 for key, value in layer.state_dict().items()})


def change_in_place(layer):
    with torch.no_grad():
        layer.kernels[0].weight.add_(1)


def change_by_training(layer):
    layer.train()
    layer(field("2x0e", 4, torch.float32)).sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    layer.eval()


@pytest.mark.parametrize("change", [change_by_load, change_in_place, change_by_training])
def test_kept_kernel_follows_the_weights(change):
    layer = layer_of("2x0e", "1x0e+1x1o", {}, torch.float32).eval()
    x = field("2x0e", 4, torch.float32)
    with torch.no_grad():
        before = layer(x)
        assert layer._weights()[0] is layer._weights()[0], "eval mode builds the kernel once"
    change(layer)
    with torch.no_grad():
        assert_close(layer(x), layer.to_dense()(x))
        assert (layer(x) - before).abs().max() > 1e-3


def test_kept_kernel_follows_the_precision():
    layer = layer_of("2x0e", "1x1o", {}, torch.float32).eval()
    with torch.no_grad():
        low = layer(field("2x0e", 4, torch.float32))
        high = layer.double()(field("2x0e", 4))
    assert high.dtype == torch.float64
    assert_close(low.double(), high, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", ["autocast", "bfloat16 module"])
def test_half_precision_keeps_the_kernel_in_float32(mode):
    layer = layer_of("2x0e+1x1o", "2x0e+1x1o", {}, torch.float32)
    x = field("2x0e+1x1o", 5, torch.float32)
    y = layer(x)
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer.kernel().dtype == torch.float32
            half = layer(x)
    else:
        half = layer.bfloat16()(x.bfloat16())
        assert layer.kernel().dtype == torch.float32
    assert half.dtype == torch.bfloat16
    assert ((half.float() - y).norm() / y.norm()).item() < 0.02


def test_copies_and_pickles_compute_the_same():
    layer = layer_of(FIELD_IN, FIELD_OUT, {"radial": Cosine(mlp=RadialMLP((4,)))})
    x = field(FIELD_IN, 4)
    layer.eval()
    with torch.no_grad():
        y = layer(x)
        assert_close(copy.deepcopy(layer)(x), y)
        assert_close(pickle.loads(pickle.dumps(layer))(x), y)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        fresh = layer_of(FIELD_IN, FIELD_OUT, {"radial": Cosine(mlp=RadialMLP((4,)))}, seed=9)
        fresh.load_state_dict(torch.load(buffer))
        assert_close(fresh(x), y)


def test_gradients_are_right():
    layer = layer_of("1x0e+1x1o", "1x0e+1x1o", {"radial": Gaussian(mlp=RadialMLP((3,), "tanh"))})
    x = field("1x0e+1x1o", 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda v, *_: layer(v), (x, *layer.parameters()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["trace", "export", "compile"])
def test_eval_mode_can_be_captured(how):
    layer = layer_of(FIELD_IN, FIELD_OUT, {}, torch.float32).eval()
    x = field(FIELD_IN, 4, torch.float32)
    with torch.no_grad():
        y = layer(x)
        if how == "trace":
            captured = torch.jit.trace(layer, x)
        elif how == "export":
            captured = torch.export.export(layer, (x,)).module()
        else:
            torch.compiler.reset()
            captured = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(captured(x), y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_padding": 1}, "output_padding 1"),
        ({"kernel_size": (3, 3, 1)}, r"\(3, 3, 1\)"),
        ({"stride": (1, 1, 2)}, r"stride \(1, 1, 2\)"),
        ({"kernel_size": 4}, "kernel_size 4"),
        ({"groups": 3}, "groups 3 does not divide the 2"),
        ({"padding": "reflect"}, "reflect"),
        ({"spacing": (1.0, 1.0)}, "spacing"),
        ({"zero_offset": "none"}, "zero_offset"),
        ({"kernel_size": 2, "stride": 3, "transposed": True}, "extent 2 is smaller than stride 3"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_options_that_cannot_be_equivariant_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SteerableConv3d("2x0e", "2x0e+2x1o", **options)


@pytest.mark.parametrize(("kernel_size", "size"), [(3, 6), (5, 6), (2, 5), (4, 7)])
def test_strides_that_leave_the_grid_off_centre_are_refused(kernel_size, size):
    layer = SteerableConv3d("1x0e", "1x0e", kernel_size, stride=2)
    with pytest.raises(ValueError, match=f"size {size} with kernel_size {kernel_size}"):
        layer(torch.zeros(1, 1, size, size, size))


def test_outputs_that_no_kernel_reaches_are_refused():
    with pytest.raises(ValueError, match="0e to 0o"):
        SteerableConv3d("2x0e", "1x0o")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 4, 4), "3 channels, irreps 2x0e need 2"),
        ((1, 2, 4, 4), "4 axes, expected 5"),
        ((1, 2, 4, 4, 4), ""),
    ],
    ids=["channels", "axes", "right"],
)
def test_wrong_shapes_are_named(shape, message):
    layer = SteerableConv3d("2x0e", "1x0e")
    if message:
        with pytest.raises(ValueError, match=message):
            layer(torch.zeros(shape))
    else:
        assert layer(torch.zeros(shape)).shape == (1, 1, 4, 4, 4)
