"""Checks of a scan: fibre coherence under axis flips, noise level, dropped slices, gradient table."""

from dmri_monai.check.coherence import AXIS_CHANGES, Coherence, coherence_index, describe, judge_coherence
from dmri_monai.check.quality import Dropout, dropped_slices, estimate_snr
from dmri_monai.check.scan_check import ScanCheck, check_image, check_scan

__all__ = [
    "AXIS_CHANGES",
    "Coherence",
    "Dropout",
    "ScanCheck",
    "check_image",
    "check_scan",
    "coherence_index",
    "describe",
    "dropped_slices",
    "estimate_snr",
    "judge_coherence",
]
