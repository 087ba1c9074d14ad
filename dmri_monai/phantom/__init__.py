"""A procedural brain with known truth: anatomy -> microstructure -> signal -> files.

Each stage is a value computed from the one before, so a stage can be replaced on its own:
:class:`Anatomy` (implicit tissue in world millimetres) -> :class:`Microstructure` (compartments per voxel) ->
:func:`simulate` (signal on any gradient table) -> :class:`Subject` -> :func:`write_dataset` (BIDS).
"""

from dmri_monai.phantom.anatomy import Anatomy
from dmri_monai.phantom.dataset import write_dataset, write_subject
from dmri_monai.phantom.microstructure import Contrast, Microstructure
from dmri_monai.phantom.schemes import draw_scheme, shell_table
from dmri_monai.phantom.signal import simulate
from dmri_monai.phantom.subject import Subject, make_subject

__all__ = [
    "Anatomy",
    "Contrast",
    "Microstructure",
    "Subject",
    "draw_scheme",
    "make_subject",
    "shell_table",
    "simulate",
    "write_dataset",
    "write_subject",
]
