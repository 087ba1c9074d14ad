"""Picture of all simulated artifacts on a phantom: clean, corrupted, difference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmri_monai.artifacts.engine import Artifact, Preset, corrupt, load_preset
from dmri_monai.io.writing import replacing
from dmri_monai.phantom import make_subject

__all__ = ["gallery"]

SHAPE, SPACING_MM = (50, 56, 48), 3.0  # little air around the head, or nothing would wrap
ACROSS_SLICES = ("slice_motion", "slice_dropout", "venetian_blind")  # seen best from the front
VISIBLE = 5e-3  # relative change of the whole scan


def gallery(out: str | Path, *, preset: str = "strong", seed: int = 0) -> Path:
    """Write a PNG with one row per artifact of `preset`: clean, corrupted, difference; returns its path.

    Each artifact acts alone on the same noise-free phantom; the volume and slice it changes most are shown.
    """
    from matplotlib.figure import Figure

    affine = torch.diag(torch.tensor([SPACING_MM] * 3 + [1.0], dtype=torch.float64))
    affine[:3, 3] = -affine.diagonal()[:3] * (torch.tensor(SHAPE) - 1) / 2
    subject = make_subject(seed, shape=SHAPE, affine=affine, scheme="clinical-32")
    bvecs = subject.table.in_voxel_frame(affine)
    artifacts = load_preset(preset).artifacts
    figure = Figure(figsize=(6.4, 1.75 * len(artifacts)), layout="constrained", dpi=80)
    rows = figure.subplots(len(artifacts), 3, squeeze=False)
    for axes, artifact in zip(rows, artifacts, strict=True):
        changed = _changed(artifact, subject.clean, (subject.table.bvals, bvecs), affine, seed)
        _row(axes, artifact.name, subject.clean, changed)
    for axis, title in zip(rows[0], ("clean", "corrupted", "difference"), strict=True):
        axis.set_title(title, fontsize=10)
    with replacing(Path(out)) as (temporary,):
        figure.savefig(temporary)
    return Path(out)


def _changed(
    artifact: Artifact, clean: Tensor, table: tuple[Tensor, Tensor], affine: Tensor, seed: int
) -> Tensor:
    """`clean` with `artifact` from the first of a few draws that shows: some wrap or drift hardly at all."""
    alone = Preset(artifact.name, (replace(artifact, prob=1.0),))
    changed = clean
    for draw in range(seed + 1, seed + 10):
        changed, _ = corrupt(clean, *table, affine=affine, preset=alone, seed=draw)
        if float((changed - clean).norm() / clean.norm()) > VISIBLE:
            break
    return changed


def _row(axes: np.ndarray, name: str, clean: Tensor, changed: Tensor) -> None:
    before, after = _shown(clean, changed, 1 if name in ACROSS_SLICES else 2)
    top = float(before.max())
    for axis, picture in zip(axes, (before, after), strict=False):
        axis.imshow(picture.T, origin="lower", cmap="gray", vmin=0, vmax=top)
    difference = after - before
    reach = max(float(np.abs(difference).max()), 1e-6)
    axes[2].imshow(difference.T, origin="lower", cmap="RdBu_r", vmin=-reach, vmax=reach)
    axes[0].set_ylabel(name.replace("_", "\n"), fontsize=9, rotation=0, ha="right", va="center")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])


def _shown(clean: Tensor, changed: Tensor, across: int) -> tuple[np.ndarray, np.ndarray]:
    """The slice across array axis `across` that changed most, of the volume that changed most, before and after."""
    difference = (changed - clean).abs().sum([d for d in (1, 2, 3) if d != across + 1])
    volume = int(difference.sum(1).argmax())
    index = int((difference[volume] * _middle(difference.shape[1])).argmax())
    before, after = (image[volume].select(across, index).numpy() for image in (clean, changed))
    return before, after


def _middle(n: int) -> Tensor:
    """(n,) weight that prefers slices with some brain in them."""
    return torch.exp(-(torch.linspace(-3, 3, n) ** 2))
