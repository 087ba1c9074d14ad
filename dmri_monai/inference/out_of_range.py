"""Where a scan lies outside of what a model was trained on."""

from __future__ import annotations

from dmri_monai.check.quality import estimate_snr
from dmri_monai.gradients import B0_THRESHOLD
from dmri_monai.inference.seen_scans import is_near, used_shells
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.scan import Scan

__all__ = ["out_of_range"]

# A scan may lie this far outside of the training range before it is worth a warning, and, as scans of one protocol say
# little of what a model can take, this far from the middle of the range.
MARGIN, NARROW = 0.1, 0.2


def out_of_range(scan: Scan, spec: ModelSpec) -> list[str]:
    """Where a scan lies outside of what the model was trained on, one sentence each."""
    found = [*_other_b0(scan, spec), *_absent(scan, spec)]
    shells = used_shells([(shell.bval, len(shell.indices)) for shell in scan.table.shells()], spec)
    known = spec.trained_on
    values: list[tuple[str, tuple[float, float] | None, tuple[float, ...]]] = [
        ("directions", known.directions, (float(sum(count for _, count in shells)),)),
        ("s/mm² b-values", known.bval, tuple(round(b) for b, _ in shells)),
        ("mm voxel size", known.voxel_mm, scan.spacing_mm),
        ("SNR", known.snr, _snr(scan) if known.snr else ()),
    ]
    for name, bounds, measured in values:
        if bounds and any(not _is_usual(v, bounds) for v in measured):
            shown = " x ".join(f"{v:g}" for v in measured)
            seen = " to ".join(dict.fromkeys(f"{v:g}" for v in bounds))
            found.append(f"{shown} {name}: the model was trained on {seen}")
    return found


def _is_usual(value: float, bounds: tuple[float, float]) -> bool:
    """Whether `value` is so near to the training range that the difference is a trifle."""
    low, high = bounds
    middle = (low + high) / 2
    lowest = min(low * (1 - MARGIN), middle * (1 - NARROW))
    return lowest <= value <= max(high * (1 + MARGIN), middle * (1 + NARROW))


def _snr(scan: Scan) -> tuple[float, ...]:
    """SNR of one b0 volume; empty where it cannot be estimated."""
    if int(scan.table.b0_mask.sum()) < 2:
        return ()
    mask = head_mask(mean_b0(scan.signal, scan.table.bvals, scan.table.b0_threshold))
    snr = estimate_snr(scan.signal, scan.table, mask)
    return () if snr is None else (round(snr, 1),)


def _other_b0(scan: Scan, spec: ModelSpec) -> list[str]:
    """Volumes that count as b0 in a scan read with the default threshold and not in the model's training, or the other
    way round.
    """
    own, trained = scan.table.b0_threshold, spec.b0_threshold
    differ = [b for b in scan.table.bvals.tolist() if min(own, trained) < b <= max(own, trained)]
    if not differ or own != B0_THRESHOLD:  # any other one was asked for
        return []
    here, there = ("b0", "weighted") if own > trained else ("weighted", "b0")
    shown = f"{min(differ):g}" if min(differ) == max(differ) else f"{min(differ):g} to {max(differ):g}"
    return [
        f"volumes with b = {shown} count as {here}: with the model's b0_threshold of {trained:g} they would be {there}"
    ]


def _absent(scan: Scan, spec: ModelSpec) -> list[str]:
    """The model's shells that the scan lacks, where that matters."""
    own = [shell.bval for shell in scan.table.shells()]
    absent = [b for b in spec.shells if not any(is_near(one, b, spec) for one in own)]
    matters = spec.missing == "error" or len(absent) == len(spec.shells)
    return [f"no shell near the model's b = {b:g} s/mm²" for b in absent] if matters else []
