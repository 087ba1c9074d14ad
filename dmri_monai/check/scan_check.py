"""Everything a user should know of a scan before a network sees it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmri_monai.check.coherence import Coherence, judge_coherence
from dmri_monai.check.quality import Dropout, dropped_slices, estimate_snr
from dmri_monai.gradients import GradientTable, grid_rotation
from dmri_monai.io import read_dwi
from dmri_monai.qspace.b0 import head_mask, mean_b0
from dmri_monai.qspace.direction_maps import direction_maps

__all__ = ["ScanCheck", "check_image", "check_scan"]

LOW_SNR = 5.0
VERDICTS = {
    "consistent": "consistent with the course of the fibres",
    "wrong": "not consistent with the course of the fibres",
    "inconclusive": "inconclusive: the fibres here do not tell axes apart",
}


@dataclass(frozen=True)
class ScanCheck:
    """Facts of a scan, and `findings`: one sentence for each thing that looks wrong.

    shells: (b-value, number of directions).  snr: of one b0 volume, None where it cannot be estimated.
    coherence: None where no tensor can be fitted.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    handedness: str
    n_b0: int
    shells: tuple[tuple[float, int], ...]
    snr: float | None
    coherence: Coherence | None
    dropouts: tuple[Dropout, ...]
    findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing looks wrong."""
        return not self.findings

    def to_dict(self) -> dict[str, Any]:
        """The result as plain data for JSON."""
        content = asdict(self) | {"ok": self.ok}
        if self.coherence is not None:
            content["coherence"]["description"] = self.coherence.description
        return content

    def lines(self) -> list[str]:
        """The result as text, one fact a line, the findings last."""
        shells = ", ".join(f"{n} at b = {b:g} s/mm2" for b, n in self.shells) or "none"
        coherence = "not tested" if self.coherence is None else VERDICTS[self.coherence.verdict]
        return [
            f"volumes      {self.shape[0]} of {' x '.join(map(str, self.shape[1:]))} voxels",
            f"voxel size   {' x '.join(f'{v:g}' for v in self.spacing_mm)} mm, {self.handedness}-handed grid",
            f"b0 volumes   {self.n_b0}",
            f"directions   {shells}",
            f"SNR (b0)     {'not known: needs two b0 volumes' if self.snr is None else f'{self.snr:g}'}",
            f"b-vectors    {coherence}",
            f"dropouts     {len(self.dropouts)}",
            *(f"FOUND        {finding}" for finding in self.findings),
        ]


def check_scan(path: str | Path) -> ScanCheck:
    """Check the DWI file at `path` with its sidecars; raises what `read_dwi` raises."""
    image, table = read_dwi(path)
    return check_image(image.as_tensor(), table, image.affine, slice_world=image.meta.get("slice_world"))


def check_image(
    image: Tensor, table: GradientTable, affine: Tensor, slice_world: Tensor | None = None
) -> ScanCheck:
    """Check `image` (N, X, Y, Z) of raw signal with its `table` and `affine` (4, 4).

    slice_world: (3,) direction across the slices; the third array axis where it is not known.
    """
    affine = torch.as_tensor(affine).double()
    b0 = mean_b0(image, table.bvals, table.b0_threshold, without_b0="lowest shell")
    mask = head_mask(b0)
    snr = estimate_snr(image, table, mask)
    dropouts = dropped_slices(image, table, mask, _slice_axis(affine, slice_world))
    coherence = _coherence(image, table, affine, mask)
    shells = tuple((round(s.bval, 1), len(s.indices)) for s in table.shells())
    return ScanCheck(
        shape=tuple(image.shape),
        spacing_mm=tuple(round(v, 4) for v in affine[:3, :3].norm(dim=0).tolist()),
        handedness="right" if torch.linalg.det(affine[:3, :3]) > 0 else "left",
        n_b0=int(table.b0_mask.sum()),
        shells=shells,
        snr=None if snr is None else round(snr, 1),
        coherence=coherence,
        dropouts=tuple(dropouts),
        findings=tuple(_findings(image, table, snr, coherence, dropouts)),
    )


def _coherence(image: Tensor, table: GradientTable, affine: Tensor, mask: Tensor) -> Coherence | None:
    maps = direction_maps(image, table, affine, mask)
    if maps is None:
        return None
    rotation = grid_rotation(affine)
    v1 = torch.einsum("ji,jxyz->ixyz", rotation, maps.v1_world.double())
    right_handed = torch.linalg.det(affine[:3, :3]) > 0
    signs = torch.tensor([-1.0 if right_handed else 1.0, 1.0, 1.0])
    return judge_coherence(v1, maps.fa.double(), rotation.T @ affine[:3, :3], signs)


def _slice_axis(affine: Tensor, slice_world: Tensor | None) -> int:
    if slice_world is None:
        return 2
    along = grid_rotation(affine).T @ torch.as_tensor(slice_world).double()
    return int(along.abs().argmax())


def _findings(
    image: Tensor,
    table: GradientTable,
    snr: float | None,
    coherence: Coherence | None,
    dropouts: list[Dropout],
) -> list[str]:
    found = []
    if not image.isfinite().all():
        found.append(f"{int((~image.isfinite()).sum())} values of the image are not finite")
    if not table.b0_mask.any():
        found.append("no b0 volume: the signal cannot be normalised")
    if coherence is None:
        found.append("the gradient table does not determine a tensor: too few or coplanar directions")
    elif coherence.verdict == "wrong":
        found.append(
            f"your b-vectors look {coherence.description} (fibre coherence {coherence.index:.3f} as read, "
            f"{coherence.best_index:.3f} after mending; z = {coherence.z:.1f})"
        )
    if snr is not None and snr < LOW_SNR:
        found.append(f"SNR of the b0 volumes is {snr:.1f}, expected at least {LOW_SNR:g}")
    if dropouts:
        worst = dropouts[0]
        found.append(
            f"{len(dropouts)} slices look dropped, the worst is slice {worst.slice} of volume {worst.volume} "
            f"with {100 * worst.gain:.0f} % of its signal left"
        )
    return found
