"""White matter, grey matter and cerebrospinal fluid."""

from dmri_monai.tasks.outputs import Classes
from dmri_monai.tasks.task import Task

__all__ = ["TISSUE"]

TISSUE = Task(
    name="tissue",
    title="Tissue segmentation",
    label="dseg",
    output=Classes(4),
    class_names=("WM", "GM", "CSF"),
    outside=0.0,  # the brain's outside is the background class
    one_body=True,
)
