"""PSNR and SSIM inside a mask, against MONAI's and analytic values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.metrics import PSNRMetric, SSIMMetric

from dmri_monai.metrics import MaskedPSNR, MaskedSSIM

GENERATOR = torch.Generator().manual_seed(0)
TRUE = torch.rand(2, 3, 14, 15, 16, generator=GENERATOR)
PRED = TRUE + 0.1 * torch.randn(TRUE.shape, generator=GENERATOR)


def ball() -> torch.Tensor:
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - n / 2 for n in TRUE.shape[2:]), indexing="ij"))
    return (grid.norm(dim=0) < 5).expand(2, 1, -1, -1, -1)


def test_psnr_of_the_whole_volume_is_that_of_monai():
    torch.testing.assert_close(
        MaskedPSNR(2.0)(PRED, TRUE), PSNRMetric(2.0)(PRED, TRUE).double(), rtol=1e-5, atol=0
    )


def test_psnr_of_a_constant_error_is_known():
    row = MaskedPSNR(data_range=1.0)(TRUE + 0.01, TRUE)
    np.testing.assert_allclose(row.numpy(), 40.0, rtol=1e-4)


def test_psnr_takes_the_range_inside_the_mask():
    true, mask = TRUE.clone(), ball()
    true[..., 0] = 1000.0
    inside = true.permute(1, 0, 2, 3, 4)[:, mask[:, 0]].view(3, 2, -1).transpose(0, 1).flatten(1).double()
    span = inside.amax(1) - inside.amin(1)
    row = MaskedPSNR()(true + 0.01, true, mask=mask)
    np.testing.assert_allclose(row[:, 0].numpy(), 20 * np.log10(span.numpy() / 0.01), rtol=1e-3)


@pytest.mark.parametrize("metric", [MaskedPSNR(1.0), MaskedSSIM(1.0)], ids=["psnr", "ssim"])
def test_what_lies_far_outside_the_mask_does_not_count(metric):
    far, mask = PRED.clone(), ball()
    far[..., 0] += 100.0  # 4 voxels from the ball: beyond half a window
    torch.testing.assert_close(metric(far, TRUE, mask=mask), metric(PRED, TRUE, mask=mask))
    assert (metric(far, TRUE) - metric(PRED, TRUE)).abs().min() > 0.01  # the control


def test_ssim_of_the_whole_volume_is_that_of_monai():
    expected = SSIMMetric(3, data_range=1.0, win_size=7)(PRED, TRUE)
    torch.testing.assert_close(MaskedSSIM(1.0)(PRED, TRUE), expected.double(), rtol=1e-5, atol=0)


def test_ssim_in_a_mask_is_the_mean_of_the_map_there():
    expected = []
    for x, y, z in torch.nonzero(ball()[0, 0]).tolist():
        if min(x, y, z) >= 3 and x < 11 and y < 12 and z < 13:
            part = (slice(None), slice(None), slice(x - 3, x + 4), slice(y - 3, y + 4), slice(z - 3, z + 4))
            expected.append(SSIMMetric(3, data_range=1.0, win_size=7)(PRED[part], TRUE[part]))
    torch.testing.assert_close(
        MaskedSSIM(1.0)(PRED, TRUE, mask=ball()), torch.stack(expected).double().mean(0), rtol=1e-5, atol=0
    )


def test_ssim_of_two_constants_is_known():
    a, b, c1 = 0.4, 0.6, 0.01**2
    row = MaskedSSIM(1.0)(torch.full((1, 1, 9, 9, 9), a), torch.full((1, 1, 9, 9, 9), b))
    np.testing.assert_allclose(
        row.item(), (2 * a * b + c1) / (a * a + b * b + c1), rtol=1e-3
    )  # float32 variances


def test_equal_images_are_perfect():
    assert math.isinf(MaskedPSNR()(TRUE, TRUE)[0, 0].item())
    np.testing.assert_allclose(MaskedSSIM()(TRUE, TRUE).numpy(), 1.0, rtol=1e-6)


@pytest.mark.parametrize("metric", [MaskedPSNR(), MaskedSSIM()], ids=["psnr", "ssim"])
def test_an_empty_mask_gives_nan(metric):
    assert metric(PRED, TRUE, mask=torch.zeros(2, 1, 14, 15, 16)).isnan().all()


def test_a_mask_at_the_border_alone_has_no_ssim():
    mask = torch.zeros(2, 1, 14, 15, 16)
    mask[:, :, 0] = 1
    assert MaskedSSIM()(PRED, TRUE, mask=mask).isnan().all()


def test_images_of_other_shape_raise_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(3, 14, 15, 16\), target \(3, 14, 15, 15\)"):
        MaskedPSNR()(PRED, TRUE[..., 1:])
