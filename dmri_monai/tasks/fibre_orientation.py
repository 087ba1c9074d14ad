"""The fibre orientation density of white matter."""

from dmri_monai.tasks.outputs import Density
from dmri_monai.tasks.task import Task

__all__ = ["FOD"]

FOD = Task(
    name="fod",
    title="Fibre orientation density",
    label="fod",
    output=Density(),
    outside=float("inf"),  # NaN stands for no peak
    instead=("peaks",),
)
