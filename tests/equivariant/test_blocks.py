import os

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed
from torch.testing import assert_close

from dmri_monai.equivariant import (
    EquivariantAvgPool3d,
    EquivariantBatchNorm,
    EquivariantDropout,
    EquivariantInstanceNorm,
    EquivariantUpsample3d,
    Gate,
    Invariants,
    NormActivation,
    NormGate,
    QLengthWeightedMean,
    QMean,
    SteerableBlock,
    SteerableConv3d,
    SteerableResidualBlock,
    as_irreps,
)
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations

FIELD = "3x0e+2x1o+1x2e+2x0o+1x1e"
TURNS = [cube_rotations(reflections=True)[i] for i in (1, 9, 19, 30, 44)]


def field(irreps, size=4, samples=None, batch=2, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = [batch, as_irreps(irreps).dim, *([samples] if samples else []), size, size, size]
    return torch.randn(shape, dtype=dtype, generator=generator)


def shaken(layer: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer.double()


LAYERS = {
    "gate": lambda: Gate(FIELD),
    "gate relu": lambda: Gate(FIELD, activation="relu"),
    "gate odd tanh": lambda: Gate(FIELD, odd="tanh"),
    "gate callable": lambda: Gate(FIELD, activation=torch.sin, gate=torch.tanh),
    "norm activation": lambda: NormActivation(FIELD),
    "norm activation tanh": lambda: NormActivation(FIELD, norm_activation="tanh", bias=False),
    "instance norm": lambda: EquivariantInstanceNorm(FIELD),
    "batch norm": lambda: EquivariantBatchNorm(FIELD),
    "norm gate": lambda: NormGate(Gate(FIELD)),
    "batch norm gate": lambda: NormGate(Gate(FIELD), norm="batch"),
    "invariants": lambda: Invariants(FIELD),
    "block": lambda: SteerableBlock(3, FIELD, "2x0e+2x1o+1x2e"),
    "block down": lambda: SteerableBlock(3, FIELD, "2x0e+2x1o", 2, 2, norm="equivariant_batch", act="norm"),
    "block up": lambda: SteerableBlock(3, FIELD, "2x0e+2x1o", 2, 4, "A", is_transposed=True),
    "block AN": lambda: SteerableBlock(
        3, FIELD, "2x0e+2x1o", adn_ordering="AN", act=("gate", {"activation": "relu"})
    ),
    "block conv only": lambda: SteerableBlock(3, FIELD, "2x0e+2x1o", conv_only=True),
    "residual": lambda: SteerableResidualBlock(FIELD, FIELD),
    "residual wider": lambda: SteerableResidualBlock(FIELD, "4x0e+2x1o+1x3o"),
    "residual down": lambda: SteerableResidualBlock(FIELD, FIELD, 2, 4),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_rotations_and_reflections(name):
    layer = shaken(LAYERS[name]())
    irreps_in = getattr(layer, "irreps_in", FIELD)
    assert_equivariant(layer, field(irreps_in), irreps_in, layer.irreps_out, TURNS, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["32", "64"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_commute_with_the_whole_cube_group(name, dtype, rtol):
    layer = shaken(LAYERS[name]()).to(dtype)
    irreps_in = getattr(layer, "irreps_in", FIELD)
    x = field(irreps_in).to(dtype)
    assert_equivariant(layer, x, irreps_in, layer.irreps_out, cube_rotations(reflections=True), rtol=rtol)


@pytest.mark.parametrize(
    "name", ["gate", "norm activation", "instance norm", "batch norm", "norm gate", "invariants"]
)
def test_pointwise_layers_take_q_space_fields(name):
    layer = shaken(LAYERS[name]())
    x = field(layer.irreps_in, 3, samples=3)
    assert_equivariant(layer, x, layer.irreps_in, layer.irreps_out, TURNS, rtol=1e-10)


def scaled_instance_norm() -> torch.nn.Module:
    norm = torch.nn.InstanceNorm3d(as_irreps(FIELD).dim, affine=True)
    return shaken(norm)


@pytest.mark.parametrize("make", [torch.nn.SiLU, scaled_instance_norm], ids=["silu", "instance norm"])
def test_ordinary_activation_and_norm_break_equivariance(make):
    layer, x = make(), field(FIELD) + 1.0
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(layer, x, FIELD, FIELD, rtol=1e-3)


@pytest.mark.parametrize(("size", "target"), [(4, 2), (6, 3), (5, 3), (7, 4)])
@pytest.mark.parametrize("samples", [None, 2], ids=["5-D", "6-D"])
def test_pooling_halves_any_size_equivariantly(size, target, samples):
    pool, x = EquivariantAvgPool3d(), field("1x0e+1x1o", size, samples)
    assert pool(x).shape[-3:] == (target,) * 3
    assert_equivariant(pool, x, "1x0e+1x1o", "1x0e+1x1o", TURNS, rtol=1e-10)


def test_pooling_of_mixed_parities_of_size_takes_each_axis_on_its_own():
    x = torch.randn(1, 1, 6, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = cube_rotations()[9]
    pool = EquivariantAvgPool3d()
    assert pool(x).shape[2:] == (3, 3, 2)
    assert_close(pool(act_on_field(turn, x, "1x0e")), act_on_field(turn, pool(x), "1x0e"))


def test_antialiased_pooling_suppresses_the_checkerboard_that_plain_striding_aliases():
    index = torch.arange(8)
    board = ((-1.0) ** (index[:, None, None] + index[:, None] + index)).view(1, 1, 8, 8, 8)
    assert EquivariantAvgPool3d()(board)[:, :, 1:-1, 1:-1, 1:-1].abs().max() < 1e-6
    assert board[:, :, ::2, ::2, ::2].abs().max() == 1.0


@pytest.mark.parametrize("size", [(8, 8, 8), (7, 7, 7)], ids=["even", "odd"])
def test_upsampling_is_equivariant(size):
    up = EquivariantUpsample3d()
    assert_equivariant(lambda x: up(x, size), field("1x0e+1x1o"), "1x0e+1x1o", "1x0e+1x1o", TURNS, rtol=1e-10)


def test_upsampling_undoes_the_sizes_of_pooling():
    x = field("1x0e", 4)[:, :, :, :, :3]
    pooled = EquivariantAvgPool3d()(x)
    assert EquivariantUpsample3d()(pooled, x.shape[2:]).shape == x.shape


def test_max_pooling_and_shifted_striding_are_not_equivariant():
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(lambda x: x[..., ::2, ::2, ::2], field("1x0e"), "1x0e", "1x0e", rtol=1e-3)
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(torch.nn.MaxPool3d(2), field("1x1o"), "1x1o", "1x1o", rtol=1e-3)


@pytest.mark.parametrize("odd", ["gate", "tanh"])
@pytest.mark.parametrize("samples", [None, 3], ids=["5-D", "6-D"])
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_norm_gate_is_the_norm_followed_by_the_gate(norm, samples, odd):
    fused = shaken(NormGate(Gate(FIELD, odd=odd), norm=norm))
    x = field(fused.irreps_in, 3, samples)
    mask = None if samples is None else torch.tensor([[True, False, True], [True] * 3])
    assert_close(fused(x, mask), fused.gate(fused.norm(x, mask)))


def test_block_fuses_norm_and_gate_without_a_change_of_output_or_names():
    block, x = shaken(SteerableBlock(3, "1x0e+1x1o", "2x0e+2x1o")), field("1x0e+1x1o")
    y = block(x)
    assert list(dict(block.named_children())) == ["conv", "norm", "act"]
    assert_close(y, block.act(block.norm(block.conv(x))))
    heard = []
    block.norm.register_forward_hook(lambda *args: heard.append(args[2]))
    assert_close(block(x), y)
    assert len(heard) == 1, "a hook between the two is called"


@pytest.mark.parametrize(
    "name", ["norm gate", "batch norm gate", "norm activation", "invariants", "block down"]
)
def test_gradients_are_right(name):
    layer = shaken(LAYERS[name]())
    x = field(getattr(layer, "irreps_in", FIELD), 2).requires_grad_()
    inputs = (x, *layer.parameters())
    assert torch.autograd.gradcheck(lambda v, *_: layer(v), inputs, fast_mode=True)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        SteerableBlock(3, "1x0e+1x1o", "2x0e+2x1o", norm="equivariant_batch"),
        EquivariantAvgPool3d(),
        SteerableResidualBlock("2x0e+2x1o", "2x0e+1x2e"),
        EquivariantUpsample3d(),
        NormActivation("2x0e+1x2e"),
        EquivariantDropout("2x0e+1x2e"),
        Invariants("2x0e+1x2e"),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["trace", "export", pytest.param("compile", marks=pytest.mark.slow)])
def test_a_network_of_blocks_can_be_captured_in_eval_mode(how):
    layers, x = network().eval(), field("1x0e+1x1o", dtype=torch.float32)
    with torch.no_grad():
        y = layers(x)
        if how == "trace":
            captured = torch.jit.trace(layers, x)
        elif how == "export":
            captured = torch.export.export(layers, (x,)).module()
        else:
            torch.compiler.reset()
            captured = torch.compile(layers, fullgraph=True, backend="aot_eager")
        assert_close(captured(x), y)


@pytest.mark.parametrize("norm", [EquivariantInstanceNorm, EquivariantBatchNorm])
def test_norms_give_zero_mean_scalars_and_unit_mean_square(norm):
    y = norm("2x0e+2x1o").double()(5 * field("2x0e+2x1o") + 3)
    axes = (0, 2, 3, 4) if norm is EquivariantBatchNorm else (2, 3, 4)
    assert_close(y[:, :2].mean(axes), torch.zeros_like(y[:, :2].mean(axes)), atol=1e-6, rtol=0)
    power = y[:, 2:5].square().mean(1).mean([a - 1 for a in axes if a > 1] + ([0] if 0 in axes else []))
    assert_close(power, torch.ones_like(power), atol=1e-3, rtol=0)


def test_scalar_part_of_the_instance_norm_is_torchs():
    x = field("3x0e")
    assert_close(EquivariantInstanceNorm("3x0e").double()(x), torch.nn.functional.instance_norm(x))


def test_batch_norm_uses_running_moments_in_eval_mode():
    norm = EquivariantBatchNorm("1x0e+1x1o", momentum=1.0).double()
    x = 2 * field("1x0e+1x1o") + 1
    y = norm(x)
    assert_close(norm.eval()(x), y)
    assert_close(norm(x[:1]), y[:1])


@pytest.mark.parametrize("norm", [EquivariantInstanceNorm, EquivariantBatchNorm])
def test_masked_samples_do_not_count_in_norms(norm):
    x = field("2x0e+1x1o", 3, samples=4)
    layer = norm("2x0e+1x1o").double()
    mask = torch.tensor([[True, True, True, False]] * 2)
    spoilt = x.clone()
    spoilt[:, :, 3] = 1e6
    assert_close(layer(spoilt, mask)[:, :, :3], layer(x[:, :, :3]))


def moments_of_rank(rank: int, x: torch.Tensor, path: str) -> None:
    torch.set_num_threads(1)  # a forked process has no OpenMP threads to wait for
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    distributed.init_process_group("gloo", init_method=f"file://{path}.store", rank=rank, world_size=2)
    norm = EquivariantBatchNorm("1x0e+1x1o").double()
    part = x[rank : rank + 1].clone().requires_grad_()
    y = norm(part)
    (y**3).sum().backward()
    torch.save((y.detach(), part.grad, norm.running_power), f"{path}.{rank}")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch is built without distributed")
def test_batch_norm_synchronises_its_moments_between_ranks(tmp_path):
    x = field("1x0e+1x1o", 3) * torch.tensor([1.0, 5.0], dtype=torch.float64).view(2, 1, 1, 1, 1)
    mp.start_processes(moments_of_rank, (x, str(tmp_path / "rank")), nprocs=2, start_method="fork")
    whole, alone = x.clone().requires_grad_(), EquivariantBatchNorm("1x0e+1x1o").double()
    y = alone(whole)
    (y**3).sum().backward()
    for rank in range(2):
        output, gradient, power = torch.load(tmp_path / f"rank.{rank}")
        assert_close(output, y[rank : rank + 1].detach())
        assert_close(gradient, whole.grad[rank : rank + 1])
        assert_close(power, alone.running_power)


def test_dropout_drops_whole_channels_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = EquivariantDropout("50x0e+50x1o", p=0.4)
    y = drop(torch.ones(20, 200, 2, 2, 2))
    vectors = y[:, 50:].unflatten(1, (50, 3)).flatten(2)
    assert ((vectors == 0).all(-1) | (vectors != 0).all(-1)).all()
    assert abs(y.mean() - 1) < 0.05
    assert_close(drop.eval()(y), y)


def test_dropout_commutes_with_rotations_for_the_same_draw():
    drop = EquivariantDropout(FIELD, p=0.5)

    def seeded(x):
        torch.manual_seed(3)
        return drop(x)

    assert_equivariant(seeded, field(FIELD), FIELD, FIELD, TURNS, rtol=1e-10)


def test_bridge_to_a_pointwise_layer_is_invariant_and_a_plain_kernel_breaks_it():
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(
        SteerableConv3d("1x0e+1x1o", "2x0e+2x1o"), Invariants("2x0e+2x1o"), torch.nn.SiLU()
    )
    hybrid = torch.nn.Sequential(trunk, torch.nn.Conv3d(4, 2, 1)).double()
    assert_equivariant(hybrid, field("1x0e+1x1o"), "1x0e+1x1o", "2x0e", TURNS, rtol=1e-10)
    broken = torch.nn.Sequential(trunk, torch.nn.Conv3d(4, 2, 3, padding=1)).double()
    with pytest.raises(AssertionError, match="relative error"):
        assert_equivariant(broken, field("1x0e+1x1o"), "1x0e+1x1o", "2x0e", TURNS, rtol=1e-3)


def test_q_mean_ignores_masked_samples():
    x = field("1x0e+1x1o", 3, samples=4)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    y = QMean()(x, mask)
    assert_close(y[0], x[0, :, :2].mean(1))
    assert_close(y[1], x[1].mean(1))


def test_length_weighted_mean_starts_near_the_mean_and_sees_only_lengths():
    layer = QLengthWeightedMean("1x0e+1x1o").double()
    x = field("1x0e+1x1o", 3, samples=4)
    q = torch.nn.functional.normalize(torch.randn(4, 3, dtype=torch.float64), dim=1)
    assert_close(layer(x, q), x.mean(2), atol=0.1, rtol=0.1)
    torch.nn.init.normal_(layer.weight)
    assert_close(layer(x, -q), layer(x, q))
    padded = torch.cat([x, torch.full_like(x[:, :, :1], float("nan"))], 2)
    mask = torch.tensor([[True] * 4 + [False]] * 2)
    assert_close(layer(padded, torch.cat([q, q[:1]]), mask), layer(x, q))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Gate("1x0o", odd="silu"), "silu"),
        (lambda: Gate("1x0e", activation="swoosh"), "swoosh"),
        (lambda: Gate("1x0e+1x1o")(torch.zeros(1, 4, 2, 2, 2)), "4 channels.*need 5"),
        (lambda: EquivariantInstanceNorm("1x0e")(torch.zeros(1, 2, 2, 2, 2)), "2 channels.*need 1"),
        (lambda: EquivariantInstanceNorm("1x0e")(torch.zeros(1, 1, 2, 2, 2), torch.ones(1, 3)), "mask"),
        (lambda: EquivariantDropout("1x0e", p=1.0), "1.0"),
        (lambda: EquivariantAvgPool3d(3), "kernel_size 3"),
        (lambda: EquivariantAvgPool3d(antialias=False)(torch.zeros(1, 1, 4, 4, 5)), r"\[4, 4, 5\]"),
        (
            lambda: EquivariantUpsample3d()(torch.zeros(1, 1, 4, 4, 4), (8, 8, 9)),
            "size 4 can become 8 or 7, not 9",
        ),
        (lambda: SteerableBlock(2, "1x0e", "1x0e"), "spatial_dims must be 3, got 2"),
        (lambda: SteerableBlock(3, "1x0e", "1x0e", act="prelu"), "prelu"),
        (lambda: SteerableBlock(3, "1x0e", "1x0e", adn_ordering="NNA"), "NNA"),
        (lambda: SteerableBlock(3, "1x0e", "1x0e", output_padding=1), "output_padding 1"),
        (lambda: QMean()(torch.zeros(1, 1, 2, 2, 2)), "5 axes"),
        (lambda: QLengthWeightedMean("1x0e")(torch.zeros(1, 1, 4, 2, 2, 2), torch.zeros(3, 3)), "4 samples"),
    ],
    ids=lambda value: "" if callable(value) else value,
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "layer",
    [EquivariantBatchNorm, EquivariantInstanceNorm, EquivariantDropout, Gate, NormActivation, Invariants],
)
def test_options_are_taken_by_name_only(layer):
    """e3nn's third argument is the momentum: taken by position, 0.3 would switch `affine` on."""
    layer("2x0e+1x1o")
    with pytest.raises(TypeError, match="positional"):
        layer("2x0e+1x1o", 0.5)
    with pytest.raises(TypeError, match="positional"):
        layer("2x0e+1x1o", 1e-5, 0.3)


def test_norm_gate_takes_its_options_by_name_only():
    with pytest.raises(TypeError, match="positional"):
        NormGate(Gate("2x0e+1x1o"), "instance", 0.3)


def test_norm_gate_carries_nothing_from_vectors_to_scalars():
    layer = NormGate(Gate("2x0e+1x1o"))
    x = torch.randn(1, layer.irreps_in.dim, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[:, 2:5] = other[:, 2:5].flip(2)
    assert_close(layer(other)[:, :2], layer(x)[:, :2])
    assert (layer(other)[:, 2:] - layer(x)[:, 2:]).abs().max() > 0.1
