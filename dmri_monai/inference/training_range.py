"""The range of the scans that a model was trained on."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dmri_monai.inference.spec_limits import LARGEST_NUMBER

__all__ = ["Strict", "TrainingRange"]

Value = Annotated[float, Field(strict=True, ge=0, le=LARGEST_NUMBER)]


class Strict(BaseModel):
    """A description whose fields are all known, finite, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=False)


class TrainingRange(Strict):
    """Lowest and highest value among the training scans; None where it is not known.

    directions: of the model's shells together.  bval: s/mm², of any shell.  voxel_mm: along any axis.  snr: of one
    b0 volume.
    """

    directions: tuple[Value, Value] | None = None
    bval: tuple[Value, Value] | None = None
    voxel_mm: tuple[Value, Value] | None = None
    snr: tuple[Value, Value] | None = None

    @field_validator("directions", "bval", "voxel_mm", "snr")
    @classmethod
    def _low_first(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("expected the lowest first")
        return value
