"""Check a pipeline, before anything is loaded, for transforms that would leave gradient directions wrong.

MONAI's elastic and grid-distortion transforms leave neither a trace nor a changed affine: nothing in the data
can tell afterwards, so the pipeline itself is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from monai.transforms import Compose, LazyTransform, MapTransform
from monai.utils import ensure_tuple_rep

__all__ = ["check_gradient_safe"]

# spatial transforms of MONAI that keep the affine in step with the voxels and do not turn the grid
KEEP_AXES = frozenset(
    {
        "BorderPad", "BoundingRect", "CenterScaleCrop", "CenterSpatialCrop", "Crop", "CropForeground", "DivisiblePad",
        "Pad", "RandCrop", "RandCropByLabelClasses", "RandCropByPosNegLabel", "RandScaleCrop", "RandSpatialCrop",
        "RandSpatialCropSamples", "RandWeightedCrop", "RandZoom", "Resize", "ResizeWithPadOrCrop", "SpatialCrop",
        "SpatialPad", "Spacing", "Zoom",
    }
)  # fmt: skip
# those that turn or mirror the grid: right too, but only before directions are fixed to the voxel frame
TURN_AXES = frozenset(
    {
        "Affine", "Flip", "Orientation", "RandAffine", "RandAxisFlip", "RandFlip", "RandRotate", "RandRotate90",
        "RandRotateMM", "ResampleToMatch", "Rotate", "Rotate90", "SpatialResample",
    }
)  # fmt: skip
# what leaves every voxel where it is
KEEP_VOXELS = frozenset(
    {
        "Activations", "AddCoordinateChannels", "AdjustContrast", "ApplyPending", "AsDiscrete", "CastToType",
        "ClassesToIndices", "ClipIntensityPercentiles", "ConcatItems", "CopyItems", "CutOut", "DataStats",
        "DeleteItems", "EnsureChannelFirst", "EnsureType", "FgBgToIndices", "FillHoles", "ForegroundMask",
        "GaussianSharpen", "GaussianSmooth", "GibbsNoise", "HistogramNormalize", "Identity", "IntensityStats",
        "Invert", "KSpaceSpikeNoise", "KeepLargestConnectedComponent", "LabelFilter", "LabelToMask", "LoadImage",
        "MapLabelValue", "MaskIntensity", "MedianSmooth", "NormalizeIntensity", "RandAdjustContrast", "RandBiasField",
        "RandCoarseDropout", "RandGaussianNoise", "RandGaussianSharpen", "RandGaussianSmooth", "RandGibbsNoise",
        "RandHistogramShift", "RandIdentity", "RandKSpaceSpikeNoise", "RandRicianNoise",
        "RandScaleIntensity", "RandScaleIntensityFixedMean", "RandShiftIntensity", "RandSmoothFieldAdjustContrast",
        "RandSmoothFieldAdjustIntensity", "RandStdShiftIntensity", "RemoveSmallObjects", "SaveImage",
        "ScaleIntensity", "ScaleIntensityRange", "ScaleIntensityRangePercentiles", "SelectItems", "ShiftIntensity",
        "SimulateDelay", "StdShiftIntensity", "ThresholdIntensity", "ToDevice", "ToTensor", "WriteFileMapping",
    }
)  # fmt: skip
ALLOWED = KEEP_AXES | TURN_AXES | KEEP_VOXELS
FIX_FRAME = frozenset({"ResampleDirections", "SphericalHarmonics", "ToVoxelFrame", "DirectionsToVoxelFrame"})
ADVICE = {
    "Rand2DElastic": "use dmri_monai.transforms.RandElasticDWId",
    "Rand3DElastic": "use dmri_monai.transforms.RandElasticDWId",
    "RandSmoothDeform": "use dmri_monai.transforms.RandElasticDWId",
    "GridDistortion": "use dmri_monai.transforms.RandElasticDWId",
    "RandGridDistortion": "use dmri_monai.transforms.RandElasticDWId",
    "Transpose": "use monai.transforms.Orientationd",
    "Lambda": "it cannot be looked into; if it keeps voxels in place, name its class in `allow`",
    "RandLambda": "it cannot be looked into; if it keeps voxels in place, name its class in `allow`",
    "MixUp": "scans with different gradient tables cannot be mixed",
    "CutMix": "scans with different gradient tables cannot be mixed",
    "RandSimulateLowResolution": "use monai.transforms.RandZoomd",
}


def check_gradient_safe(
    pipeline: Any, keys: Sequence[str] = ("image",), allow: Iterable[type | str] = ()
) -> None:
    """Raise ValueError if `pipeline` holds a transform on `keys` that can leave gradient directions wrong.

    pipeline: a transform, a list, or any Compose (nested, OneOf, SomeOf, RandomOrder; lazy or not).  An
    allow-list decides: MONAI's transforms that track their affine or leave voxels in place, everything in `dmri_monai`,
    and the classes (or class names) in `allow`, of which you know that they do the same.  A transform that turns the
    grid after directions were expressed in the voxel frame is refused as well.  Dictionary transforms on other keys
    are not looked at.  Whatever the key, a lazy Compose must say in its `overrides` where to take the nearest voxel:
    MONAI's lazy resampling ignores a transform's own mode, and would interpolate labels and peaks.
    """
    names = {a if isinstance(a, str) else a.__name__ for a in allow}
    fixed_by: str | None = None
    _check_lazy_modes(pipeline, "pipeline")
    for path, transform in _leaves(pipeline, "pipeline"):
        name = type(transform).__name__
        base = _base_name(name)
        if not _acts_on(transform, keys):
            continue
        if base in FIX_FRAME and _is_ours(transform):
            fixed_by = fixed_by or name
        elif name == "RotationInvariantsd" and _is_ours(transform):
            fixed_by = None  # invariants are not bound to a frame
        elif fixed_by and base in TURN_AXES:
            raise ValueError(
                f"{path}: {name} turns the grid after {fixed_by} fixed directions to it; move it before"
            )
        known = base in ALLOWED and type(transform).__module__.split(".")[0] == "monai"
        if not (known or _is_ours(transform) or name in names or base in names):
            advice = ADVICE.get(
                base, "if it keeps the affine in step with the voxels, name its class in `allow`"
            )
            raise ValueError(f"{path}: {name} is not known to keep gradient directions right; {advice}")


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Compose):
        node = node.transforms
    if isinstance(node, list | tuple):
        for i, child in enumerate(node):
            yield from _leaves(child, f"{path}[{i}]")
    elif node is not None:
        yield path, node


def _check_lazy_modes(node: Any, path: str) -> None:
    """ValueError where a lazy Compose would interpolate a key for which a transform in it asks mode="nearest"."""
    if isinstance(node, Compose):
        overridden = {key for key, options in (node.overrides or {}).items() if "mode" in options}
        for inner, transform in _leaves(node, path):
            lost = _nearest_keys(transform, node.lazy) - overridden
            if lost:
                key = min(map(str, lost))
                raise ValueError(
                    f"{inner}: {type(transform).__name__} asks the nearest voxel of {key!r}, which a lazy Compose "
                    f'ignores; give it overrides={{"{key}": {{"mode": "nearest"}}}}'
                )
        node = node.transforms
    if isinstance(node, list | tuple):
        for i, child in enumerate(node):
            _check_lazy_modes(child, f"{path}[{i}]")


def _nearest_keys(transform: Any, lazy: bool | None) -> set[Any]:
    """Keys a lazy dictionary transform resamples with mode="nearest"; `lazy`: of its Compose, None for its own."""
    if not (isinstance(transform, LazyTransform) and isinstance(transform, MapTransform)):
        return set()
    if not (transform.lazy if lazy is None else lazy):
        return set()
    modes = ensure_tuple_rep(getattr(transform, "mode", None), len(transform.keys))
    return {key for key, mode in zip(transform.keys, modes, strict=True) if str(mode) in ("nearest", "0")}


def _base_name(name: str) -> str:
    for suffix in ("Dict", "D", "d"):
        if name.endswith(suffix) and (name.removesuffix(suffix) in ALLOWED | set(ADVICE) | FIX_FRAME):
            return name.removesuffix(suffix)
    return name


def _acts_on(transform: Any, keys: Sequence[str]) -> bool:
    own = getattr(transform, "keys", None)
    return own is None or callable(own) or bool(set(own) & set(keys))


def _is_ours(transform: Any) -> bool:
    return type(transform).__module__.split(".")[0] == "dmri_monai"
