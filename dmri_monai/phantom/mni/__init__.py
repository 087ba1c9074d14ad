"""Heads from the MNI152 template: tissue, fibre atlas, lesions and microstructure of an adult brain.

Needs nilearn (the extra `phantom`), whose wheel holds the template; nothing is downloaded.
"""

from dmri_monai.phantom.mni.atlas import Tract, tracts
from dmri_monai.phantom.mni.mni_anatomy import MniAnatomy
from dmri_monai.phantom.mni.mni_lesions import MsLesions
from dmri_monai.phantom.mni.mni_microstructure import build_microstructure, draw_contrast
from dmri_monai.phantom.mni.mni_signal import simulate_by_harmonics
from dmri_monai.phantom.mni.template import load_template
from dmri_monai.phantom.mni.truth import MAPS, truth_maps

__all__ = [
    "MAPS",
    "MniAnatomy",
    "MsLesions",
    "Tract",
    "build_microstructure",
    "draw_contrast",
    "load_template",
    "simulate_by_harmonics",
    "tracts",
    "truth_maps",
]
