"""Peaks of harmonics: against lobes of known directions, MRtrix3's `sh2peaks`, and under rotations."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch.testing import assert_close

from dmri_monai.gradients import grid_rotation
from dmri_monai.io import write_harmonics
from dmri_monai.qspace.peaks import harmonic_peaks
from dmri_monai.qspace.shell_fit import sh_orders
from dmri_monai.so3 import representation_matrix, sh_basis

IRREPS = "1x0e+1x2e+1x4e+1x6e+1x8e"


def lobes(directions: torch.Tensor, weights: torch.Tensor, spread: float = 0.02) -> torch.Tensor:
    """(45, V) sums of lobes at `directions` (V, n, 3) of mass `weights` (V, n)."""
    orders = sh_orders(8).double()
    basis = sh_basis(directions, 8) * torch.exp(-orders * (orders + 1) / 2 * spread)
    return torch.einsum("vn,vnc->cv", weights, basis)


def crossings(count: int = 60, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two fibres at 60 to 90 degrees, the first the heavier: directions (V, 2, 3), weights (V, 2)."""
    generator = torch.Generator().manual_seed(seed)
    frame, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    angle = torch.deg2rad(60 + 30 * torch.rand(count, 1, generator=generator, dtype=torch.float64))
    second = angle.cos() * frame[:, 0] + angle.sin() * frame[:, 1]
    return torch.stack([frame[:, 0], second], dim=1), torch.tensor([[0.5, 0.35]]).double().expand(count, 2)


def degrees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.rad2deg((a * b).sum(-1).abs().clamp(max=1).acos())


def test_a_single_lobe_peaks_where_it_was_put():
    directions, _ = crossings()
    found = harmonic_peaks(lobes(directions[:, :1], torch.ones(60, 1).double()), relative=0.2)
    assert degrees(found.directions[:, 0], directions[:, 0]).max() < 0.01
    assert (found.number == 1).all()
    height = lobes(directions[:1, :1], torch.ones(1, 1).double())[:, 0] @ sh_basis(directions[0, 0], 8)
    assert_close(found.amplitudes[:, 0], height.expand(60), rtol=1e-5, atol=0)


def test_crossing_lobes_are_both_found_largest_first():
    directions, weights = crossings()
    found = harmonic_peaks(lobes(directions, weights), relative=0.3)
    assert (found.number == 2).all()
    assert degrees(found.directions[:, 0], directions[:, 0]).max() < 4
    assert degrees(found.directions[:, 1], directions[:, 1]).max() < 4


def test_peaks_turn_with_the_function():
    directions, weights = crossings()
    turn, _ = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    )
    field = lobes(directions, weights)
    before, after = harmonic_peaks(field), harmonic_peaks(representation_matrix(IRREPS, turn) @ field)
    assert degrees(before.directions[:, 0] @ turn.T, after.directions[:, 0]).max() < 0.01
    assert degrees(before.directions[:, 0], after.directions[:, 0]).median() > 5  # the control


def test_small_and_near_peaks_are_dropped():
    directions, weights = crossings()
    field = lobes(directions, weights)
    assert (harmonic_peaks(field, relative=0.9).number == 1).all()
    assert (harmonic_peaks(field, absolute=10.0).number == 0).all()
    assert (harmonic_peaks(field, relative=0.3, separation_degrees=89.9).number == 1).all()


def test_empty_and_missing_voxels_have_no_peaks():
    field = torch.stack([torch.zeros(45), torch.full((45,), torch.nan)], dim=1)
    found = harmonic_peaks(field)
    assert_close(found.directions, torch.zeros_like(found.directions))
    assert (found.number == 0).all()


@pytest.mark.skipif(shutil.which("sh2peaks") is None, reason="needs MRtrix3")
@pytest.mark.parametrize("handed", ["right", "left"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.7, 1.7, 5.0)], ids=["iso", "thick"])
def test_mrtrix_finds_the_same_peaks_in_what_is_written(
    tmp_path: Path, handed: str, spacing: tuple[float, ...]
):
    """A field in the voxel frame of an oblique grid is written; `sh2peaks` gives world directions of the file."""
    axes, _ = torch.linalg.qr(
        torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    )
    axes = axes * torch.linalg.det(axes)
    if handed == "left":
        axes = axes * torch.tensor([-1.0, 1.0, 1.0])
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = axes * torch.tensor(spacing)
    directions, weights = crossings(60)
    field = lobes(directions, weights)
    image = MetaTensor(field.unflatten(1, (5, 4, 3)).float(), affine=affine)
    write_harmonics(tmp_path / "fod.nii", image, frame="voxel")
    subprocess.run(["sh2peaks", "-num", "2", "-quiet", "fod.nii", "peaks.nii"], cwd=tmp_path, check=True)
    theirs = torch.from_numpy(np.asarray(nibabel.load(tmp_path / "peaks.nii").get_fdata())).reshape(60, 2, 3)
    ours = harmonic_peaks(field, count=2)
    world = ours.directions @ grid_rotation(affine).T
    length = theirs.norm(dim=2)
    assert degrees(world, theirs / length.unsqueeze(2)).max() < 0.2
    assert_close(length, ours.amplitudes, rtol=1e-3, atol=0)
    assert (
        degrees(ours.directions[:, 0], theirs[:, 0] / length[:, :1]).median() > 5
    )  # the control: another frame
