"""Does every volume have the signal that its b-value says?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmri_monai.check.derived import looks_like_adc, looks_like_same, looks_like_trace
from dmri_monai.check.finding import Finding
from dmri_monai.check.image_state import listed
from dmri_monai.check.levels import Levels, measure_levels
from dmri_monai.check.measured import Measured
from dmri_monai.gradients import GradientTable, Shell

__all__ = ["judge_bvalues"]

# Differences are of natural logarithms. In 13 real scans the volumes of a shell lie within 0.11 of its median and b0
# at 0.84 to 1.48 above the shell (b = 1000 to 2000), with at most 0.013 of b0's tissue darker than the shell.
MAX_OFF = 0.3
MIN_ATTENUATION = 0.15e-3  # mm2/s: tissue attenuates at least this much, ex vivo too
ATTENUATED = 0.15  # shells that should be darker than b0 by at least this tell whether a volume is one
DARKER_SHARE = 0.15  # of b0's tissue may be darker than a shell, by DARKER
DARKER = 0.1
MAX_VOLUMES = 64  # of a shell, for its mean
RISE = 0.05  # a shell may be brighter than one of lower b by this: both are noise
B_APART = 300.0  # s/mm2


def judge_bvalues(scan: Measured) -> list[Finding]:
    """Findings of the stage "b-values"; the scan's volumes are finite and none is empty."""
    table, levels = scan.table, measure_levels(scan.signal)
    shells = table.shells()
    found = _b0_range(table)
    if not shells:
        return found + _unlike(torch.nonzero(table.b0_mask).flatten(), levels, "b0")
    dark = _dark_b0(table, levels, shells)
    off = {i: d for s in shells for i, d in _outliers(s.indices, levels).items()}
    bright = [i for i, d in off.items() if d > 0]
    b0 = torch.nonzero(table.b0_mask).flatten()
    if dark and _stand_for_b0(bright, levels, table, shells, dark):
        found.append(_other_order(dark, bright, table))
    elif dark and len(dark) == len(b0):
        found.append(_not_brightest(dark, levels, shells))
    elif dark:
        message = f"{listed(dark)} labelled b0, but unlike b0: probably the scanner's trace or ADC"
        found.append(Finding("derived-volume", message, tuple(dark)))
    else:
        found += _unlike(b0, levels, "b0")
    if found and found[-1].code == "volume-order":
        return found
    for shell in shells:
        found += _unlike(shell.indices, levels, f"b = {shell.bval:.0f}")
    return found or _rising(levels, shells)


def _b0_range(table: GradientTable) -> list[Finding]:
    b0 = table.bvals[table.b0_mask]
    if not len(b0):
        lowest = float(table.bvals.min())
        message = f"no b0 volume: the lowest b-value is {lowest:g} s/mm2, b0 ends at {table.b0_threshold:g}"
        return [Finding("no-b0", message)]
    low, high = float(b0.min()), float(b0.max())
    if high > low:
        threshold = f"threshold {table.b0_threshold:g}"
        message = f"{len(b0)} volumes with b from {low:g} to {high:g} s/mm2 count as b0 ({threshold})"
        return [Finding("b0-range", message)]
    return []


def _dark_b0(table: GradientTable, levels: Levels, shells: tuple[Shell, ...]) -> list[int]:
    """Volumes labelled b0 that are none: outshone by a shell, as a whole or in places, or derived."""
    telling = [s for s in shells if s.bval * MIN_ATTENUATION >= ATTENUATED] or list(shells[-1:])
    members = [levels.sample[s.indices[:MAX_VOLUMES]].log() for s in telling]
    b0 = torch.nonzero(table.b0_mask).flatten().tolist()
    sample = levels.sample[b0].log()
    dark = []
    for row, i in enumerate(b0):
        others = torch.cat([sample[:row], sample[row + 1 :]]) if len(b0) > 1 else sample
        start = others.median(dim=0).values
        outshone = (
            _outshone(sample[row] - directions.median(dim=0).values, shell.bval)
            for directions, shell in zip(members, telling, strict=True)
        )
        is_map = looks_like_adc(sample[row], start, members[-1])
        if len(b0) > 1 and looks_like_same(sample[row], start):
            is_map = False  # b0 may rank tissue as the diffusivity does; it is no map where the other b0 are the same
        if (
            is_map
            or any(looks_like_trace(sample[row], directions) for directions in members)
            or any(outshone)
        ):
            dark.append(i)
    return dark


def _outshone(ratio: Tensor, bval: float) -> bool:
    """Whether a volume with `ratio` (M,) to a shell, natural logarithm, is darker than a b0 would be."""
    least = min(bval * MIN_ATTENUATION, ATTENUATED)
    return float(ratio.median()) < least or float((ratio < -DARKER).float().mean()) > DARKER_SHARE


def _outliers(indices: Tensor, levels: Levels) -> dict[int, float]:
    """Volumes of one b-value that are off its median level, and by how much (natural logarithm)."""
    if len(indices) < 3:
        return {}
    off = levels.log[indices] - levels.log[indices].median()
    return {int(i): float(d) for i, d in zip(indices, off, strict=True) if abs(d) > MAX_OFF}


def _unlike(indices: Tensor, levels: Levels, name: str) -> list[Finding]:
    off = _outliers(indices, levels)
    if off:
        worst = max(off, key=lambda i: abs(off[i]))
        message = (
            f"{listed(sorted(off))} of {len(indices)} at {name}: level unlike the others', "
            f"{math.exp(off[worst]):.2f} times their median in volume {worst}"
        )
        return [Finding("volume-level", message, tuple(sorted(off)))]
    if len(indices) == 2:
        first, second = indices.tolist()
        ratio = math.exp(float((levels.log[second] - levels.log[first]).abs()))
        if ratio > math.exp(MAX_OFF):
            message = (
                f"volumes {first}, {second}, both {name}: their levels differ by a factor of {ratio:.2f}"
            )
            return [Finding("volume-level", message, (first, second))]
    return []


def _stand_for_b0(
    bright: list[int], levels: Levels, table: GradientTable, shells: tuple[Shell, ...], dark: list[int]
) -> bool:
    """Whether some volumes of the shells are as bright as b0 should be, in the place of those that are dark."""
    if not bright:
        return False
    true_b0 = [i for i in torch.nonzero(table.b0_mask).flatten().tolist() if i not in dark]
    if not true_b0:
        return True
    level = float(levels.log[true_b0].median())
    return any(abs(float(levels.log[i]) - level) < MAX_OFF for i in bright)


def _other_order(dark: list[int], bright: list[int], table: GradientTable) -> Finding:
    message = (
        f"volumes in another order than the table: {listed(dark)} (b0 in the table) dark as a shell, "
        f"{listed(bright)} bright as b0"
    )
    where = torch.nonzero(table.b0_mask).flatten().tolist()
    actual = sorted({*where} - {*dark} | {*bright})
    if len(actual) == len(where):
        if actual == sorted(len(table) - 1 - i for i in where):
            message += "; the order of the table reversed would fit"
        else:
            shifts = [
                k for k in range(1, len(table)) if sorted((i + k) % len(table) for i in where) == actual
            ]
            if len(shifts) == 1:
                message += f"; the table moved on by {shifts[0]} would fit"
    return Finding("volume-order", message, tuple(sorted(dark + bright)))


def _not_brightest(dark: list[int], levels: Levels, shells: tuple[Shell, ...]) -> Finding:
    brightest = max(shells, key=lambda s: float(levels.log[s.indices].median()))
    ratio = math.exp(float(levels.log[dark].median() - levels.log[brightest.indices].median()))
    message = f"b0 is not the brightest everywhere: {ratio:.2f} times the level at b = {brightest.bval:.0f}"
    return Finding("b0-not-brightest", message, tuple(dark))


def _rising(levels: Levels, shells: tuple[Shell, ...]) -> list[Finding]:
    level = [float(levels.log[s.indices].median()) for s in shells]
    for i, low in enumerate(shells):
        for j in range(i + 1, len(shells)):
            if shells[j].bval - low.bval >= B_APART and level[j] > level[i] + RISE:
                message = (
                    f"the signal rises with b: {math.exp(level[j] - level[i]):.2f} times the level of "
                    f"b = {low.bval:.0f} at b = {shells[j].bval:.0f}"
                )
                return [Finding("levels-not-decaying", message)]
    return []
