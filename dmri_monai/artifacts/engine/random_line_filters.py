"""Random gains of k-space lines: what is not sampled, decays during the readout, or alternates from line to line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dmri_monai.artifacts.engine.artifact import Artifact, Drawn, Range
from dmri_monai.artifacts.engine.random_distortion import READOUT_TIME_S
from dmri_monai.artifacts.engine.random_numbers import readout_time, uniform
from dmri_monai.artifacts.engine.scan_context import ScanContext
from dmri_monai.artifacts.lines import ghost_gain, partial_fourier_gain, t2star_gain, truncation_gain

__all__ = ["Ghost", "Gibbs", "PartialFourier", "T2StarBlur"]


@dataclass(frozen=True, kw_only=True)
class PartialFourier(Artifact):
    """Late phase-encoding lines are not acquired and stay zero.  fraction: U(low, high), lines acquired."""

    name = "partial_fourier"
    bounds = {"fraction": (0.51, 1)}
    step = "filter"

    fraction: Range = (0.625, 0.875)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {"axis": scan.phase_axis, "fraction": uniform(R, self.fraction)}

    @staticmethod
    def gains(drawn: Drawn, scan: ScanContext) -> dict[int, Tensor]:
        return {drawn["axis"]: partial_fourier_gain(scan.shape[drawn["axis"]], drawn["fraction"])}


@dataclass(frozen=True, kw_only=True)
class T2StarBlur(Artifact):
    """Decay during the readout.  t2star_s: U(low, high), T2' in seconds; readout_time_s: where the scan does
    not tell.
    """

    name = "t2star_blur"
    bounds = {"t2star_s": (1e-4, math.inf), "readout_time_s": (0, 1)}
    step = "filter"

    t2star_s: Range = (0.03, 0.08)
    readout_time_s: Range = READOUT_TIME_S

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        rate = 1 / uniform(R, self.t2star_s)
        return {
            "axis": scan.phase_axis,
            "decay_rate_hz": rate,
            "readout_time_s": readout_time(R, scan, self.readout_time_s),
        }

    @staticmethod
    def gains(drawn: Drawn, scan: ScanContext) -> dict[int, Tensor]:
        t2star = 1 / drawn["decay_rate_hz"] if drawn["decay_rate_hz"] else math.inf
        return {drawn["axis"]: t2star_gain(scan.shape[drawn["axis"]], drawn["readout_time_s"], t2star)}


@dataclass(frozen=True, kw_only=True)
class Gibbs(Artifact):
    """Ringing in the plane of the slices.  fraction: U(low, high), outer share of k-space that is not
    sampled.
    """

    name = "gibbs"
    bounds = {"fraction": (0, 0.9)}
    step = "filter"

    fraction: Range = (0.1, 0.5)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {"axes": sorted((scan.phase_axis, scan.readout_axis)), "fraction": uniform(R, self.fraction)}

    @staticmethod
    def gains(drawn: Drawn, scan: ScanContext) -> dict[int, Tensor]:
        return {axis: truncation_gain(scan.shape[axis], drawn["fraction"]) for axis in drawn["axes"]}


@dataclass(frozen=True, kw_only=True)
class Ghost(Artifact):
    """Nyquist (N/2) ghost.  phase_deg: U(low, high), phase error of odd and even lines."""

    name = "ghost"
    bounds = {"phase_deg": (0, 90)}
    step = "filter"

    phase_deg: Range = (2.0, 15.0)

    def draw(self, R: np.random.RandomState, scan: ScanContext) -> Drawn:
        return {"axis": scan.phase_axis, "phase_deg": uniform(R, self.phase_deg)}

    @staticmethod
    def gains(drawn: Drawn, scan: ScanContext) -> dict[int, Tensor]:
        return {drawn["axis"]: ghost_gain(scan.shape[drawn["axis"]], drawn["phase_deg"])}
