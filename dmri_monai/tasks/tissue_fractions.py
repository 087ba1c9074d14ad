"""How much of a voxel is white matter, grey matter and cerebrospinal fluid."""

from dmri_monai.tasks.outputs import Fractions
from dmri_monai.tasks.task import Task

__all__ = ["FRACTIONS"]

FRACTIONS = Task(
    name="fractions",
    title="Tissue volume fractions",
    label="probseg",
    output=Fractions(),
    class_names=("WM", "GM", "CSF"),
    outside=float("nan"),
    instead=("dseg",),
    one_body=True,
)
