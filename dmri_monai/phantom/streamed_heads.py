"""Training heads that look like real scans, never the same twice, made as fast as a network asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional

from dmri_monai.artifacts.noise import noncentral_chi, rician
from dmri_monai.phantom.fields import Seed, stage_rng
from dmri_monai.phantom.head_contrast import draw_contrast
from dmri_monai.phantom.head_model import HeadModel
from dmri_monai.phantom.head_pose import draw_pose
from dmri_monai.phantom.head_protocol import MOST_DIRECTIONS, PLANE_MM, HeadProtocol, draw_protocol
from dmri_monai.phantom.head_sampling import CLASSES, SampledHead, sample_head
from dmri_monai.phantom.head_signal import SPREAD, head_signal, orientation_density
from dmri_monai.phantom.stream import ItemStream

__all__ = ["StreamedHeads", "make_head_item"]

LEAST_TISSUE = 0.02  # of the voxels: a grid with less is drawn again
TRIES = 5
OWN = (
    "noise",
    "ghost",
    "fat_shift",
    "susceptibility",
    "bias_field",
)  # artifacts that the heads have of their own
HAZE = 7  # voxels
GRAIN = 3  # voxels between the nodes of the texture


class StreamedHeads(ItemStream):
    """Items of heads of `models` (`head_bank.head_models`), `length` per epoch; see :func:`make_head_item`.

    size: most voxels along an axis.  artifact_share: of the scans that get further artifacts from the engine.
    Other arguments, seeding and workers: :class:`dmri_monai.phantom.stream.ItemStream`.
    """

    def __init__(
        self,
        models: Mapping[str, HeadModel],
        *,
        length: int,
        seed: int = 0,
        size: int = 56,
        artifact_share: float = 0.3,
        transform: Callable[[dict[str, Any]], Any] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(length=length, seed=seed, transform=transform, rank=rank, world_size=world_size)
        if not models:
            raise ValueError("models: none, expected at least one head")
        if size < 8:
            raise ValueError(f"size: {size}, expected at least 8 voxels")
        self.models, self.size, self.artifact_share = dict(models), size, artifact_share

    def made(self, seed: Seed) -> dict[str, Any]:
        return make_head_item(seed, self.models, size=self.size, artifact_share=self.artifact_share)


def make_head_item(
    seed: Seed,
    models: Mapping[str, HeadModel],
    *,
    size: int = 56,
    artifact_share: float = 0.3,
    most_directions: int = MOST_DIRECTIONS,
    finest_mm: float = PLANE_MM[0],
) -> dict[str, Any]:
    """One scan of one head with its truth, a function of `seed` (and of the models); options of `draw_protocol`.

    image (N, X, Y, Z): raw signal; bvals (N,), bvecs (N, 3): world frame.  label (1, X, Y, Z): 0 outside the
    brain, 1 WM, 2 GM, 3 CSF; mask: label > 0.  fractions (3, X, Y, Z): of WM, GM, CSF.  fod (45, X, Y, Z): even
    harmonics to degree 8 in the world frame, whose integral over the sphere is the fraction of WM.  peaks (9, X,
    Y, Z): x y z of up to three populations, length the volume fraction, NaN for none.  All of these MetaTensors
    on the same grid.
    """
    rng = stage_rng(seed, "streamed-head")
    name = sorted(models)[int(rng.integers(len(models)))]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for _ in range(TRIES):
        protocol = draw_protocol(
            rng, size, artifact_share=artifact_share, most_directions=most_directions, finest_mm=finest_mm
        )
        contrast = draw_contrast(rng)
        pose = draw_pose(rng, models[name], protocol.phase_world, te_ms=contrast.te_ms)
        head = sample_head(models[name], pose, protocol.affine, protocol.shape, generator)
        if float(head.fractions[:2].sum(0).mean()) > LEAST_TISSUE:
            break
    smooth = _texture(protocol.shape, generator)
    spread = contrast.dispersion * torch.exp(SPREAD * smooth[3, head.index])
    spread *= 1 + 2 * head.fractions[1, head.index]
    density = orientation_density(head, spread)
    truth = _truth(head, density, protocol)
    shifted = replace(head, fractions=_fat_moved(head.fractions, protocol))
    clean = head_signal(shifted, contrast, protocol.table, density, smooth[:3]).view(-1, *protocol.shape)
    image = _scanned(clean, truth["mask"], head, protocol, generator)
    return {
        "image": MetaTensor(image, affine=protocol.affine),
        "bvals": protocol.table.bvals.float(),
        "bvecs": protocol.table.bvecs.float(),
        **{key: MetaTensor(value, affine=protocol.affine) for key, value in truth.items()},
    }


def _texture(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """(4, V) random maps, coarse and fine grain, SD about 1."""
    total = torch.zeros(4, *shape)
    for grain in (GRAIN, 4 * GRAIN):
        nodes = [max(2, math.ceil(n / grain) + 1) for n in shape]
        noise = torch.randn((1, 4, *nodes), generator=generator)
        total += functional.interpolate(noise, shape, mode="trilinear", align_corners=True)[0]
    return total.flatten(1)


def _truth(head: SampledHead, density: Tensor, protocol: HeadProtocol) -> dict[str, Tensor]:
    """What a network is to find, each (C, X, Y, Z) float32."""
    tissue = head.fractions[:3]
    outside = 1 - tissue.sum(0, keepdim=True)
    label = torch.cat([outside, tissue]).argmax(0, keepdim=True).float()
    fod = density.new_zeros(len(density), tissue.shape[1]).index_copy_(1, head.index, density)
    lengths = head.shares * tissue[0, head.index, None]
    vectors = (head.directions * lengths[..., None]).where(lengths[..., None] > 0, torch.nan)
    peaks = torch.full((9, tissue.shape[1]), torch.nan).index_copy_(1, head.index, vectors.flatten(1).T)
    found = {"label": label, "mask": (label > 0).float(), "fractions": tissue, "fod": fod, "peaks": peaks}
    return {key: value.reshape(-1, *protocol.shape).contiguous() for key, value in found.items()}


def _fat_moved(fractions: Tensor, protocol: HeadProtocol) -> Tensor:
    """(K, V), fat shifted along phase encoding, wrapped at the field of view."""
    fat = CLASSES.index("fat")
    moved = fractions.clone()
    volume = fractions[fat].view(protocol.shape)
    moved[fat] = volume.roll(protocol.fat_shift, protocol.phase_axis).flatten()
    return moved


def _scanned(
    clean: Tensor, mask: Tensor, head: SampledHead, protocol: HeadProtocol, generator: torch.Generator
) -> Tensor:
    """Raw image (N, X, Y, Z): ghost, artifacts, noise, the scanner's filters and units."""
    image = clean.clamp_(min=0)
    axis = protocol.phase_axis + 1
    if protocol.haze:
        image = torch.lerp(image, _hazy(image), protocol.haze)
    if protocol.ghost:
        image = image + protocol.ghost * image.roll(image.shape[axis] // 2, axis)
    if protocol.artifacts:
        image = _corrupted(image, protocol, generator)
    unweighted = image[protocol.table.b0_mask].mean(0)
    white = (head.fractions[0] > 0.7).view(protocol.shape)
    reference = float(unweighted[white].mean()) if white.any() else float(unweighted.max())
    sigma = reference / protocol.snr
    noise: Tensor | float = sigma
    if protocol.g_factor > 1:
        noise = sigma * (1 + (protocol.g_factor - 1) * _middle(protocol.shape))
    if protocol.coils > 1:
        image = noncentral_chi(image, sigma=noise, coils=protocol.coils, generator=generator)
    else:
        image = rician(image, sigma=noise, generator=generator)
    if protocol.blur:
        image = _blurred(image, protocol)
    if protocol.cut:
        image = image * (image[protocol.table.b0_mask].mean(0) > protocol.cut * reference)
    if protocol.masked:
        image = image * functional.max_pool3d(mask, 3, 1, 1)
    image = image * (protocol.level / max(reference, 1e-6))
    return image.round_() if protocol.whole else image


def _hazy(image: Tensor) -> Tensor:
    """`image` (N, X, Y, Z) averaged over `HAZE` voxels: the tails of the point spread of echo-planar readouts."""
    coarse = functional.avg_pool3d(image[None], HAZE, GRAIN, HAZE // 2)
    return functional.interpolate(coarse, image.shape[1:], mode="trilinear")[0]


def _middle(shape: tuple[int, int, int]) -> Tensor:
    """(X, Y, Z) 1 in the middle, 0 at the corners: where parallel imaging is worst."""
    axes = [torch.linspace(-1, 1, n) for n in shape]
    x, y, z = torch.meshgrid(*axes, indexing="ij")
    return (1 - (x**2 + y**2 + z**2) / 3).square()


def _blurred(image: Tensor, protocol: HeadProtocol) -> Tensor:
    """Three-point average along the two axes in plane, the border repeated."""
    for axis in (a + 1 for a in range(3) if a != protocol.slice_axis):
        n = image.shape[axis]
        before = torch.cat([image.narrow(axis, 0, 1), image.narrow(axis, 0, n - 1)], axis)
        after = torch.cat([image.narrow(axis, 1, n - 1), image.narrow(axis, n - 1, 1)], axis)
        image = image * (1 - 2 * protocol.blur) + (before + after) * protocol.blur
    return image


def _corrupted(image: Tensor, protocol: HeadProtocol, generator: torch.Generator) -> Tensor:
    """`image` with artifacts of the engine's preset, but those that the head has already."""
    from dmri_monai.artifacts.engine.corruption import corrupt
    from dmri_monai.artifacts.engine.presets import load_preset

    preset = load_preset(protocol.artifacts or "light")
    chosen = replace(preset, artifacts=tuple(a for a in preset.artifacts if a.name not in OWN))
    slices = protocol.affine[:3, protocol.slice_axis]
    corrupted, _ = corrupt(
        image,
        protocol.table.bvals.float(),
        protocol.table.in_voxel_frame(protocol.affine).float(),
        affine=protocol.affine,
        preset=chosen,
        seed=int(torch.randint(2**31, (1,), generator=generator)),
        meta={"phase_encoding_world": protocol.phase_world, "slice_world": slices / slices.norm()},
    )
    return corrupted
