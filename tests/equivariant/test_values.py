"""What layers do with data at the edge of sense: not finite, empty, half precision, wrong in type or size."""

import pytest
import torch
from torch.nn.functional import normalize
from torch.testing import assert_close

from dmri_monai.equivariant import (
    Concat,
    Invariants,
    NormActivation,
    PQConv3d,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QLengthWeightedMean,
    QMean,
    SteerableConv3d,
    Sum,
)

NAN = float("nan")
Q = normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
KERNELS = {
    "TP": PQTensorProduct(),
    "PQDiff": PQDiff(),
    "PSpace": PSpace(),
    "Sum": Sum(PQDiff(), PSpace()),
    "Concat": Concat((PQTensorProduct(), "1x0e"), (PSpace(), "1x1o")),
}


def pq(kernel=None, **options) -> PQConv3d:
    torch.manual_seed(0)
    return PQConv3d("1x0e", "1x0e+1x1o", 3, kernel, **options)


def samples(batch=2) -> torch.Tensor:
    return torch.randn(batch, 1, 5, 3, 3, 3, generator=torch.Generator().manual_seed(1))


def spoilt(x: torch.Tensor, value=NAN) -> torch.Tensor:
    x = x.clone()
    x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_data_that_are_not_finite_are_named_with_both_numbers(value, training):
    with pytest.raises(ValueError, match="SteerableConv3d: 4 of 64 values of the input are not finite"):
        SteerableConv3d("1x0e", "1x0e").train(training)(spoilt(torch.ones(1, 1, 4, 4, 4), value))
    with pytest.raises(ValueError, match="PQConv3d: 9 of 270 values of the input are not finite"):
        pq().train(training)(spoilt(samples(), value), Q)


def test_masked_samples_may_be_anything():
    mask = torch.tensor([[False, True, True, True, True]] * 2)
    x = samples()
    x[:, :, 0] = NAN
    assert pq()(x, Q, mask_in=mask).isfinite().all()
    x[1, :, 3] = NAN
    with pytest.raises(ValueError, match="27 of 270 values"):
        pq()(x, Q, mask_in=mask)


def test_sums_that_overflow_are_not_mistaken_for_data_that_are_not_finite():
    assert SteerableConv3d("1x0e", "1x0e", 1)(torch.full((1, 1, 3, 3, 3), 3e38)).shape == (1, 1, 3, 3, 3)


def test_activations_of_a_training_step_are_not_looked_at():
    first, second = SteerableConv3d("1x0e", "1x0e"), SteerableConv3d("1x0e", "1x0e")
    overflow = first(torch.ones(1, 1, 4, 4, 4)) * float("inf")
    assert not second(overflow).isfinite().all()


def test_vmap_maps_over_the_layers():
    layer = SteerableConv3d("1x0e", "1x1o")
    x = torch.randn(3, 2, 1, 4, 4, 4)
    assert_close(torch.vmap(layer)(x), layer(x.flatten(0, 1)).unflatten(0, (3, 2)))


@pytest.mark.parametrize("q", [Q, Q.expand(0, -1, -1)], ids=["one table", "table per item"])
@pytest.mark.parametrize("name", KERNELS)
def test_an_empty_batch_gives_an_empty_batch(name, q):
    assert pq(KERNELS[name])(samples(0), q).shape == (0, 4, 5, 3, 3, 3)


@pytest.mark.parametrize("name", KERNELS)
def test_one_sample_is_enough(name):
    y = pq(KERNELS[name])(samples()[:, :, :1], Q[:1])
    assert y.shape == (2, 4, 1, 3, 3, 3)
    assert y.isfinite().all()


@pytest.mark.parametrize("name", KERNELS)
def test_an_item_without_valid_samples_gives_the_bias_and_finite_gradients(name):
    layer, x = pq(KERNELS[name]), samples().requires_grad_()
    torch.nn.init.constant_(layer.bias, 2.0)
    mask = torch.tensor([[False] * 5, [True] * 5])
    y = layer(x, Q, Q, mask, torch.ones_like(mask))
    assert_close(y[0, :1], torch.full_like(y[0, :1], 2.0))
    assert (y[0, 1:] == 0).all()
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in (x, *layer.parameters()))


@pytest.mark.parametrize("name", KERNELS)
def test_one_table_with_a_batch_axis_serves_all_items(name):
    layer = pq(KERNELS[name])
    assert_close(layer(samples(), Q.unsqueeze(0)), layer(samples(), Q))


@pytest.mark.parametrize("name", ["TP", "PQDiff"])
def test_without_q_space_a_layer_is_a_kernel_on_voxels(name):
    layer = pq(KERNELS[name], q_in=False, q_out=False)
    assert layer(samples()[:, :, 0]).shape == (2, 4, 3, 3, 3)


@pytest.mark.parametrize("make", [Invariants, NormActivation], ids=["invariants", "norm activation"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_zero_vectors_have_finite_gradients_in_half_precision(make, dtype):
    x = torch.zeros(1, 3, 2, 2, 2, dtype=dtype, requires_grad=True)
    make("1x1o").to(dtype)(x).sum().backward()
    assert x.grad.isfinite().all()


ONES = torch.ones(2, 5)
FIELD = torch.zeros(2, 1, 5, 2, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pq()(samples(), Q[:0]), ValueError, "q_in has 0 q-vectors"),
        (lambda: pq()(samples(), Q, Q[:0]), ValueError, "q_out has 0 q-vectors"),
        (lambda: pq()(samples(), Q, mask_in=ONES), TypeError, "mask of q_in must be bool, got torch.float32"),
        (lambda: pq(q_in=False)(samples()[:, :, 0], Q, Q), ValueError, "q_in: this layer has no q-space"),
        (lambda: pq(q_in=False)(samples()[:, :, 0]), ValueError, "q_out: q-vectors.*got None"),
        (lambda: pq(padding=-1), ValueError, "padding must be at least 0, got -1"),
        (lambda: SteerableConv3d("1x0e", "1x0e", 3.0), TypeError, "kernel_size must be an int.*3.0"),
        (lambda: SteerableConv3d("1x0e", "1x0e", groups=0), ValueError, "groups must be at least 1, got 0"),
        (lambda: SteerableConv3d("", "1x0e"), ValueError, "irreps '' have 0 channels"),
        (lambda: SteerableConv3d("1x0e", ""), ValueError, "irreps '' have 0 channels"),
        (lambda: QMean()(FIELD, ONES), TypeError, "mask must be bool, got torch.float32"),
        (lambda: QMean()(FIELD[:, :, :0]), ValueError, "0 samples"),
        (lambda: QMean()(FIELD, ONES[:, :4] > 0), ValueError, r"mask is \(2, 4\), expected \(2, 5\)"),
        (lambda: QLengthWeightedMean("1x0e")(FIELD, Q * NAN), ValueError, "5 of 5 q-vectors are not finite"),
        (lambda: QLengthWeightedMean("1x0e")(FIELD, Q.expand(3, -1, -1)), ValueError, "3 tables.*batch of 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_sense_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
