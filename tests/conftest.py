"""Shared fixtures: the standard affines every direction feature is tested on, and the folder of real samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"

SPACINGS_MM = {"iso2": (2.0, 2.0, 2.0), "2x2x2.5": (2.0, 2.0, 2.5), "1.7x1.7x5": (1.7, 1.7, 5.0)}


def _turn(axis: int, degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn = torch.eye(3, dtype=torch.float64)
    turn[i, i] = turn[j, j] = angle.cos()
    turn[j, i], turn[i, j] = angle.sin(), -angle.sin()
    return turn


_OBLIQUE = _turn(2, 25.0) @ _turn(1, -15.0) @ _turn(0, 35.0)

# columns: the world direction (RAS+) of each array axis
ORIENTATIONS = {
    "LAS": torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)),
    "RAS": torch.eye(3, dtype=torch.float64),
    "PLS": torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64),
    "oblique-right": _OBLIQUE,
    "oblique-left": _OBLIQUE @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)),
}


def grid_affine(orientation: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """(4, 4) affine of a grid with axes `orientation` (columns) and a first voxel off the origin."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = orientation * torch.tensor(spacing_mm, dtype=torch.float64)
    affine[:3, 3] = torch.tensor([-31.5, 12.25, 40.0])
    return affine


STANDARD_AFFINES = {
    f"{name}-{size}": grid_affine(axes, spacing)
    for name, axes in ORIENTATIONS.items()
    for size, spacing in SPACINGS_MM.items()
}


@pytest.fixture(params=STANDARD_AFFINES.values(), ids=STANDARD_AFFINES.keys())
def standard_affine(request: pytest.FixtureRequest) -> torch.Tensor:
    """Every handedness x oblique x anisotropic affine in turn."""
    return request.param.clone()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of oracles and real samples beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real samples in {SHARED}")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
