"""Everything a user should know of a scan before a network sees it, judged in an order that blames the right thing.

First the image, then b-values against the signal, then single slices, then the b-vectors: a blank scan or one whose
volumes are in another order must not end in an accusation of the b-vectors.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dmri_monai.check.bvalues import judge_bvalues
from dmri_monai.check.coherence import Coherence, judge_coherence
from dmri_monai.check.finding import STAGES, Finding, Stage
from dmri_monai.check.image_state import judge_image
from dmri_monai.check.measured import Measured
from dmri_monai.check.quality import Dropout, dropped_slices, estimate_snr
from dmri_monai.gradients import B0_THRESHOLD, grid_rotation
from dmri_monai.out_of_memory import telling_memory
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import direction_maps

if TYPE_CHECKING:
    from torch import Tensor

    from dmri_monai.io.sidecars import BvecsChoice
    from dmri_monai.scan import Scan

__all__ = ["ScanCheck", "check", "check_scan", "examine", "quick_check"]

LOW_SNR = 5.0
MANY_DROPPED = 0.1  # of all slices: beyond, the fit of a tensor is no longer to be trusted
VERDICTS = {
    "consistent": "consistent with the course of the fibres",
    "wrong": "not consistent with the course of the fibres",
    "inconclusive": "inconclusive: the fibres here do not tell axes apart",
}


@dataclass(frozen=True)
class ScanCheck:
    """Facts of a scan, and `findings` in the order they were judged.

    shells: (b-value, number of directions).  b0_range: lowest and highest b-value that counts as b0, None without.
    snr: of one b0 volume, None where it cannot be estimated.  coherence: None where the b-vectors were not judged.
    not_judged: stage -> why it was left out.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    handedness: str
    n_b0: int
    b0_range: tuple[float, float] | None
    shells: tuple[tuple[float, int], ...]
    snr: float | None = None
    coherence: Coherence | None = None
    dropouts: tuple[Dropout, ...] = ()
    findings: tuple[Finding, ...] = ()
    not_judged: dict[Stage, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether nothing looks wrong; notes do not count."""
        return all(f.severity == "note" for f in self.findings)

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the findings."""
        return tuple(f.code for f in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON; what is not finite is None."""
        content = asdict(self) | {"ok": self.ok}
        if self.coherence is not None:
            content["coherence"]["description"] = self.coherence.description
        content["findings"] = [asdict(f) | {"stage": f.stage, "severity": f.severity} for f in self.findings]
        plain: dict[str, Any] = _finite(content)
        return plain

    def lines(self) -> list[str]:
        """The result as text, one fact a line, the findings last."""
        shells = ", ".join(f"{n} at b = {b:g} s/mm2" for b, n in self.shells) or "none"
        if self.coherence is None:
            coherence = "not determined"
        else:
            coherence = VERDICTS[self.coherence.verdict]
        b0 = f"{self.n_b0}"
        if self.b0_range is not None and self.b0_range[1] > 0:
            b0 += f", b = {self.b0_range[0]:g} to {self.b0_range[1]:g} s/mm2"
        snr = "not known: needs two b0 volumes" if self.snr is None else f"{self.snr:g}"
        return [
            f"volumes      {self.shape[0]} of {' x '.join(map(str, self.shape[1:]))} voxels",
            f"voxel size   {' x '.join(f'{v:g}' for v in self.spacing_mm)} mm, {self.handedness}-handed grid",
            f"b0 volumes   {b0}",
            f"directions   {shells}",
            f"SNR (b0)     {self._unless_skipped('slices', snr)}",
            f"dropouts     {self._unless_skipped('slices', str(len(self.dropouts)))}",
            f"b-vectors    {self._unless_skipped('b-vectors', coherence)}",
            *(
                f"{'note ' if f.severity == 'note' else 'FOUND'}        {f.message} [{f.code}]"
                for f in self.findings
            ),
        ]

    def _unless_skipped(self, stage: Stage, text: str) -> str:
        return f"not judged because {self.not_judged[stage]}" if stage in self.not_judged else text


def check_scan(
    path: str | os.PathLike[str], *, bvecs: BvecsChoice = "auto", b0_threshold: float = B0_THRESHOLD
) -> ScanCheck:
    """Check the DWI file at `path` with its sidecars; options and errors as :func:`dmri_monai.io.read_dwi`."""
    from dmri_monai.check.reading import read_measured

    with telling_memory(str(path), "check a scan with fewer volumes or larger voxels"):
        return examine(read_measured(path, bvecs=bvecs, b0_threshold=b0_threshold))


def check(scan: Scan) -> ScanCheck:
    """Check `scan`: its image, then b-values, then slices, then b-vectors."""
    return examine(Measured.of(scan))


def quick_check(scan: Scan) -> tuple[Finding, ...]:
    """The first two stages alone, in a fraction of a second: no signal, not finite, levels that deny the b-values.

    For every scan before training or prediction; findings of severity "error" say that no network should see it.
    """
    measured = Measured.of(scan)
    found = judge_image(measured)
    return tuple(found if _stops(found) else found + judge_bvalues(measured))


def examine(scan: Measured) -> ScanCheck:
    """The check itself."""
    table = scan.table
    b0 = table.bvals[table.b0_mask]
    facts: dict[str, Any] = {
        "shape": tuple(scan.signal.shape),
        "spacing_mm": scan.spacing_mm,
        "handedness": "right" if scan.right_handed else "left",
        "n_b0": len(b0),
        "b0_range": (float(b0.min()), float(b0.max())) if len(b0) else None,
        "shells": tuple((round(s.bval, 1), len(s.indices)) for s in table.shells()),
    }
    found = judge_image(scan)
    if reason := _stops(found):
        return ScanCheck(**facts, findings=tuple(found), not_judged=_from("b-values", reason))
    found += judge_bvalues(scan)
    if reason := _stops(found):
        return ScanCheck(**facts, findings=tuple(found), not_judged=_from("slices", reason))
    mask = head_mask(mean_b0(scan.signal, table.bvals, table.b0_threshold, without_b0="lowest shell"))
    snr = estimate_snr(scan.signal, table, mask)
    if snr is not None and snr < LOW_SNR:
        found.append(Finding("low-snr", f"SNR of the b0 volumes is {snr:.1f}, expected at least {LOW_SNR:g}"))
    dropouts = dropped_slices(scan.signal, table, mask, scan.slice_axis)
    found += _dropped(dropouts)
    facts |= {"snr": None if snr is None else round(snr, 1), "dropouts": tuple(dropouts)}
    if len(dropouts) > MANY_DROPPED * len(table) * scan.signal.shape[1 + scan.slice_axis]:
        reason = f"{len(dropouts)} slices are dropped"
        return ScanCheck(**facts, findings=tuple(found), not_judged=_from("b-vectors", reason))
    coherence = _coherence(scan, mask)
    found += _accused(coherence)
    return ScanCheck(**facts, coherence=coherence, findings=tuple(found))


def _stops(found: list[Finding]) -> str:
    """Why the next stages cannot be judged after `found`; empty where they can."""
    blocking = [f for f in found if f.severity == "error" or (f.severity == "warning" and f.code != "no-b0")]
    return blocking[0].message if blocking else ""


def _from(stage: Stage, reason: str) -> dict[Stage, str]:
    return dict.fromkeys(STAGES[STAGES.index(stage) :], reason)


def _dropped(dropouts: list[Dropout]) -> list[Finding]:
    if not dropouts:
        return []
    worst = dropouts[0]
    message = (
        f"{len(dropouts)} slices look dropped, the worst is slice {worst.slice} of volume {worst.volume} "
        f"with {100 * worst.gain:.0f} % of its signal left"
    )
    return [Finding("dropped-slices", message, tuple(sorted({d.volume for d in dropouts})))]


def _coherence(scan: Measured, mask: Tensor) -> Coherence | None:
    maps = direction_maps(scan.signal, scan.table, scan.affine, mask)
    if maps is None:
        return None
    rotation = grid_rotation(scan.affine)
    v1 = torch.einsum("ji,jxyz->ixyz", rotation.float(), maps.v1_world)
    signs = torch.tensor([-1.0 if scan.right_handed else 1.0, 1.0, 1.0], dtype=torch.float64)
    frames = {  # what mends directions read by FSL's rule from a file that holds them in scanner axes
        "the scanner's axes (RAS)": rotation.T @ torch.diag(signs),
        "the scanner's axes (LPS)": rotation.T
        @ torch.diag(signs.new_tensor([-1, -1, 1]))
        @ torch.diag(signs),
    }
    return judge_coherence(v1, maps.fa, rotation.T @ scan.affine[:3, :3], signs, frames)


def _accused(coherence: Coherence | None) -> list[Finding]:
    if coherence is None:
        message = "the gradient table does not determine a tensor: too few or coplanar directions"
        return [Finding("table-undetermined", message)]
    if coherence.verdict != "wrong":
        return []
    message = (
        f"your b-vectors look {coherence.description} (fibre continuation {coherence.index:.3f} as read, "
        f"{coherence.best_index:.3f} after mending; z = {coherence.z:.1f})"
    )
    return [Finding(coherence.code, message)]


def _finite(value: Any) -> Any:
    """`value` with None for every number that JSON cannot hold."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
