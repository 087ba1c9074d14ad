"""Checks of a scan: image, b-values against the signal, dropped slices, b-vectors; and mending."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "AXIS_CHANGES": "axis_changes",
        "describe": "axis_changes",
        "Coherence": "coherence",
        "CODES": "finding",
        "Finding": "finding",
        "fix_scan": "mending",
        "Dropout": "quality",
        "dropped_slices": "quality",
        "estimate_snr": "quality",
        "ScanCheck": "scan_check",
        "check": "scan_check",
        "check_scan": "scan_check",
        "quick_check": "scan_check",
    },
)
