"""Heads in memory: what a network takes in, what it is to find, and where; turned and mirrored as one body."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dmri_monai.gradients import cluster_shells, grid_rotation
from dmri_monai.phantom import Subject
from dmri_monai.qspace.b0 import b0_reference, mean_b0
from dmri_monai.qspace.harmonics import harmonic_irreps, signal_to_harmonics
from dmri_monai.qspace.invariants import power_spectrum
from dmri_monai.qspace.shell_fit import ShellFit
from dmri_monai.qspace.shell_set import shell_channels, shell_irreps, shell_set
from dmri_monai.so3 import as_irreps, representation_matrix

__all__ = ["L_MAX", "Case", "Scale", "boxed", "case_of", "encoded", "mirrored", "nearest_shell", "padded", "stacked",
           "turned"]  # fmt: skip

SHELL, L_MAX = (
    1000.0,
    4,
)  # of the harmonic channels: b-value (s/mm²) that a scan's shell is chosen by, highest degree
SLOTS = 4
FIT = ShellFit(too_few="zero")  # few directions leave out orders that they cannot give


@dataclass(frozen=True)
class Case:
    """One head on a box around its brain; air is 0, or -1 and NaN in labels.

    image (C, X, Y, Z): channels of `irreps`, or ("samples") measurements of `bvals` (N,) and `bvecs` (N, 3), in the
    voxel frame.  label (K, X, Y, Z): class numbers, or axes in the voxel frame.  mask (X, Y, Z) bool: the brain.
    """

    image: Tensor
    irreps: str
    label: Tensor
    mask: Tensor
    bvals: Tensor | None = None
    bvecs: Tensor | None = None

    @property
    def table(self) -> tuple[Tensor, ...]:
        """Further arguments of a network on samples, as a batch of one."""
        return () if self.bvals is None or self.bvecs is None else (self.bvals[None], self.bvecs[None])

    def to(self, device: str) -> Case:
        """The same on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def case_of(subject: Subject, takes: str, task: str) -> Case:
    """The case of a simulated head: `takes` "harmonics", "invariants" (with them), "shells" or "samples".

    The brain is cut out along the true mask for every method alike.
    """
    inside = subject.brain_mask > 0
    rotation = grid_rotation(subject.affine)
    bvals, bvecs = subject.table.bvals, subject.table.bvecs @ rotation
    image, irreps = encoded(subject.image.as_tensor(), bvals, bvecs, takes)
    case = Case(image * inside, irreps, _label(subject, task, rotation), inside)
    if takes == "samples":
        case = replace(case, bvals=bvals.float(), bvecs=bvecs.float())
    return boxed(case)


def encoded(image: Tensor, bvals: Tensor, bvecs: Tensor, takes: str) -> tuple[Tensor, str]:
    """(C, X, Y, Z) what networks take in of raw volumes (N, X, Y, Z), bvecs (N, 3) in the voxel frame; its irreps.

    Harmonics are those of the shell nearest to `SHELL`.
    """
    if takes == "shells":
        shells = shell_set(bvals, bvecs, slots=SLOTS)
        return shell_channels(image, bvals, shells), shell_irreps(SLOTS, 6)
    if takes == "samples":
        b0 = mean_b0(image, bvals)
        unit = b0_reference(b0)
        signal = (image / b0.clamp(min=1e-4 * unit)).clamp(0.0, 1.0)
        signal[bvals <= 50] = (b0 / unit).expand(int((bvals <= 50).sum()), *b0.shape)
        return signal, f"{len(signal)}x0e"
    shells = [nearest_shell(bvals)]
    channels = signal_to_harmonics(image[None], bvals[None], bvecs[None], shells=shells, l_max=L_MAX, fit=FIT)
    irreps = harmonic_irreps(1, L_MAX)
    if takes == "invariants":
        norms = power_spectrum(channels, irreps)[:, 2:].sqrt()
        return torch.cat([channels[:, :2], norms, channels[:, 2:]], dim=1)[0], "4x0e+1x2e+1x4e"
    return channels[0], irreps


def nearest_shell(bvals: Tensor) -> float:
    """b-value (s/mm²) of the shell nearest to `SHELL`."""
    return min((shell.bval for shell in cluster_shells(bvals)), key=lambda b: abs(b - SHELL))


def _label(subject: Subject, task: str, rotation: Tensor) -> Tensor:
    if task == "orientation":
        return torch.einsum("wv,wxyz->vxyz", rotation.float(), subject.peaks_world[:3])
    label = {"tissue": subject.dseg, "lesion": subject.lesion, "crossings": subject.npeaks}[task]
    return label[None].float()


def boxed(case: Case) -> Case:
    """The case on the smallest box that holds its brain."""
    corners = case.mask.nonzero()
    low, high = corners.amin(0).tolist(), (corners.amax(0) + 1).tolist()
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    every = slice(None)
    cut = {k: getattr(case, k)[every, *box].contiguous() for k in ("image", "label")}
    return replace(case, mask=case.mask[box].contiguous(), **cut)


def padded(case: Case, size: Sequence[int]) -> Case:
    """The case in the middle of a box of `size`, no smaller than its own."""
    pad: list[int] = []
    for have, want in zip(reversed(case.mask.shape), reversed(size), strict=True):
        pad += [(want - have) // 2, want - have - (want - have) // 2]
    return replace(case, **{k: F.pad(getattr(case, k), pad) for k in ("image", "label", "mask")})


def stacked(cases: Sequence[Case], multiple: int) -> list[Case]:
    """The cases on one box, whose sizes are multiples of `multiple`."""
    sizes = torch.tensor([case.mask.shape for case in cases]).amax(0)
    return [padded(case, [-(-int(n) // multiple) * multiple for n in sizes]) for case in cases]


def mirrored(case: Case) -> Case:
    """Left and right exchanged."""
    flip = {k: getattr(case, k).flip(-3) for k in ("image", "label", "mask")}
    return _turned_values(replace(case, **flip), torch.diag(torch.tensor([-1.0, 1.0, 1.0])))


def turned(case: Case, rotation: Tensor) -> Case:
    """The head turned by `rotation` (3, 3, voxel axes) about the middle of its box, cubic voxels; values interpolated.

    What leaves the smallest cube around the box is cut off.
    """
    cube = padded(case, [max(case.mask.shape)] * 3)
    # affine_grid counts axes from the last; a value at x comes from R^T x
    theta = torch.zeros(1, 3, 4)
    theta[0, :, :3] = rotation.float().T.flip(0, 1)
    grid = F.affine_grid(theta, [1, 1, *cube.mask.shape], align_corners=False).to(case.image)

    def pull(values: Tensor, mode: str) -> Tensor:
        return F.grid_sample(values[None].float(), grid, mode=mode, align_corners=False)[0]

    new = replace(
        cube,
        image=pull(cube.image, "bilinear"),
        label=pull(cube.label, "nearest"),
        mask=pull(cube.mask[None], "nearest")[0] > 0,
    )
    return boxed(_turned_values(new, rotation))


def _turned_values(case: Case, turn: Tensor) -> Case:
    """Values that have directions turned by the orthogonal `turn` (3, 3)."""
    label = case.label
    if len(label) == 3:
        label = torch.einsum("vw,wxyz->vxyz", turn.to(label), label)
    if case.bvecs is not None:
        return replace(case, label=label, bvecs=case.bvecs @ turn.T.to(case.bvecs))
    matrix = representation_matrix(case.irreps, turn.double()).to(case.image)
    return replace(case, label=label, image=torch.einsum("dc,cxyz->dxyz", matrix, case.image))


@dataclass(frozen=True)
class Scale:
    """Standardises channels by the brains of a training set: scalars to mean 0, every irrep to a mean square of 1.

    One factor an irrep, so that turning a head turns its standardised channels.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Scale:
        """Of the cases' channels; nothing is changed of shells and samples, whose networks know what they mean."""
        first = cases[0]
        channels = len(first.image)
        if first.bvals is not None or first.irreps == shell_irreps(SLOTS, 6):
            return cls(torch.zeros(channels), torch.ones(channels))
        values = torch.cat([case.image[:, case.mask] for case in cases], dim=1).double()
        mean = values.mean(1)
        factor = torch.ones(channels, dtype=torch.float64)
        start = 0
        for multiplicity, ir in as_irreps(first.irreps):
            for _ in range(multiplicity):
                block = slice(start, start + ir.dim)
                if ir.l:
                    mean[block] = 0
                factor[block] = (values[block] - mean[block, None]).square().mean().clamp(min=1e-12).rsqrt()
                start += ir.dim
        return cls(mean.float(), factor.float())

    def __call__(self, case: Case) -> Case:
        mean, factor = (v.to(case.image).view(-1, 1, 1, 1) for v in (self.mean, self.factor))
        return replace(case, image=(case.image - mean) * factor * case.mask)
