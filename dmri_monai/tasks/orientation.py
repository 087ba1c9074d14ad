"""The principal fibre direction."""

from dmri_monai.tasks.outputs import Axis
from dmri_monai.tasks.task import Task
from dmri_monai.transforms.task_labels import DensityToAxisd

__all__ = ["ORIENTATION"]

ORIENTATION = Task(
    name="orientation",
    title="Principal fibre direction",
    label="peaks",
    output=Axis(),
    outside=float("nan"),
    follows={"fod": DensityToAxisd},
)
