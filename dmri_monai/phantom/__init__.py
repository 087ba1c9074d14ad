"""Simulated brains with known truth: anatomy -> microstructure -> signal -> files or training items.

Two anatomies: "procedural" (small, fast to draw, no further packages) and "mni152" (an adult brain from the MNI152
template with an atlas of bundles; `phantom.mni`, needs nilearn).

Each stage is a value computed from the one before, so a stage can be replaced on its own:
:class:`Anatomy` (implicit tissue in world millimetres) -> :class:`Microstructure` (compartments per voxel) ->
:func:`simulate` (signal on any gradient table) -> :class:`Subject` -> :func:`write_dataset` (BIDS).
"""

from dmri_monai.phantom.anatomy import Anatomy
from dmri_monai.phantom.dataset import write_dataset, write_subject
from dmri_monai.phantom.head_bank import HeadSources, head_models
from dmri_monai.phantom.microstructure import Contrast, Microstructure
from dmri_monai.phantom.scan_plan import Acquisition
from dmri_monai.phantom.schemes import draw_scheme, shell_table
from dmri_monai.phantom.signal import simulate
from dmri_monai.phantom.stream import PhantomStream, subject_item
from dmri_monai.phantom.streamed_heads import StreamedHeads
from dmri_monai.phantom.subject import Subject, crossing_share, make_subject

__all__ = [
    "Acquisition",
    "Anatomy",
    "Contrast",
    "HeadSources",
    "Microstructure",
    "PhantomStream",
    "StreamedHeads",
    "Subject",
    "crossing_share",
    "draw_scheme",
    "head_models",
    "make_subject",
    "shell_table",
    "simulate",
    "subject_item",
    "write_dataset",
    "write_subject",
]
