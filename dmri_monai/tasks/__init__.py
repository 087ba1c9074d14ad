"""What is learned: tissue, lesions, number of fibre crossings, fibre orientation."""

from dmri_monai.tasks.registry import TASKS, find_task
from dmri_monai.tasks.task import Task

__all__ = ["TASKS", "Task", "find_task"]
