"""Make the pictures of docs/frames.md: python docs/make_frames_figures.py [folder]."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import monai.transforms as mt
import numpy as np
import torch
from matplotlib.collections import LineCollection
from monai.data.meta_tensor import MetaTensor
from torch import Tensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.reorientation import finite_strain, reorient_signal
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.transforms import RandElasticDWId, ToVoxelFramed
from dmri_monai.transforms.random_rotation import rotated_affine
from dmri_monai.transforms.warp import bspline_warp, resample

SHAPE, SPACING = (40, 40, 5), 2.0
FAINT, STRONG = "#b8b8b8", "#ff6b5e"


def arc(points_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Fibre fraction (X, Y, Z) and unit direction (X, Y, Z, 3) at world `points_mm` (X, Y, Z, 3)."""
    x, y, _ = points_mm.unbind(-1)
    radius, angle = (x**2 / 1.6 + y**2).sqrt(), torch.atan2(y, x)
    inside = torch.sigmoid((6.0 - (radius - 21).abs()) / 0.8) * (angle.abs() < 2.4)
    tangent = torch.stack([-y * 1.6, x, torch.zeros_like(x)], dim=-1)
    return inside, tangent / tangent.norm(dim=-1, keepdim=True).clamp(min=1e-6)


def scan() -> dict:
    """An arc of fibres (three quarters of a ring) in water, in a slab seen from above; RAS grid."""
    affine = torch.diag(torch.tensor([SPACING, SPACING, SPACING, 1.0], dtype=torch.float64))
    affine[:3, 3] = -(torch.tensor(SHAPE, dtype=torch.float64) - 1) / 2 * SPACING
    grid = torch.stack(torch.meshgrid(*(torch.arange(n).double() for n in SHAPE), indexing="ij"), dim=-1)
    inside, tangent = arc(grid @ affine[:3, :3].T + affine[:3, 3])
    bvals = torch.cat([torch.zeros(1), torch.full((60,), 1000.0)])
    bvecs = torch.cat([torch.zeros(1, 3), spread_directions(60).float()])
    along = torch.einsum("xyzi,ni->nxyz", tangent, bvecs.double()) ** 2
    b = bvals.double().view(-1, 1, 1, 1)
    fibre, water = torch.exp(-b * (0.3e-3 + 1.4e-3 * along)), torch.exp(-b * 2.5e-3)
    signal = 100 * (inside * fibre + (1 - inside) * water)
    return {"image": MetaTensor(signal.float(), affine=affine), "bvals": bvals, "bvecs": bvecs}


def middle_slice(image: Tensor, bvals: Tensor, bvecs_voxel: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """FA (X, Y) and V1 (X, Y, 3) in the voxel frame, in the middle slice."""
    cut = image[..., image.shape[-1] // 2, None]
    metrics = tensor_metrics(fit_tensor(cut.unsqueeze(0), bvals.unsqueeze(0), bvecs_voxel.unsqueeze(0)))
    return metrics.fa[0, 0, ..., 0].numpy(), metrics.v1[0, ..., 0].movedim(0, -1).numpy()


def draw(axis: plt.Axes, fa: np.ndarray, v1: np.ndarray, title: str, colour: np.ndarray | str) -> None:
    """FA as grey values, V1 as sticks where FA is high (colours (X, Y, 4), or one), x to the right, y upwards."""
    axis.imshow(fa.T, origin="lower", cmap="gray", vmin=0, vmax=2.2, interpolation="nearest")
    i, j = np.nonzero(fa > 0.3)
    step = 0.45 * v1[i, j, :2]
    centres = np.stack([i, j], axis=-1)
    colours = colour if isinstance(colour, str) else colour[i, j]
    sticks = np.stack([centres - step, centres + step], axis=1)
    axis.add_collection(LineCollection(sticks, colors=colours, linewidths=1.5))
    axis.set_title(title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])


def turned_scans() -> plt.Figure:
    """A scan rotated and flipped: glyphs with stale b-vectors and with those of the current affine."""
    item = scan()
    before = ToVoxelFramed()(item)
    angle = np.radians(40)
    turn = torch.eye(3, dtype=torch.float64)
    turn[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = rotated_affine(item["image"].affine, SHAPE, turn)
    rotated = {**item, "image": mt.SpatialResample(align_corners=True)(item["image"], target, SHAPE)}
    flipped = mt.Flipd("image", 0)(item)
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 6.6), layout="constrained")
    for row, (after, name) in zip(
        axes, ((rotated, "rotated by 40°"), (flipped, "flipped left-right")), strict=True
    ):
        right = ToVoxelFramed()(after)["bvecs_voxel"]
        draw(
            row[0],
            *middle_slice(item["image"].as_tensor(), item["bvals"], before["bvecs_voxel"]),
            "scan",
            "#f2b01e",
        )
        plain = after["image"].as_tensor()
        draw(
            row[1],
            *middle_slice(plain, item["bvals"], before["bvecs_voxel"]),
            f"{name}: stale b-vectors",
            STRONG,
        )
        draw(row[2], *middle_slice(plain, item["bvals"], right), f"{name}: current affine", "#5fe06a")
    return figure


def warped_scans() -> plt.Figure:
    """An elastic warp: glyphs left as they were, turned by finite strain, and by the push-forward of the fibre."""
    item = scan()
    transform = RandElasticDWId(prob=1.0, strength=1.0, control_mm=18.0).set_random_state(11)
    ours = transform(item)["image"].as_tensor()
    rotation = grid_rotation(item["image"].affine)
    stretch = rotation.T @ item["image"].affine[:3, :3]
    warp = bspline_warp(transform.control, SHAPE, stretch, 18.0)
    naive = resample(item["image"].as_tensor(), warp.source, "bilinear", "zeros")
    vectors = item["bvecs"].double() @ rotation
    strain = finite_strain(warp.jacobian.flatten(0, 2)).float()
    finite = reorient_signal(naive.flatten(1), item["bvals"], vectors, strain).view_as(naive)
    affine = item["image"].affine
    _, fibres = arc(warp.source @ affine[:3, :3].T + affine[:3, 3])
    expected = torch.einsum("xyzij,xyzj->xyzi", warp.jacobian, fibres)[:, :, SHAPE[2] // 2].numpy()
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True).clip(min=1e-9)
    panels = ((naive, "voxels moved alone"), (finite, "finite strain alone"), (ours, "RandElasticDWId"))
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
    scale = plt.Normalize(0, 15)
    for axis, (image, title) in zip(axes, panels, strict=True):
        fa, v1 = middle_slice(image, item["bvals"], vectors)
        error = np.degrees(np.arccos(np.abs((v1 * expected).sum(-1)).clip(0, 1)))
        worst = np.quantile(error[fa > 0.3], 0.95)
        draw(axis, fa, v1, f"{title}: 95 % below {worst:.1f}°", plt.get_cmap("RdYlGn_r")(scale(error)))
    bar = plt.cm.ScalarMappable(scale, "RdYlGn_r")
    figure.colorbar(bar, ax=axes, label="angle to J v (degrees)", shrink=0.8)
    return figure


def frames() -> plt.Figure:
    """One direction in the world, and its components along the axes of three grids."""
    world = np.array([0.8, 0.6])
    grids = {"RAS": np.eye(2), "LAS (mirrored)": np.diag([-1.0, 1.0])}
    angle = np.radians(25)
    grids["oblique"] = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained")
    for axis, (name, q) in zip(axes, grids.items(), strict=True):
        for k in range(-3, 4):
            for a, b in ((0, 1), (1, 0)):
                line = np.array([q[:, a] * k - q[:, b] * 3, q[:, a] * k + q[:, b] * 3]) / 3
                axis.plot(*line.T, color=FAINT, linewidth=0.7)
        for vector, colour, label in (
            (q[:, 0], "#2b6cb0", "i"),
            (q[:, 1], "#37a33c", "j"),
            (world, "#b3261e", "g"),
        ):
            axis.annotate(
                "", vector, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2}
            )
            axis.text(*(vector * 1.12), label, color=colour, ha="center", va="center", fontsize=12)
        inner = q.T @ world
        axis.set_title(f"{name}: g = 0.80 x + 0.60 y\n= {inner[0]:.2f} i + {inner[1]:.2f} j", fontsize=10)
        axis.set_xlim(-1.35, 1.35)
        axis.set_ylim(-1.35, 1.35)
        axis.set_aspect("equal")
        axis.axis("off")
    return figure


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in (("frames", frames), ("frames-turned", turned_scans), ("frames-warped", warped_scans)):
        figure = make()
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
