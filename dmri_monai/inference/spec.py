"""One description of a model: its network, what the network takes in, what it was trained for and on.

A :class:`ModelSpec` is written beside the weights (`model.json` beside `model.pt`) and read again by everything that
uses them.  Its fields are the keys of the bundle's configs and the only place where their defaults stand: a new setting
of a model is a new field here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from dmri_monai.inference.components import as_data, check_components, made
from dmri_monai.inference.spec_history import converted
from dmri_monai.inference.spec_limits import (
    LARGEST_DEGREE,
    LARGEST_NUMBER,
    check_deconvolution,
    check_irreps,
    check_plain,
    check_sizes,
    short,
)
from dmri_monai.inference.training_range import Strict, TrainingRange
from dmri_monai.io.checksums import checked, with_checksum
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.present import present
from dmri_monai.io.writing import replacing
from dmri_monai.qspace.shell_fit import ShellFit, harmonic_irreps
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.so3 import as_irreps
from dmri_monai.tasks.registry import TASKS

__all__ = ["FORMAT_VERSION", "ModelSpec", "spec_path"]

FORMAT_VERSION = 2
MOST_LEVELS = 8  # of an equivariant network

# what the network takes in: whatever shells a scan has, harmonic channels of named shells, fixed directions, or the
# samples with their table
TAKES = {
    "any": "shell-set",
    "invariants": "shell-set",
    "equivariant": "harmonics",
    "plain": "harmonics",
    "plain-directions": "directions",
    "pq": "samples",
}
Architecture = Literal["any", "invariants", "equivariant", "plain", "plain-directions", "pq"]
BY_LEVELS = ("any", "equivariant")  # architectures whose size may list the irreps of every level
SHELL_SET = {"shells": (), "order_scale": None}  # of a set of shells, which has no use for them
SHELL_SET_DEGREE, LARGEST_SHELL_SET_DEGREE = 6, 8  # of the harmonics of each shell
Policy = Literal["error", "zero"]
Bval = Annotated[float, Field(strict=True, gt=0, le=50_000)]
Millimetres = Annotated[float, Field(strict=True, ge=0.1, le=50)]
Directions = Annotated[int, Field(strict=True, ge=1, le=10_000)]
# marks the settings that say what the channels mean: weights made under others fit in shape only
MEANING = "meaning"


class ModelSpec(Strict):
    """What a network is, what it takes in, and what it was trained for.

    task: what it predicts; None for a pretrained network, which has no task yet.
    learned: the task that its network was trained for, where the prediction follows from that one's: the main direction
        and the number of fibres from their density ("fod").  None: `task` itself.
    architecture: "any" (AnyProtocolUNet on the scan's own shells, whatever their number and b-values), "invariants"
        (InvariantUNet on rotation invariants of these shells, for tasks without directions), "equivariant"
        (EquivariantUNet on harmonic channels of named shells), "plain" (PlainUNet on the same channels),
        "plain-directions" (PlainUNet on S/S0 in `n_directions` resampled directions per shell, as published in 2022),
        "pq" (PQSegmentationNet on the samples themselves).
    size: "tiny", "small" or "base"; for "any" and "equivariant" also the irreps of every level.
    network_options: further arguments of the network's class, e.g. {"filters": 24}; kernels as {"_target_": name, ...}.
    shells (s/mm²), shell_tolerance, l_max, order_scale, missing, insufficient_directions: how shells become channels,
        as of :class:`dmri_monai.qspace.shell_fit.ShellFit`.  b0_threshold: volumes up to this b-value (s/mm²) are b0.
        For "any" and "invariants" only l_max (then 6 by default) and b0_threshold count, and shells is empty.
    slots: of these two, as of :func:`dmri_monai.qspace.shell_set.shell_set`: scans with more shells have them merged.
    n_directions: of "plain-directions".  spacing_mm: voxel size the network sees; None: that of each scan.
    body_mm: of tissue alone: depth of the opening, mm, after which the largest body of what is predicted stays, as of
        :class:`dmri_monai.transforms.KeepBrainBodyd`; None: all that the network tells.
    fill_extracted: of tissue alone, for networks that learned from whole heads: most of the voxels with signal, as a
        share, that the network leaves to no tissue where the brain was extracted; each is then given to one, as of
        :class:`dmri_monai.transforms.FillExtractedBraind`.  None: what the network tells.
    subsample_directions: fewest and most directions per shell that training left in a scan; None: all of them.
    trained_on: ranges of the training scans, written by :class:`dmri_monai.training.Checkpoint`.  scans: of released
        models, name of each training scan -> hash of its gradient table.
    sha256: of the weights' file.  previous_sha256: of the weights that these replaced, which are as good.
    """

    format_version: Literal[2] = FORMAT_VERSION  # type: ignore[assignment]
    task: str | None = None
    learned: str | None = None
    architecture: Annotated[Architecture, MEANING] = "any"
    size: Annotated[str | tuple[str, ...], MEANING] = "small"
    network_options: Annotated[dict[str, Any], MEANING] = Field(default_factory=dict)
    shells: Annotated[tuple[Bval, ...], Field(max_length=16)] = (1000.0,)
    shell_tolerance: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.2
    l_max: Annotated[int, MEANING, Field(strict=True, ge=0, le=LARGEST_DEGREE, multiple_of=2)] = 4
    order_scale: Annotated[
        tuple[Annotated[float, Field(strict=True, gt=0, le=LARGEST_NUMBER)], ...] | None, MEANING
    ] = (1.0, 15.0, 20.0)
    missing: Annotated[Policy, MEANING] = "error"
    insufficient_directions: Policy = "error"
    b0_threshold: Annotated[float, Field(strict=True, ge=0, le=1000)] = 50.0
    slots: Annotated[int, MEANING, Field(strict=True, ge=1, le=16)] = 4
    n_directions: Annotated[int, MEANING, Field(strict=True, ge=6, le=1000)] = 64
    spacing_mm: tuple[Millimetres, Millimetres, Millimetres] | None = (2.5, 2.5, 2.5)
    body_mm: Annotated[float, Field(strict=True, gt=0, le=20)] | None = None
    fill_extracted: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    subsample_directions: tuple[Directions, Directions] | None = None
    trained_on: TrainingRange = TrainingRange()
    scans: Annotated[dict[str, str], Field(max_length=100_000)] = Field(default_factory=dict)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    previous_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None

    @field_validator("task", "learned")
    @classmethod
    def _known_task(cls, value: str | None) -> str | None:
        if value is not None and value not in TASKS:
            raise ValueError(f"expected one of {', '.join(TASKS)}, or none")
        return value

    @field_validator("subsample_directions", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("network_options", mode="before")
    @classmethod
    def _plain_options(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping from arguments to values")
        options = as_data(value)
        check_components(options)
        check_sizes(options)
        plain: dict[str, Any] = as_data(made(options))  # one spelling for equal components
        return plain

    @model_validator(mode="before")
    @classmethod
    def _harmless(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for name, value in values.items():
                if name != "scans":  # names of files, which are never parsed
                    check_plain(as_data(value), str(name))
            default = cls.model_fields["architecture"].default
            if TAKES.get(str(values.get("architecture", default))) == "shell-set":
                return {"l_max": SHELL_SET_DEGREE, **values, **SHELL_SET}
        return values

    @model_validator(mode="after")
    def _follows(self) -> ModelSpec:
        known = TASKS[self.task].follows if self.task else {}
        if self.learned is not None and self.learned not in known:
            raise ValueError(f"learned is {self.learned!r}, from which {self.task!r} does not follow")
        return self

    @model_validator(mode="after")
    def _one_body(self) -> ModelSpec:
        if self.task is not None and not TASKS[self.task].one_body:
            if self.body_mm is not None:
                raise ValueError(
                    f"body_mm is {self.body_mm}, but what {self.task!r} predicts is not one body"
                )
            if self.fill_extracted is not None:
                raise ValueError(
                    f"fill_extracted is {self.fill_extracted}, but {self.task!r} does not tell tissues"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> ModelSpec:
        named = isinstance(self.size, str)
        if (named or self.architecture not in BY_LEVELS) and self.size not in ("tiny", "small", "base"):
            raise ValueError(f"size is {self.size!r}, expected one of tiny, small, base")
        if not self.shells and self.takes != "shell-set":
            raise ValueError(f"shells is {list(self.shells)}, expected at least 1 b-value")
        if self.takes == "shell-set" and self.l_max > LARGEST_SHELL_SET_DEGREE:
            raise ValueError(
                f"l_max is {self.l_max}, expected at most {LARGEST_SHELL_SET_DEGREE} for architecture "
                f"{self.architecture!r}"
            )
        if not named:
            if not 2 <= len(self.size) <= MOST_LEVELS:
                raise ValueError(f"size lists {len(self.size)} levels, expected 2 to {MOST_LEVELS}")
            for level in self.size:
                check_irreps(level, "size")
        if self.missing == "zero" and self.takes == "directions":
            raise ValueError(
                "missing='zero' needs harmonic channels; 'plain-directions' has no presence channel"
            )
        if (
            self.order_scale is not None
            and self.takes == "harmonics"
            and len(self.order_scale) != self.l_max // 2 + 1
        ):
            raise ValueError(
                f"order_scale has {len(self.order_scale)} factors for the {self.l_max // 2 + 1} degrees up to "
                f"l_max = {self.l_max}"
            )
        check_deconvolution(self.network_options, self.l_max)
        low, high = self.subsample_directions or (1, 1)
        if low > high:
            raise ValueError(
                f"subsample_directions is {self.subsample_directions}, expected the fewest first"
            )
        self.fit()  # its own errors
        return self

    @property
    def takes(self) -> str:
        """What the network takes in: "shell-set", "harmonics", "directions" or "samples"."""
        return TAKES[self.architecture]

    @property
    def irreps(self) -> str:
        """Irreps of the channels that a scan becomes, the input of three architectures."""
        if self.takes == "shell-set":
            return shell_irreps(self.slots, self.l_max)
        return self.pretext_irreps

    @property
    def pretext_irreps(self) -> str:
        """Irreps of the scan's harmonic channels that every pretext asks for: b0, shells, and presence of each."""
        if self.takes == "shell-set":
            return harmonic_irreps(self.slots, self.l_max, presence=True)
        return harmonic_irreps(len(self.shells), self.l_max, self.missing == "zero")

    @property
    def irreps_out(self) -> str:
        """Irreps of the network's output: of its task, or of the harmonic channels that a pretext asks for."""
        return self.pretext_irreps if self.task is None else TASKS[self.learned or self.task].irreps_out

    @property
    def in_channels(self) -> int | None:
        """Number of input channels; None where every scan brings its own."""
        if self.takes == "samples":
            return None
        if self.takes == "directions":
            return self.n_directions * len(self.shells)
        channels: int = as_irreps(self.irreps).dim
        return channels

    @property
    def multiple(self) -> int:
        """The network takes sizes that are multiples of this."""
        return {"plain": 8, "plain-directions": 8, "invariants": 16}.get(self.architecture, 1)

    @property
    def keys(self) -> list[str]:
        """Entries of an item, besides the image, that the network takes."""
        return ["bvals", "bvecs_voxel"] if self.takes == "samples" else []

    @property
    def maps(self) -> list[str]:
        """Entries of an item that the prediction needs on the scan's own grid."""
        return [] if self.fill_extracted is None else ["signal"]

    @property
    def pixdim(self) -> tuple[float, float, float]:
        """`spacing_mm` as MONAI's `Spacingd` takes it, which leaves a size that is not positive as it is."""
        return self.spacing_mm or (-1.0, -1.0, -1.0)

    @property
    def voxelwise(self) -> bool:
        """Whether the network was made to see each voxel alone, but for `neighbours`: levels without any direction."""
        if self.architecture != "any" or isinstance(self.size, str):
            return False
        return all(ir.l == 0 for level in self.size for _, ir in as_irreps(level))

    @property
    def deconvolution(self) -> bool:
        """Whether the network deconvolves its shells, which are then rescaled to the nominal response of a fibre."""
        return self.takes == "shell-set" and self.network_options.get("deconvolution", False) is True

    @property
    def b_max(self) -> float:
        """s/mm² at which |q| is 1 for a network on samples: with another one its weights mean something else."""
        return float(self.network_options.get("b_max", max(self.shells)))

    @classmethod
    def meaning(cls) -> tuple[str, ...]:
        """Names of the settings under which weights mean something else."""
        return tuple(name for name, field in cls.model_fields.items() if MEANING in field.metadata)

    def fit(self) -> ShellFit:
        """How shells become harmonics."""
        return ShellFit(
            tolerance=self.shell_tolerance,
            missing=self.missing,
            too_few=self.insufficient_directions,
            order_scale=self.order_scale,
            b0_threshold=self.b0_threshold,
        )

    def replace(self, **changes: Any) -> ModelSpec:
        """The same model with other settings, checked like a new one."""
        return type(self)(**{**self.model_dump(), **changes})

    def untrained(self) -> ModelSpec:
        """The model of its network's own task without what is known of its weights: another training's beginning."""
        own = {"task": self.learned or self.task, "learned": None}
        return self.replace(**own, trained_on={}, scans={}, sha256=None, previous_sha256=None)

    def save(self, path: str | Path) -> None:
        """Write the description as JSON, whole or not at all."""
        with replacing(Path(path)) as (temporary,):
            temporary.write_text(self.text, encoding="utf-8")

    @property
    def text(self) -> str:
        """The description as JSON, with a checksum of all it says."""
        return json.dumps(with_checksum(self.model_dump(mode="json")), indent=4) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> ModelSpec:
        """The description in the file `path`; one that version 0.1 wrote is converted.

        FileNotFoundError without the file; ValueError naming file, field, value and what was expected.
        """
        path = Path(path)
        if present(path) is None:
            raise FileNotFoundError(f"{path} does not exist; weights need their description beside them")
        try:
            content = converted(checked(read_json(path, strict=True)))
        except ValueError as error:
            raise ValueError(f"{path} does not describe a model: {error}") from error
        return cls.of(content, f" in {path}")

    @classmethod
    def of(cls, settings: Mapping[str, Any], place: str = "") -> ModelSpec:
        """The model of `settings`; ValueError naming the field, its value, what was expected, and `place`."""
        try:
            return cls(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            value = f"{name} is {short(first['input'])}: " if name else ""
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ValueError(f"model: {value}{message}{place}") from error


def spec_path(weights: str | Path) -> Path:
    """Where the description of the weights is: `model.json` for `model.pt`."""
    return Path(weights).with_suffix(".json")
