"""What is learned: tissue, lesions, number of fibre crossings, fibre orientation."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "TASKS": "tasks",
        "Task": "tasks",
        "task": "tasks",
    },
)
