"""Lesions of multiple sclerosis."""

from dmri_monai.tasks.outputs import Score
from dmri_monai.tasks.task import Task

__all__ = ["LESION"]

LESION = Task(
    name="lesion", title="Lesion segmentation", label="lesion", output=Score(), class_names=("lesion",)
)
