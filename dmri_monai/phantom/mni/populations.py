"""Fibre populations of a point: the bundles that pass, the fan to the cortex and short association fibres."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmri_monai.phantom.fields import SmoothField
from dmri_monai.phantom.microstructure import MAX_POPULATIONS
from dmri_monai.phantom.mni.atlas import Tract, tracts
from dmri_monai.phantom.mni.template import Template

__all__ = ["bundle_densities", "fibre_populations"]

REACH = 2.6  # radii: beyond it a bundle's density is below 0.035 and counts as none
BLEND_MM = 2.5  # neighbouring centre lines blend over this distance
CANDIDATES = 6  # densest populations that are merged to at most `MAX_POPULATIONS`
MERGE_DEG = 25.0  # populations closer than this are one
FAN = 0.85  # density of the fibres towards the cortex, beside a bundle's core density of 1
FAN_IN_BUNDLE = 0.15  # what remains of it in a bundle denser than `DENSE`
DENSE = 0.7
MIDLINE_MM = 9.0  # within it the cerebrum holds commissures alone
CEREBRUM_Z_MM = -12.0
ASSOCIATION = 0.75  # mean density of short fibres across the fan
CHUNK = 8_000


def bundle_densities(p: Tensor) -> Tensor:
    """(P, 3) template mm -> (K, P) density in [0, 1] of each of :func:`tracts`."""
    return torch.stack([_density(tract, p)[0] for tract in tracts()])


def fibre_populations(template: Template, p: Tensor) -> tuple[Tensor, Tensor]:
    """(P, 3) template mm -> shares (P, 3), descending, sum 1, and unit template directions (P, 3, 3)."""
    density = p.new_zeros(len(tracts()) + 3, len(p))
    direction = p.new_zeros(len(density), len(p), 3)
    for k, tract in enumerate(tracts()):
        density[k], direction[k] = _density(tract, p)
    core = density.amax(dim=0)
    for k, (d, v) in enumerate(_background(template, p, core), start=len(tracts())):
        density[k], direction[k] = d, v
    top, index = density.topk(CANDIDATES, dim=0)
    chosen = direction.gather(0, index.unsqueeze(-1).expand(-1, -1, 3))
    return _merged(top.T, chosen.transpose(0, 1))


def _density(tract: Tract, p: Tensor) -> tuple[Tensor, Tensor]:
    """Density (P,) and unit direction (P, 3) of one bundle: those of its nearest centre lines."""
    samples, tangents = tract.points.to(p), tract.tangents.to(p)
    reach = REACH * tract.radius_mm
    low, high = samples.amin(dim=0) - reach, samples.amax(dim=0) + reach
    near = torch.nonzero(((p > low) & (p < high)).all(dim=1)).flatten()
    density, direction = p.new_zeros(len(p)), p.new_zeros(len(p), 3)
    for index in near.split(CHUNK):
        squared = _squared_distances(p[index], samples)
        nearest = squared.amin(dim=1)
        close = nearest < reach**2
        index, squared, nearest = index[close], squared[close], nearest[close]
        blend = torch.exp((nearest.unsqueeze(1) - squared) / (2 * BLEND_MM**2))
        density[index] = torch.exp(-nearest / (2 * tract.radius_mm**2))
        direction[index] = torch.nn.functional.normalize(blend @ tangents, dim=1)
    return density, direction


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    product = torch.addmm(b.square().sum(dim=1), a, b.T, alpha=-2)
    return (product + a.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _background(template: Template, p: Tensor, core: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Densities and directions of the fan, and of two short populations across it that come and go.

    core (P,): density of the densest bundle, which displaces the others.
    """
    fan = torch.nn.functional.normalize(template.fan.at(p), dim=1)
    along, across = _tangents(fan)
    texture = _texture()(p)
    room = 1 - (1 - FAN_IN_BUNDLE) * (core / DENSE).clamp(max=1)
    near_midline = torch.exp(-((p[:, 0] / MIDLINE_MM) ** 2)) * torch.sigmoid((p[:, 2] - CEREBRUM_Z_MM) / 2)
    room = room * (1 - 0.97 * near_midline)
    short = ASSOCIATION * room.unsqueeze(1) * torch.sigmoid(2.5 * texture)
    return [(FAN * room, fan), (short[:, 0], along), (0.6 * short[:, 1], across)]


def _tangents(fan: Tensor) -> tuple[Tensor, Tensor]:
    """Unit directions across `fan` (P, 3): the one closest to anterior-posterior, and the third axis."""
    ap = fan.new_tensor([0.0, 1.0, 0.15]).expand_as(fan)
    lr = fan.new_tensor([1.0, 0.0, 0.15]).expand_as(fan)
    share = (fan * ap).sum(dim=1, keepdim=True).square()
    guide = ap * (1 - share) + lr * share * torch.where(fan[:, :1] < 0, -1.0, 1.0)
    along = torch.nn.functional.normalize(guide - (guide * fan).sum(1, keepdim=True) * fan, dim=1)
    return along, torch.linalg.cross(fan, along)


def _texture() -> SmoothField:
    """Where in the template short fibres are dense: the same in every subject."""
    return SmoothField.draw(np.random.default_rng(152), n_waves=16, wavelength_mm=(18.0, 45.0), channels=2)


def _merged(density: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """(P, K) and (P, K, 3), descending -> shares (P, 3) and directions (P, 3, 3): near-parallel ones joined."""
    density, direction = density.clone(), direction.clone()
    limit = float(np.cos(np.deg2rad(MERGE_DEG)))
    for j in range(1, CANDIDATES):
        cosine = torch.einsum("pid,pd->pi", direction[:, :j], direction[:, j])
        cosine = torch.where(density[:, :j] > 0, cosine, 0.0)
        closest = cosine.abs().argmax(dim=1)
        value = cosine.gather(1, closest.unsqueeze(1)).squeeze(1)
        joins = torch.nonzero((value.abs() > limit) & (density[:, j] > 0)).flatten()
        into = closest[joins]
        sign = value[joins].sign().unsqueeze(1)
        old, new = density[joins, into].unsqueeze(1), density[joins, j].unsqueeze(1)
        mean = old * direction[joins, into] + new * sign * direction[joins, j]
        direction[joins, into] = torch.nn.functional.normalize(mean, dim=1)
        density[joins, into] += density[joins, j]
        density[joins, j] = 0
    top, index = density.topk(MAX_POPULATIONS, dim=1)
    shares = top / top.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return shares, direction.gather(1, index.unsqueeze(-1).expand(-1, -1, 3))
