"""What is learned: tissue and its fractions, lesions, number of fibres, fibre orientation and its density."""

from dmri_monai.tasks.registry import TASKS, find_task
from dmri_monai.tasks.task import Task

__all__ = ["TASKS", "Task", "find_task"]
