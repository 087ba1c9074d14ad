"""Recognise what scanners derive from a diffusion series and put into it: the trace image, the map of diffusivity."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmri_monai.check.levels import measure_levels

__all__ = ["looks_like_adc", "looks_like_same", "looks_like_trace", "recognise"]

# How far a volume is from the middle of the directions, up to a factor, beside how far single directions are. In 13
# real scans: b0 at least 1.13 times as far, one more direction 0.85, the trace at most 0.1 times.
TRACE_LIKE = 0.5
MAX_FACTOR = (
    1.5  # between a trace and the middle of the directions: b0 of homogeneous tissue differs by a factor only
)
MIN_DIRECTIONS = 4  # the middle of fewer is close to each of them
# Correlations of ranks in the same scans: b0 with the diffusivity 0.45 to 0.65, with a shell 0.19 to 0.61; ADC maps
# with the diffusivity 0.96 and more, with a shell -0.16 and less.
ADC_LIKE, ADC_UNLIKE = 0.85, 0.05
SAME = 0.95  # correlation of ranks of two volumes of one b-value; that of the b0 of 17 simulated heads is 0.95 to 0.996


def recognise(volume: Tensor, b0: Tensor, weighted: Tensor) -> str | None:
    """What `volume` (X, Y, Z) is of a series with `b0` (K, X, Y, Z) and `weighted` (M, X, Y, Z) signal.

    "trace", "ADC", "empty" without signal, or None for anything else, a further measurement above all.
    """
    if float(volume.amax()) == float(volume.amin()):
        return "empty"
    sample = measure_levels(torch.cat([volume[None], b0, weighted])).sample.log()
    extra, start, directions = sample[0], sample[1 : 1 + len(b0)].mean(0), sample[1 + len(b0) :]
    if looks_like_trace(extra, directions):
        return "trace"
    return "ADC" if looks_like_adc(extra, start, directions) else None


def looks_like_trace(volume: Tensor, directions: Tensor) -> bool:
    """Whether log signal `volume` (M,) is the middle of log `directions` (N, M) but for a factor near 1."""
    if len(directions) < MIN_DIRECTIONS:
        return False
    middle = directions.mean(dim=0)
    near = abs(float((volume - middle).median())) < math.log(MAX_FACTOR)
    return near and _spread(volume - middle) < TRACE_LIKE * _spread(directions - middle)


def looks_like_adc(volume: Tensor, b0: Tensor, directions: Tensor) -> bool:
    """Whether log signal `volume` (M,) ranks tissue as the diffusivity does that log `b0` (M,) and `directions` give.

    A b0 does so too, a little, because fluid is bright in both; but it ranks tissue as the weighted signal does
    as well, and a map of diffusivity ranks it the other way round.
    """
    middle = directions.mean(dim=0)
    return (
        _rank_correlation(volume, b0 - middle) > ADC_LIKE and _rank_correlation(volume, middle) < -ADC_UNLIKE
    )


def looks_like_same(first: Tensor, second: Tensor) -> bool:
    """Whether two volumes (M,), logarithms, are of one level and rank tissue in the same way."""
    near = abs(float((first - second).median())) < math.log(MAX_FACTOR)
    return near and _rank_correlation(first, second) > SAME


def _spread(values: Tensor) -> float:
    """Median deviation over tissue, of (..., M) values; the median of several."""
    deviation = (values - values.median(dim=-1, keepdim=True).values).abs().median(dim=-1).values
    return float(deviation.median())


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Correlation of the ranks of two (M,)."""
    ranks = torch.stack([v.argsort().argsort().double() for v in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1]) if len(first) > 1 else 0.0
