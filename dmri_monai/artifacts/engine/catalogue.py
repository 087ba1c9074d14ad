"""Every random artifact by its name."""

from __future__ import annotations

from dmri_monai.artifacts.engine import (
    random_distortion,
    random_gradients,
    random_intensity,
    random_kspace,
    random_line_filters,
    random_motion,
    random_noise,
)
from dmri_monai.artifacts.engine.artifact import Artifact

__all__ = ["ARTIFACTS"]

# In physical order: signal, then distortion, then k-space, then noise.
ARTIFACTS: dict[str, type[Artifact]] = {
    kind.name: kind
    for kind in (
        random_gradients.GradientNonlinearity,
        random_motion.Motion,
        random_motion.SliceMotion,
        random_intensity.Vibration,
        random_intensity.SliceDropout,
        random_intensity.VenetianBlind,
        random_intensity.BiasField,
        random_intensity.Drift,
        random_distortion.FatShift,
        random_distortion.Susceptibility,
        random_distortion.EddyCurrents,
        random_kspace.Aliasing,
        random_kspace.HermitianPartialFourier,
        random_line_filters.PartialFourier,
        random_line_filters.T2StarBlur,
        random_line_filters.Gibbs,
        random_line_filters.Ghost,
        random_kspace.Spike,
        random_kspace.Zipper,
        random_noise.Noise,
    )
}
