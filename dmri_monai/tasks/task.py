"""What a network can be trained for.

A task says what its label and its prediction are.  How it is trained and measured (loss, metrics) stands in the
bundle's configs, one file per task in `configs/tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from monai.transforms import MapTransform

from dmri_monai.tasks.outputs import Output

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """One task.

    label: ending of its label file in the BIDS derivatives, and of what is written.  class_names: of the foreground
    classes, numbered from 1; none for directions.  outside: value of the label where a brain mask is 0, which losses
    and metrics pass over.  instead: endings of label files from which the label follows where there is none of its own.
    one_body: what it tells of a head, taken together, is the brain, which is in one piece.
    follows: names of tasks from whose prediction this one's follows -> how: a transform of `pred` on the scan's grid.
    """

    name: str
    title: str
    label: str
    output: Output
    class_names: tuple[str, ...] = ()
    outside: float = -1.0
    instead: tuple[str, ...] = ()
    one_body: bool = False
    follows: Mapping[str, Callable[[str], MapTransform]] = field(default_factory=dict)

    @property
    def irreps_out(self) -> str:
        """Irreps of the network's output: "4x0e" for four classes, "1x2e" for an axis."""
        return self.output.irreps

    @property
    def n_classes(self) -> int | None:
        """Number of classes of the label, background included; None for other values."""
        return self.output.n_classes

    @property
    def labels(self) -> dict[str, str | tuple[str, ...]]:
        """For `dmri_monai.io.subjects`: key of the item -> ending of the file, or several to choose from."""
        return {"label": (self.label, *self.instead) if self.instead else self.label}

    def check(self) -> list[MapTransform]:
        """Checks of a freshly loaded label."""
        return self.output.check()
