"""All tasks by name."""

from dmri_monai.tasks.crossings import CROSSINGS
from dmri_monai.tasks.fibre_orientation import FOD
from dmri_monai.tasks.lesion import LESION
from dmri_monai.tasks.orientation import ORIENTATION
from dmri_monai.tasks.task import Task
from dmri_monai.tasks.tissue import TISSUE
from dmri_monai.tasks.tissue_fractions import FRACTIONS

__all__ = ["TASKS", "find_task"]

TASKS = {one.name: one for one in (TISSUE, LESION, CROSSINGS, ORIENTATION, FOD, FRACTIONS)}


def find_task(name: str) -> Task:
    """The task of that name; ValueError naming the choices."""
    if name not in TASKS:
        raise ValueError(f"task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]
