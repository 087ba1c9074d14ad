"""Scans with known directions and landmarks on any grid."""

from __future__ import annotations

import re

import torch
from monai.data import MetaTensor

from dmri_monai.gradients import GradientTable
from tests.check.fibres import positions, signal, table

CLASSES = {0: "background", 1: "white matter", 2: "grey matter"}


def fibres_along(world: tuple[float, float, float], affine: torch.Tensor) -> tuple[MetaTensor, GradientTable]:
    """A ball of 15 mm radius, about the grid's centre, of fibres along one world direction; air around it."""
    points = positions(affine)
    direction = torch.tensor(world, dtype=torch.float64)
    tangent = (direction / direction.norm()).expand(*points.shape).numpy()
    ball = (points**2).sum(-1) < 15.0**2
    gradients = table()
    image = signal(tangent, ball, gradients, sigma=5.0) * torch.tensor(ball)
    return MetaTensor(image.float(), affine=affine), gradients


def blob_at(world_mm: tuple[float, float, float], affine: torch.Tensor) -> torch.Tensor:
    """(X, Y, Z) label 1 within 5 mm of a point given relative to the grid's centre."""
    points = torch.tensor(positions(affine)) - torch.tensor(world_mm, dtype=torch.float64)
    return (points.norm(dim=-1) < 5.0).long()


def image_sources(html: str) -> list[str]:
    """Sources of all pictures of a page."""
    return re.findall(r'<img[^>]* src="([^"]+)"', html)
