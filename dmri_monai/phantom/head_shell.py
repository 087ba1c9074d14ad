"""What lies around the brain, in the millimetres of the MNI152 template: eyes, air, face, neck, spinal canal.

Skull, scalp and meninges follow the brain's surface and are drawn anew for every scan (`phantom.head_sampling`); here
are the places that do not.  Rough anatomy, our own choice: what matters is that a network meets it at all.
"""

from __future__ import annotations

import numpy as np

__all__ = ["CAVITIES_MM", "REGIONS", "regions"]

Point = tuple[float, float, float]
REGIONS = ("none", "face", "neck", "orbit", "air", "eye", "canal", "cord")  # later ones lie over earlier ones

# region: centre and semi-axes (mm) of ellipsoids
ELLIPSOIDS: dict[str, tuple[tuple[Point, Point], ...]] = {
    "face": (((0, 42, -62), (62, 62, 62)),),
    "neck": (((0, -38, -110), (62, 62, 75)),),
    "orbit": (((31, 48, -40), (20, 28, 18)),),
    "air": (
        ((0, 24, -34), (12, 13, 10)),  # sphenoid sinus
        ((0, 47, -38), (9, 20, 12)),  # ethmoid cells
        ((12, 72, -4), (14, 7, 12)),  # frontal sinus
        ((27, 50, -66), (13, 17, 16)),  # maxillary sinus
        ((7, 58, -62), (5, 24, 13)),  # nasal cavity
        ((0, 8, -80), (11, 10, 32)),  # pharynx
        ((50, -30, -38), (8, 10, 14)),  # mastoid cells
        ((66, -14, -34), (14, 4, 4)),  # ear canal
    ),
    "eye": (((32, 62, -40), (12.3, 12.3, 12.3)),),
}
CANAL_MM: tuple[Point, Point] = ((0, -47, -78), (0, -56, -170))  # axis of the spinal canal
CANAL_RADIUS_MM, CORD_RADIUS_MM = 10.0, 5.5
# centre (mm) and radius (mm) of the air that disturbs the magnetic field
CAVITIES_MM: tuple[tuple[Point, float], ...] = (
    ((0, 27, -34), 17.0),
    ((0, 60, -12), 14.0),
    ((50, -28, -40), 12.0),
    ((-50, -28, -40), 12.0),
    ((0, 45, -65), 22.0),
)


def regions(points_mm: np.ndarray) -> np.ndarray:
    """(...) uint8 index into `REGIONS` at template millimetres (3, ...)."""
    found = np.zeros(points_mm.shape[1:], np.uint8)
    right = np.stack([np.abs(points_mm[0]), points_mm[1], points_mm[2]])
    for name, shapes in ELLIPSOIDS.items():
        for centre, axes in shapes:
            found[_inside(right, centre, axes)] = REGIONS.index(name)
    distance = _from_axis(points_mm)
    found[distance < CANAL_RADIUS_MM] = REGIONS.index("canal")
    found[distance < CORD_RADIUS_MM] = REGIONS.index("cord")
    return found


def _inside(points: np.ndarray, centre: Point, axes: Point) -> np.ndarray:
    total = sum(((points[i] - centre[i]) / axes[i]) ** 2 for i in range(3))
    inside: np.ndarray = np.asarray(total) < 1
    return inside


def _from_axis(points: np.ndarray) -> np.ndarray:
    """mm to the axis of the spinal canal; infinite above it."""
    (_, y0, z0), (_, y1, z1) = CANAL_MM
    along = (points[2] - z0) / (z1 - z0)
    y = y0 + along * (y1 - y0)
    distance: np.ndarray = np.where(along > 0, np.hypot(points[0], points[1] - y), np.inf)
    return distance
