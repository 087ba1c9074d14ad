"""The layers on a GPU: the same numbers as on the CPU, in every precision, and equivariant there too."""

import io

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.equivariant import (
    Concat,
    Gate,
    NormGate,
    PQConv3d,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QLengthWeightedMean,
    SteerableConv3d,
    SteerableResidualBlock,
    Sum,
)
from dmri_monai.testing import act_on_field, assert_equivariant, cube_rotations

pytestmark = pytest.mark.gpu

FIELD_IN, FIELD_OUT = "2x0e+1x1o", "2x0e+1x1o+1x2e"
KERNELS = {
    "TP": PQTensorProduct(),
    "PQDiff": PQDiff(),
    "Sum": Sum(PQDiff(), PSpace()),
    "Concat": Concat((PQTensorProduct(), "1x0e+1x2e"), (PSpace(), "1x0e+1x1o")),
}


@pytest.fixture(autouse=True)
def _full_float32():
    """Convolutions on a GPU round float32 to TF32 unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


Q = normalize(drawn(6, 3), dim=1)


def pq(kernel, **options) -> PQConv3d:
    torch.manual_seed(0)
    return PQConv3d(FIELD_IN, FIELD_OUT, 3, kernel, **options)


def agree(layer, *args, atol=1e-4, rtol=1e-4):
    """Outputs and gradients of one layer on both devices."""
    results = []
    for device in ("cpu", "cuda"):
        moved = layer.to(device)
        x = args[0].detach().to(device).requires_grad_()
        y = moved(x, *(a.to(device) for a in args[1:]))
        y.square().mean().backward()
        results.append([t.detach().cpu() for t in (y, x.grad, *(p.grad for p in moved.parameters()))])
        moved.zero_grad()
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert_close(on_gpu, on_cpu, atol=atol, rtol=rtol)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": 2, "transposed": True}], ids=str)
def test_steerable_convolution_agrees_with_the_cpu(options):
    torch.manual_seed(0)
    agree(SteerableConv3d(FIELD_IN, FIELD_OUT, **options), drawn(2, 5, 7, 7, 7))


@pytest.mark.parametrize("strategy", ["auto", "p_basis", "p_last", "dense", "spectral"])
@pytest.mark.parametrize("name", KERNELS)
def test_pq_convolution_agrees_with_the_cpu(name, strategy):
    agree(pq(KERNELS[name], strategy=strategy), drawn(2, 5, 6, 5, 5, 5), Q)


def test_blocks_agree_with_the_cpu():
    torch.manual_seed(0)
    agree(SteerableResidualBlock(FIELD_IN, FIELD_OUT, norm="equivariant_batch"), drawn(2, 5, 6, 6, 6))
    gate = Gate(FIELD_IN)
    agree(NormGate(gate), drawn(2, gate.irreps_in.dim, 6, 4, 4, 4))
    agree(QLengthWeightedMean(FIELD_IN), drawn(2, 5, 6, 4, 4, 4), Q)


@pytest.mark.parametrize("name", KERNELS)
def test_pq_convolution_is_equivariant_on_the_gpu(name):
    layer = pq(KERNELS[name]).cuda()

    def turn(R, args):
        return act_on_field(R, args[0], FIELD_IN), args[1] @ R.T.to(args[1])

    args = (drawn(1, 5, 6, 4, 4, 4).cuda(), Q.cuda())
    assert_equivariant(lambda a: layer(*a), args, turn, FIELD_OUT, cube_rotations(reflections=True)[1::4])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("name", KERNELS)
def test_autocast_stays_near_float32(name, dtype):
    layer, x = pq(KERNELS[name]).cuda(), drawn(1, 5, 6, 5, 5, 5).cuda()
    y = layer(x, Q.cuda())
    with torch.autocast("cuda", dtype=dtype):
        half = layer(x, Q.cuda())
    half.float().square().mean().backward()
    assert half.dtype == dtype
    assert ((half.float() - y).norm() / y.norm()).item() < 0.02
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


def test_state_dicts_and_kept_kernels_move_between_devices():
    layer, x = pq(KERNELS["Sum"]).eval(), drawn(1, 5, 6, 4, 4, 4)
    with torch.no_grad():
        y = layer(x, Q)
        assert_close(layer.cuda()(x.cuda(), Q.cuda()).cpu(), y, atol=1e-4, rtol=1e-4)
        buffer = io.BytesIO()
        torch.save(layer.state_dict(), buffer)
        buffer.seek(0)
        fresh = PQConv3d(FIELD_IN, FIELD_OUT, 3, KERNELS["Sum"]).eval()
        fresh.load_state_dict(torch.load(buffer, map_location="cpu"))
        assert_close(fresh(x, Q), y, atol=1e-4, rtol=1e-4)


def test_steerable_convolution_takes_no_more_memory_than_its_dense_copy():
    torch.manual_seed(0)
    layer = SteerableConv3d("8x0e+4x1o", "8x0e+4x1o").cuda()
    x = drawn(1, 20, 32, 32, 32).cuda().requires_grad_()
    peaks = []
    for module in (layer.to_dense(), layer, layer.to_dense(), layer):  # the first pair warms up
        torch.cuda.reset_peak_memory_stats()
        module(x).sum().backward()
        x.grad = None
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[3] <= 1.1 * peaks[2]


def test_data_that_are_not_finite_are_named_on_the_gpu():
    x = drawn(1, 5, 4, 4, 4).cuda()
    x[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 320 values"):
        SteerableConv3d(FIELD_IN, FIELD_OUT).cuda()(x)
