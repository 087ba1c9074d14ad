import copy
import pickle

import pytest
import torch
from torch.nn.functional import conv3d, normalize
from torch.testing import assert_close

from dmri_monai.equivariant import (
    Bessel,
    Concat,
    Cosine,
    Gaussian,
    PQConv3d,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QSpace,
    RadialMLP,
    Sum,
    as_irreps,
    irreps_from_multiplicities,
    representation_matrix,
)
from dmri_monai.equivariant.pq.contraction import fourier_blocks, spectral
from dmri_monai.equivariant.pq.contraction.factorised import costs
from dmri_monai.equivariant.pq.contraction.interface import Sizes
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations

FIELD_IN, FIELD_OUT = "2x0e+1x1o+1x2e", "3x0e+1x1o+1x2e"
TURNS = [cube_rotations(reflections=True)[i] for i in (5, 17, 30, 44)]
KERNELS = {
    "PSpace": PSpace(),
    "QSpace": QSpace(),
    "PQDiff": PQDiff(),
    "TP": PQTensorProduct(),
    "TP basis": PQTensorProduct(zero_offset="basis"),
    "TP custom": PQTensorProduct(rule={0: [(0, 0)], 1: [(0, 1), (2, 1)], 2: [(2, 0), (0, 2)], 3: [(2, 1)]}),
    "TP norm bessel": PQTensorProduct(
        normalization="norm", q_radial=Bessel(), p_radial=Cosine(n=3, r_max=1.5)
    ),
    "PQDiff basis": PQDiff(zero_offset="basis", l_max=2),
    "PQDiff raw difference": PQDiff(unit_q_difference=False),
    "PQDiff filters": PQDiff(filters={(0, 0): [0], (0, 1): [1], (1, 1): [0, 2], (0, 2): [2]}),
    "MLP": PQDiff(p_radial=Cosine(mlp=RadialMLP((6, 6))), q_radial=Gaussian(mlp=RadialMLP((4,), "silu"))),
    "TP MLP": PQTensorProduct(p_radial=Gaussian(mlp=RadialMLP((4,))), q_radial=Cosine(n=4)),
    "Sum": Sum(PQDiff(l_max=2), PSpace(l_max=2)),
    "Concat": Concat((PQDiff(), "1x0e+1x1o"), (PSpace(), "2x0e+1x2e")),
}
SIDES = {"q to q": (True, True), "q to p": (True, False), "p to q": (False, True)}


def table(samples: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    q = normalize(torch.randn(samples, 3, dtype=torch.float64, generator=generator), dim=1)
    q[2:] *= 0.7
    q[0] = 0
    return q


Q_IN, Q_OUT = table(5, 0), table(4, 1)
Q_OUT[1], Q_OUT[2] = Q_IN[1], -Q_IN[2]  # equal and opposite directions


def layer_of(kernel, sides=(True, True), seed=0, **options) -> PQConv3d:
    torch.manual_seed(seed)
    layer = PQConv3d(FIELD_IN, FIELD_OUT, 3, kernel, q_in=sides[0], q_out=sides[1], **options).double()
    torch.nn.init.normal_(layer.bias)
    return layer


def inputs(sides=(True, True), size=4, batch=1):
    generator = torch.Generator().manual_seed(2)
    shape = [batch, as_irreps(FIELD_IN).dim, *([len(Q_IN)] if sides[0] else []), size, size, size]
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    return x, Q_IN if sides[0] else None, Q_OUT if sides[1] else None


def turn_inputs(R, args):
    return act_on_field(R, args[0], FIELD_IN), *(None if q is None else q @ R.T.to(q.dtype) for q in args[1:])


def check(layer, args, group=TURNS, rtol=1e-10):
    assert_equivariant(lambda a: layer(*a), args, turn_inputs, FIELD_OUT, group, rtol)


@pytest.mark.parametrize("antipodal", [True, False], ids=["antipodal", "published"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_commute_with_joint_rotations_and_reflections(name, sides, antipodal):
    layer = layer_of(KERNELS[name], SIDES[sides], antipodal=antipodal)
    check(layer, inputs(SIDES[sides]))


@pytest.mark.slow
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_commute_with_the_whole_cube_group_in_both_precisions(name, sides):
    layer, args = layer_of(KERNELS[name], SIDES[sides]), inputs(SIDES[sides])
    check(layer, args, cube_rotations(reflections=True))
    single = tuple(None if a is None else a.float() for a in args)
    check(layer.float(), single, cube_rotations(reflections=True), rtol=1e-5)


@pytest.mark.parametrize("name", ["TP", "PQDiff"])
def test_main_kernels_commute_with_the_whole_cube_group_in_float32(name):
    args = tuple(a.float() for a in inputs(size=3))
    check(layer_of(KERNELS[name]).float(), args, cube_rotations(reflections=True), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel_size": 1, "kernel": PQTensorProduct(rule={0: [(0, 0)], 1: [(1, 0)], 2: [(2, 0)]})}, 3),
        ({"kernel_size": 5, "kernel": PQTensorProduct()}, 4),
        ({"kernel_size": 2, "stride": 2, "kernel": PQTensorProduct()}, 4),
        ({"kernel_size": 4, "stride": 2, "padding": 1, "kernel": PQDiff()}, 4),
        ({"kernel_size": 3, "stride": 2, "kernel": PQDiff()}, 5),
        ({"kernel_size": 3, "stride": 2, "strategy": "p_last"}, 5),
        ({"kernel_size": 3, "dilation": 2, "kernel": QSpace()}, 5),
        ({"kernel_size": 3, "bias": False, "scaling": "sqrt"}, 3),
        ({"kernel_size": 3, "checkpoint": True}, 3),
    ],
    ids=[
        "k1",
        "k5",
        "k2 stride 2",
        "k4 stride 2",
        "k3 stride 2",
        "p_last stride 2",
        "dilation",
        "sqrt",
        "checkpoint",
    ],
)
def test_options_commute_with_joint_rotations(options, size):
    torch.manual_seed(0)
    layer = PQConv3d(FIELD_IN, FIELD_OUT, antipodal=False, **options).double()
    check(layer, inputs(size=size))


def test_layer_without_parity_commutes_with_rotations_only():
    layer = layer_of(PQTensorProduct(), parity=False, antipodal=False)
    check(layer, inputs(), cube_rotations()[3:20:4])
    with pytest.raises(AssertionError, match="relative error"):
        check(layer, inputs(), cube_rotations(reflections=True), rtol=1e-3)


def test_turning_the_image_without_its_directions_is_noticed():
    layer = layer_of(PQTensorProduct())

    def turn_image_only(R, args):
        return act_on_field(R, args[0], FIELD_IN), *args[1:]

    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(lambda a: layer(*a), inputs(), turn_image_only, FIELD_OUT, TURNS, 1e-3)


@pytest.mark.parametrize("name", ["PQDiff", "TP", "QSpace", "MLP", "Sum"])
def test_kernel_function_is_steered_by_any_rotation_of_all_offsets(name):
    layer = layer_of(KERNELS[name], parity=False, antipodal=False)
    generator = torch.Generator().manual_seed(4)
    R, r = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    R = R * torch.linalg.det(R)
    d_in, d_out = (representation_matrix(i, R) for i in (layer.irreps_in, layer.irreps_out))
    before = layer.dense_kernel(Q_OUT, Q_IN)
    expected = torch.einsum("ab,bqcsxyz,dc->aqdsxyz", d_out, before, d_in)[..., 1, 1, 1]
    turned = layer.dense_kernel(Q_OUT @ R.T, Q_IN @ R.T)[..., 1, 1, 1]  # at p = 0 any rotation is exact
    assert ((turned - expected).norm() / expected.norm()).item() <= 1e-6


@pytest.mark.parametrize("name", ["PQDiff", "TP", "TP MLP"])
def test_kernel_between_voxels_is_steered_by_any_rotation(name):
    layer = layer_of(KERNELS[name], parity=False, antipodal=False)
    generator = torch.Generator().manual_seed(4)
    R, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))
    R = R * torch.linalg.det(R)
    points = torch.randn(9, 3, dtype=torch.float64, generator=generator)
    d_in, d_out = (representation_matrix(i, R) for i in (layer.irreps_in, layer.irreps_out))
    before = layer.operator.dense(Q_OUT, Q_IN, points)
    expected = torch.einsum("ab,bqcsp,dc->aqdsp", d_out, before, d_in)
    turned = layer.operator.dense(Q_OUT @ R.T, Q_IN @ R.T, points @ R.T)
    assert ((turned - expected).norm() / expected.norm()).item() <= 1e-6
    assert ((before - expected).norm() / expected.norm()).item() > 1e-2  # the control


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", ["PSpace", "QSpace", "PQDiff", "TP", "Sum", "Concat"])
def test_dense_kernel_is_the_layers_linear_map(name, sides):
    layer = layer_of(KERNELS[name], SIDES[sides])
    x, q_in, q_out = inputs(SIDES[sides])
    kernel = layer.dense_kernel(q_out, q_in)
    flat = x.flatten(1, 2) if SIDES[sides][0] else x
    expected = conv3d(flat, kernel.flatten(2, 3).flatten(0, 1), padding=1).unflatten(1, kernel.shape[:2])
    expected = expected if SIDES[sides][1] else expected.squeeze(2)
    bias = torch.zeros(layer.dim_out, dtype=torch.float64).index_copy(
        0, layer.bias_index, layer.bias.detach()
    )
    assert_close(layer(x, q_in, q_out), expected + bias.view(-1, *[1] * (expected.ndim - 2)))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("strategy", ["p_basis", "p_last", "dense"])
@pytest.mark.parametrize("name", ["TP", "TP basis", "QSpace", "TP MLP"])
def test_every_strategy_of_contraction_gives_the_same(name, strategy, sides):
    args = inputs(SIDES[sides], batch=2)
    expected = layer_of(KERNELS[name], SIDES[sides], strategy="dense")(*args)
    assert_close(layer_of(KERNELS[name], SIDES[sides], strategy=strategy)(*args), expected)
    tables = [None if q is None else torch.stack([q, q.flip(0)]) for q in args[1:]]
    expected = layer_of(KERNELS[name], SIDES[sides], strategy="dense")(args[0], *tables)
    assert_close(layer_of(KERNELS[name], SIDES[sides], strategy=strategy)(args[0], *tables), expected)


@pytest.mark.parametrize("strategy", ["p_basis", "p_last"])
@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"dilation": 2}, {"padding": "valid"}, {"parity": False, "antipodal": False}],
    ids=["stride", "dilation", "valid", "published"],
)
def test_every_strategy_of_contraction_takes_every_option(options, strategy):
    args = inputs(size=5)
    expected = layer_of(PQTensorProduct(), strategy="dense", **options)(*args)
    assert_close(layer_of(PQTensorProduct(), strategy=strategy, **options)(*args), expected)


def gradients(layer, args, strategy):
    """Output, and the gradients of input and weights for a fixed gradient of the output."""
    layer.options = layer.options._replace(strategy=strategy)
    layer.zero_grad()
    x = args[0].clone().requires_grad_()
    y = layer(x, *args[1:])
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("antipodal", [True, False], ids=["antipodal", "published"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", ["PQDiff", "PQDiff basis", "PQDiff raw difference", "PQDiff filters"])
def test_contraction_at_frequencies_is_the_dense_one_with_its_gradients(name, sides, antipodal):
    x, *tables = inputs(SIDES[sides], batch=2, size=5)
    several = [None if q is None else torch.stack([q, q.flip(0)]) for q in tables]
    layer = layer_of(KERNELS[name], SIDES[sides], antipodal=antipodal)
    for args in ((x, *tables), (x, *several)):
        assert_close(gradients(layer, args, "spectral"), gradients(layer, args, "dense"))


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"kernel_size": 2, "padding": 0}, 4),
        ({"kernel_size": 4, "padding": 2}, 4),
        ({"kernel_size": 3, "dilation": 2}, 6),
        ({"kernel_size": 5, "padding": "valid", "spacing": (1, 1, 2)}, 6),
        ({"kernel_size": 1}, 3),
        ({"kernel_size": 3, "parity": False}, 4),
    ],
    ids=["k2", "k4 padded", "dilation", "valid k5 anisotropic", "k1", "rotations only"],
)
def test_contraction_at_frequencies_takes_every_option(options, size):
    torch.manual_seed(0)
    layer = PQConv3d(FIELD_IN, FIELD_OUT, kernel=PQDiff(), **options).double()
    args = inputs(size=size)
    assert_close(gradients(layer, args, "spectral"), gradients(layer, args, "dense"))


def test_large_volumes_are_cut_into_blocks_that_join_without_a_seam(monkeypatch):
    monkeypatch.setattr(fourier_blocks, "LARGEST_BLOCK", 3)
    monkeypatch.setattr(spectral, "LARGEST_CHUNK", 1)
    layer = layer_of(PQDiff())
    x, q_in, q_out = inputs(batch=2, size=7)
    args = (x[..., :4], q_in, q_out)
    assert_close(gradients(layer, args, "spectral"), gradients(layer, args, "dense"))


def test_contraction_at_frequencies_knows_gradients_of_its_radial_net():
    layer = layer_of(PQDiff(q_radial=Gaussian(mlp=RadialMLP((4,), "silu"))))
    assert_close(gradients(layer, inputs(), "spectral"), gradients(layer, inputs(), "dense"))


def test_a_kernel_that_cannot_be_contracted_at_frequencies_is_built_densely():
    for options in ({"stride": 2}, {"kernel": PQDiff(p_radial=Cosine(mlp=RadialMLP((4,))))}):
        torch.manual_seed(0)
        layer = PQConv3d(FIELD_IN, FIELD_OUT, 3, **{"kernel": PQDiff(), **options}).double()
        args = inputs(size=5)
        assert_close(gradients(layer, args, "spectral"), gradients(layer, args, "dense"))


@pytest.mark.parametrize("multiplicities", [[1], [7, 4]], ids=["narrow", "wide"])
def test_the_cheapest_strategy_is_far_below_the_dense_kernel_for_long_tables(multiplicities):
    layer = PQConv3d(irreps_from_multiplicities(multiplicities), irreps_from_multiplicities([10, 5]))
    work = [costs(layer.operator.layout, Sizes(n, n, 4096, 1.0, True)) for n in (64, 128)]
    assert min(work[0].values()) < 0.4 * work[0]["dense"]
    assert work[1]["dense"] > 3.9 * work[0]["dense"]
    assert work[1]["p_last"] < 2.6 * work[0]["p_last"]  # linear but for the mixing of samples


@pytest.mark.parametrize("name", KERNELS)
def test_one_layer_runs_on_any_table_and_order_of_samples(name):
    layer = layer_of(KERNELS[name])
    x, q_in, q_out = inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(layer(x[:, :, order], q_in[order], q_out.flip(0)), layer(x, q_in, q_out).flip(2))
    assert layer(x[:, :, :3], q_in[:3], table(7, 5)).shape[2] == 7


@pytest.mark.parametrize("strategy", ["p_basis", "p_last", "dense"])
@pytest.mark.parametrize("name", ["PSpace", "QSpace", "PQDiff", "TP", "Sum", "Concat"])
def test_padded_batch_gives_the_unpadded_output(name, strategy):
    layer = layer_of(KERNELS[name], strategy=strategy)
    x, q_in, q_out = inputs()
    nan = float("nan")
    padded = torch.cat([x, torch.full_like(x[:, :, :2], nan)], dim=2)
    q_padded = torch.cat([q_in, torch.full_like(q_in[:2], nan)])
    q_more = torch.cat([q_out, torch.full_like(q_out[:1], nan)])
    mask_in, mask_out = torch.tensor([[True] * 5 + [False] * 2]), torch.tensor([[True] * 4 + [False]])
    y = layer(padded, q_padded, q_more, mask_in, mask_out)
    assert_close(y[:, :, :4], layer(x, q_in, q_out))
    assert (y[:, :, 4] == 0).all()


def test_doubling_every_sample_changes_nothing_and_sqrt_scaling_does():
    x, q_in, q_out = inputs()
    twice = (torch.cat([x, x], 2), torch.cat([q_in, q_in]), q_out)
    layer = layer_of(PQTensorProduct())
    assert_close(layer(*twice), layer(x, q_in, q_out))
    root = layer_of(PQTensorProduct(), scaling="sqrt", bias=True)
    assert (root(*twice) - root(x, q_in, q_out)).abs().max() > 1e-2


def test_quadrature_weights_count_as_repeated_samples():
    x, q_in, q_out = inputs()
    layer = layer_of(PQTensorProduct())
    weighted = layer(x, q_in, q_out, weights_in=torch.tensor([1.0, 1, 1, 1, 2]))
    repeated = layer(torch.cat([x, x[:, :, 4:]], 2), torch.cat([q_in, q_in[4:]]), q_out)
    assert_close(weighted, repeated)


SUBSETS = {  # signs of the five vectors of the input, of the four of the output
    "some": ([1, -1, -1, 1, -1], [1, -1, -1, 1]),
    "input only": ([1, -1, 1, 1, 1], [1, 1, 1, 1]),
    "output only": ([1, 1, 1, 1, 1], [1, 1, 1, -1]),
    "all": ([-1] * 5, [-1] * 4),
}


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("name", KERNELS)
def test_negating_b_vectors_changes_nothing(name, sides, subset):
    x, *tables = inputs(SIDES[sides])
    turned = [
        None if q is None else q * q.new_tensor(signs).unsqueeze(1)
        for q, signs in zip(tables, SUBSETS[subset], strict=True)
    ]
    q_in, q_out = tables
    layer = layer_of(KERNELS[name], SIDES[sides])
    y = layer(x, q_in, q_out)
    assert ((layer(x, *turned) - y).norm() / y.norm()).item() <= 1e-5


@pytest.mark.parametrize("name", ["PQDiff", "TP", "QSpace"])
def test_negating_b_vectors_changes_the_published_kernel(name):
    x, q_in, q_out = inputs()
    layer = layer_of(KERNELS[name], antipodal=False)
    y = layer(x, q_in, q_out)
    assert (
        (layer(x, q_in * torch.tensor([[1.0], [-1], [-1], [1], [-1]]), q_out) - y).norm() / y.norm()
    ).item() > 1e-2


@pytest.mark.parametrize("name", ["TP", "PQDiff", "PSpace"])
def test_gradients_are_right(name):
    torch.manual_seed(0)
    layer = PQConv3d("1x0e+1x1o", "1x0e+1x1o", 3, KERNELS[name]).double()
    x = torch.randn(1, 4, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    q = Q_IN[:3]
    assert torch.autograd.gradcheck(lambda v, *_: layer(v, q), (x, *layer.parameters()), fast_mode=True)


def test_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpoint in (False, True):
        layer = layer_of(PQTensorProduct(), checkpoint=checkpoint)
        layer(*inputs()).square().sum().backward()
        gradients.append(layer.operator.weight.grad)
    assert_close(*gradients)


def test_state_dict_pickle_and_copy_do_not_depend_on_table_or_precision():
    layer = layer_of(Sum(PQDiff(), PQTensorProduct(), PSpace())).eval()
    x, q_in, q_out = inputs()
    y = layer(x, q_in, q_out)
    fresh = layer_of(Sum(PQDiff(), PQTensorProduct(), PSpace()), seed=8)
    fresh(x[:, :, :3], q_in[:3], q_out)
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert_close(other(x, q_in, q_out), y)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("TP", "trace"),
        pytest.param("TP", "export", marks=pytest.mark.slow),
        pytest.param("TP", "compile", marks=pytest.mark.slow),
        ("PQDiff", "trace"),
        ("PQDiff", "export"),
        pytest.param("PQDiff", "compile", marks=pytest.mark.slow),
    ],
)
def test_eval_mode_can_be_captured(name, how):
    layer = layer_of(KERNELS[name]).eval()
    args = inputs(size=3)
    with torch.no_grad():
        y = layer(*args)
        if how == "trace":
            captured = torch.jit.trace(layer, args)
        elif how == "export":
            captured = torch.export.export(layer, args).module()
        else:
            torch.compiler.reset()
            captured = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert_close(captured(*args), y)


def test_autocast_builds_kernels_in_float32():
    layer, args = layer_of(PQTensorProduct()).float(), [a.float() for a in inputs()]
    y = layer(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(*args)
    assert ((half.float() - y).norm() / y.norm()).item() < 0.02


X = torch.zeros(1, 9, 5, 3, 3, 3)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[:, :8], {"q_in": Q_IN}, "8 channels.*need 10"),
        (X[:, :, 0], {"q_in": Q_IN}, "5 axes, expected 6"),
        (X, {}, "q_in.*got None"),
        (X, {"q_in": Q_IN[:4]}, "4 vectors for 5 samples"),
        (X, {"q_in": Q_IN[:, :2]}, r"\(5, 2\)"),
        (X, {"q_in": Q_IN.expand(2, -1, -1)}, "2 tables for a batch of 1"),
        (X, {"q_in": 1000 * Q_IN}, "longest q-vector"),
        (X, {"q_in": torch.full_like(Q_IN, float("nan"))}, "5 of 5 q-vectors are not finite"),
        (X, {"q_in": Q_IN, "mask_in": torch.ones(1, 4, dtype=torch.bool)}, r"\(1, 4\), expected \(1, 5\)"),
        (X, {"q_in": Q_IN, "weights_in": torch.ones(4)}, r"\(4,\)"),
        (X, {"q_in": Q_IN, "weights_in": -torch.ones(5)}, "5 of 5 are negative"),
    ],
    ids=[
        "channels",
        "axes",
        "none",
        "samples",
        "components",
        "batch",
        "long",
        "nan",
        "mask",
        "weights",
        "negative",
    ],
)
def test_wrong_inputs_are_named(x, options, message):
    layer = PQConv3d(FIELD_IN, FIELD_OUT)
    x = torch.nn.functional.pad(x, (0,) * (2 * (x.ndim - 2)) + (0, 1)) if x.shape[1] == 9 else x
    with pytest.raises(ValueError, match=message):
        layer(x, **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PQConv3d("1x0e", "1x1o", kernel=QSpace()), ValueError, "carries none of 1x0e to 1o"),
        (
            lambda: PQConv3d("1x0e", "2x0e", kernel=Concat((PSpace(), "1x0e"))),
            ValueError,
            "do not add up to 2x0e",
        ),
        (lambda: PQConv3d("1x0e", "1x0e", kernel="pq_TP"), TypeError, "pq_TP"),
        (lambda: PQConv3d("1x0e", "1x0e", scaling="sum"), ValueError, "sum"),
        (lambda: PQConv3d("1x0e", "1x0e", strategy="fast"), ValueError, "fast"),
        (
            lambda: PQConv3d("1x0e", "1x0e", kernel=QSpace(), q_in=False, q_out=False),
            ValueError,
            "QSpace needs",
        ),
        (lambda: PQTensorProduct(rule="TP"), ValueError, "'TP'"),
        (lambda: PQTensorProduct(rule={0: [(0, 1)]}), ValueError, "lq 0 and lp 1 do not couple to degree 0"),
        (lambda: PQDiff(zero_offset="zero"), ValueError, "zero"),
        (lambda: PQDiff(normalization="integral"), ValueError, "integral"),
        (lambda: Sum(), ValueError, "0"),
        (lambda: Gaussian(n=0), ValueError, "0"),
        (lambda: Gaussian(r_max=-1.0), ValueError, "-1.0"),
        (lambda: RadialMLP((0,)), ValueError, r"\(0,\)"),
        (lambda: RadialMLP((4,), "gelu"), ValueError, "gelu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_options_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
