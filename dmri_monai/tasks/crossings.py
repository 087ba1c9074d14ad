"""How many fibre populations cross in a voxel: none, one, two or three."""

from dmri_monai.tasks.outputs import Classes
from dmri_monai.tasks.task import Task
from dmri_monai.transforms.task_labels import DensityToCountd

__all__ = ["CROSSINGS"]

CROSSINGS = Task(
    name="crossings",
    title="Number of fibres",
    label="npeaks",
    output=Classes(4),
    class_names=("1 fibre", "2 fibres", "3 fibres"),
    follows={"fod": DensityToCountd},
)
