"""Recognise what scanners append to a diffusion series: the trace image and the map of apparent diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from dmri_monai.check.levels import looks_like_adc, measure_levels

__all__ = ["recognise"]

TRACE_SPREAD = 0.12  # median deviation, natural logarithm, from the mean of the directions, up to one factor
LIKE_TRACE = 1.5  # a trace lies within this factor of the mean of the directions


def recognise(volume: Tensor, b0: Tensor, weighted: Tensor) -> str | None:
    """What `volume` (X, Y, Z) is of a series with `b0` (K, X, Y, Z) and `weighted` (M, X, Y, Z) signal.

    "trace" where it is the mean of the directions but for one factor near 1; "ADC" where it ranks tissue as the
    diffusivity computed from the series does; "empty" without signal; None for anything else, a further
    measurement above all.
    """
    if float(volume.amax()) == float(volume.amin()):
        return "empty"
    sample = measure_levels(torch.cat([volume[None], b0, weighted])).sample.log()
    extra, start, directions = sample[0], sample[1 : 1 + len(b0)].mean(0), sample[1 + len(b0) :]
    single = _spread(directions - directions.exp().mean(0).log())  # how far one direction is from the mean
    off = extra - directions.exp().mean(0).log()
    if _spread(off) < min(TRACE_SPREAD, 0.7 * single) and off.median().exp().log2().abs() < LIKE_TRACE - 1:
        return "trace"
    return "ADC" if looks_like_adc(extra, start, directions.mean(0)) else None


def _spread(values: Tensor) -> float:
    """Median deviation over tissue, of (..., M) values; the median of several."""
    deviation = (values - values.median(dim=-1, keepdim=True).values).abs().median(dim=-1).values
    return float(deviation.median())
