"""One small call of every transform, layer, network, loss and metric, with its tensors on a given device.

Each takes the device and gives what is to be compared: tensors, all of which must lie there.  In `EXAMPLES` it stands
under the name that the package exports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from dmri_monai import equivariant, losses, metrics, networks, transforms
from dmri_monai.equivariant import (
    Bessel,
    Concat,
    Cosine,
    Gaussian,
    PQDiff,
    PQTensorProduct,
    PSpace,
    QSpace,
    RadialMLP,
)
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.harmonics import harmonic_irreps
from dmri_monai.qspace.shell_set import shell_irreps
from dmri_monai.so3 import as_irreps
from tests.conftest import ORIENTATIONS, grid_affine

__all__ = ["EXAMPLES", "NO_TENSORS", "Example", "drawn"]

Example = Callable[[torch.device], Any]
SHAPE, DIRECTIONS = (8, 9, 8), 20
AFFINE = grid_affine(ORIENTATIONS["oblique-left"], (2.0, 2.0, 2.5))
FIELD_IN, FIELD_OUT = "2x0e+1x1o", "2x0e+1x1o+1x2e"

NO_TENSORS = {
    "LoadDWId": "makes tensors of files, on the CPU",
    "LoadHarmonicsd": "makes tensors of files, on the CPU",
    "LoadNiftid": "makes tensors of files, on the CPU",
    "check_gradient_safe": "looks at the names of transforms",
    "replay": "reads a record; what it makes goes through `corrupt`",
    "collate_dwi": "runs where items are made, before they go to a device",
    "Bessel": "numbers of a radial basis; a convolution with each is under SteerableConv3d",
    "Cosine": "as Bessel",
    "Gaussian": "as Bessel",
    "RadialMLP": "as Bessel",
    "Concat": "numbers of a kernel; a convolution with each is under PQConv3d",
    "PQDiff": "as Concat",
    "PQTensorProduct": "as Concat",
    "PSpace": "as Concat",
    "QSpace": "as Concat",
    "Sum": "as Concat",
    "as_irreps": "text to irreps",
    "irreps_from_multiplicities": "numbers to irreps",
    "representation_matrix": "a matrix of the representation, on the CPU in double precision, that its users move",
    "check_voxel_frame": "compares matrices of meta data, which lie on the CPU",
    "voxel_rotation": "a matrix of meta data, on the CPU",
    "PQOptions": "settings",
    "mean_sd": "text of a table",
    "SubjectTable": "writes the rows of metrics, which lie on the CPU, into a file",
    "SubjectMetric": "what the metrics have in common",
    "MetricHandler": "attaches a metric to an engine: in test_steps.py",
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator("cpu").manual_seed(seed))


def classes(n: int, *shape: int) -> Tensor:
    return (uniform(*shape) * n).floor()


def table(shells: Sequence[float] = (1000.0,)) -> tuple[Tensor, Tensor]:
    """b-values (N,) and b-vectors (N, 3): two b0, then the shells."""
    bvals = torch.cat([torch.zeros(2), *(torch.full((DIRECTIONS,), b) for b in shells)])
    bvecs = torch.cat([torch.zeros(2, 3), *[spread_directions(DIRECTIONS).float()] * len(shells)])
    return bvals, bvecs


def item(device: torch.device, shells: Sequence[float] = (1000.0,)) -> dict[str, Any]:
    """A scan as `LoadDWId` makes it, and labels and predictions of all kinds beside it."""
    bvals, bvecs = table(shells)
    signal = 500 * (0.3 + uniform(len(bvals), *SHAPE)) * torch.exp(-0.7e-3 * bvals)[:, None, None, None]
    fields = {
        "image": signal,
        "label": classes(4, 1, *SHAPE),
        "peaks": drawn(6, *SHAPE),
        "dyads": drawn(6, *SHAPE).square(),
        "l2": drawn(5, *SHAPE),
        "logits": drawn(4, *SHAPE),
        "scores": uniform(1, *SHAPE),
        "mask": (uniform(1, *SHAPE) > 0.2).float(),
    }
    placed = {name: MetaTensor(field.to(device), affine=AFFINE) for name, field in fields.items()}
    return {**placed, "bvals": bvals, "bvecs": bvecs}


def transform(
    make: Callable[[], Any],
    *keys: str,
    shells: Sequence[float] = (1000.0,),
    before: Callable[[], Any] | None = None,
) -> Example:
    """The entries `keys` that a transform leaves in an item."""

    def example(device: torch.device) -> Any:
        own, given = make(), item(device, shells)
        if hasattr(own, "set_random_state"):
            own.set_random_state(0)
        found = own(before()(given) if before else given)
        return [found[key] for key in keys]

    return example


def module(make: Callable[[], nn.Module], *inputs: Tensor, training: bool = True) -> Example:
    """Output and gradients of a layer or network."""

    def example(device: torch.device) -> Any:
        torch.manual_seed(0)
        own = make().to(device).train(training)
        first, *others = (x.to(device).detach() for x in inputs)
        first.requires_grad_(training)
        found = own(first, *others)
        if not training:
            return found
        found.square().mean().backward()
        return [found, first.grad, *(p.grad for p in own.parameters() if p.grad is not None)]

    return example


def several(*examples: Example) -> Example:
    return lambda device: [example(device) for example in examples]


def loss(make: Callable[[], nn.Module], pred: Tensor, target: Tensor | Mapping[str, Tensor]) -> Example:
    """A loss and its gradient."""

    def example(device: torch.device) -> Any:
        own = pred.to(device).detach().requires_grad_()
        values = (
            {k: v.to(device) for k, v in target.items()} if isinstance(target, Mapping) else target.to(device)
        )
        found = make()(own, values)
        found.backward()
        return [found, own.grad]

    return example


def metric(make: Callable[[], Any], pred: Tensor, target: Tensor, **inputs: Tensor) -> Example:
    """What a metric says of two subjects; its rows are kept on the CPU, so only the call is on the device."""

    def example(device: torch.device) -> Any:
        own = make()
        label = MetaTensor(target.to(device), affine=AFFINE)
        own(pred.to(device), label, **{k: v.to(device) for k, v in inputs.items()})
        found = own.aggregate()
        return [torch.as_tensor(found).to(device)]

    return example


def scan_batch(shells: Sequence[float]) -> dict[str, Tensor]:
    """The target of a reconstruction: two scans with their tables, every third measurement hidden."""
    bvals, bvecs = (rows.expand(2, *rows.shape) for rows in table(shells))
    image = 500 * (0.3 + uniform(*bvals.shape, *SHAPE)) * torch.exp(-0.7e-3 * bvals)[..., None, None, None]
    hidden = (torch.arange(bvals.shape[1]) % 3 == 0).expand(2, -1)
    valid = torch.ones_like(bvals, dtype=torch.bool)
    return {
        "image": image,
        "bvals": bvals,
        "bvecs_voxel": bvecs,
        "hidden": hidden & (bvals > 50),
        "valid": valid,
    }


def harmonics_of(l_max: int = 4) -> Callable[[], Any]:
    return lambda: transforms.SphericalHarmonicsd(shells=[1000.0], l_max=l_max)


def turned(device: torch.device) -> Any:
    peaks = transforms.turn_directions(drawn(6, *SHAPE).to(device), "peaks", AFFINE[:3, :3] / 2)
    return [peaks, transforms.turn_directions(drawn(9, *SHAPE).to(device), "1x1o+1x0e+1x2e", torch.eye(3))]


def corrupted(device: torch.device) -> Any:
    given = item(device)
    options = {"affine": AFFINE, "preset": "all", "seed": 3}
    return [transforms.corrupt(given["image"].as_tensor(), given["bvals"], given["bvecs"], **options)[0]]


TRANSFORMS: dict[str, Example] = {
    "BrainMaskd": transform(transforms.BrainMaskd, "mask", before=lambda: _without("mask")),
    "CheckLabeld": transform(lambda: transforms.CheckLabeld("label", 4), "label"),
    "DensityLabeld": transform(lambda: transforms.DensityLabeld("peaks"), "peaks"),
    "DirectionsToVoxelFramed": transform(lambda: transforms.DirectionsToVoxelFramed("peaks"), "peaks"),
    "DirectionsToWorldFramed": transform(
        lambda: transforms.DirectionsToWorldFramed("peaks", ref_key="image"), "peaks"
    ),
    "DyadsToPeaksd": transform(lambda: transforms.DyadsToPeaksd("dyads"), "dyads"),
    "FillExtractedBraind": transform(
        lambda: transforms.FillExtractedBraind("logits", 0.9, signal_key="mask"), "logits"
    ),
    "FractionLabeld": transform(lambda: transforms.FractionLabeld("label"), "label"),
    "HarmonicsToPeaksd": transform(lambda: transforms.HarmonicsToPeaksd("l2", mask_key="mask"), "l2"),
    "HeadMaskd": transform(transforms.HeadMaskd, "head"),
    "IgnoreOutsided": transform(transforms.IgnoreOutsided, "label"),
    "KeepBrainBodyd": transform(lambda: transforms.KeepBrainBodyd("label", 1.0), "label"),
    "LesionMapsd": transform(lambda: transforms.LesionMapsd("scores"), "scores_map", "label_map"),
    "LogitsToFractionsd": transform(lambda: transforms.LogitsToFractionsd("logits"), "logits"),
    "NormalizeByB0d": several(
        *(
            transform(lambda b0=b0: transforms.NormalizeByB0d(b0=b0, mask_key="mask"), "image")
            for b0 in ("keep", "collapse", "drop")
        )
    ),
    "PeaksToDyadsd": transform(lambda: transforms.PeaksToDyadsd("peaks"), "peaks"),
    "RandDWIArtifactsd": several(
        *(
            transform(lambda preset=preset: transforms.RandDWIArtifactsd(preset=preset), "image", "target")
            for preset in ("light", "normal", "strong", "all")
        )
    ),
    "RandDropShelld": transform(
        lambda: transforms.RandDropShelld(prob=1.0), "image", shells=(1000.0, 2000.0)
    ),
    "RandElasticDWId": transform(
        lambda: transforms.RandElasticDWId(prob=1.0, label_keys="label", peaks_keys="peaks"),
        *("image", "label", "peaks"),
    ),
    "RandRotateMMd": transform(lambda: transforms.RandRotateMMd("image", prob=1.0), "image"),
    "RandSubsampleDirectionsd": transform(
        lambda: transforms.RandSubsampleDirectionsd(directions=(8, 8)), "image"
    ),
    "ResampleDirectionsd": transform(lambda: transforms.ResampleDirectionsd(n_directions=6), "image"),
    "RotationInvariantsd": transform(
        lambda: transforms.RotationInvariantsd("image"), "image", before=harmonics_of()
    ),
    "SelectShellsd": transform(transforms.SelectShellsd, "image", shells=(1000.0, 2000.0)),
    "SphericalHarmonicsd": several(
        transform(lambda: transforms.SphericalHarmonicsd(shells=[1000.0], mask_key="mask"), "image"),
        transform(lambda: transforms.SphericalHarmonicsd(shells="auto", l_max=6), "image"),
    ),
    "SwapLeftRightd": transform(lambda: transforms.SwapLeftRightd("label", [(1, 2)]), "label"),
    "TensorMetricsd": transform(
        lambda: transforms.TensorMetricsd(metrics=transforms.TensorMetricsd.NAMES, mask_key="mask"),
        *transforms.TensorMetricsd.NAMES,
    ),
    "ToVoxelFramed": transform(transforms.ToVoxelFramed, "image"),
    "turn_directions": turned,
    "corrupt": corrupted,
}


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {k: v for k, v in given.items() if k != key}


P, PQ, Q = drawn(2, 5, 6, 7, 6), drawn(2, 5, 7, 4, 4, 4), nn.functional.normalize(drawn(7, 3), dim=1)
GATED = equivariant.Gate(FIELD_IN).irreps_in
SHELLS = shell_irreps(2, 4)


def shell_channels() -> Tensor:
    """Channels of two slots to l = 4, of which the first is there."""
    x = uniform(1, as_irreps(SHELLS).dim, *SHAPE)
    x[:, 4] = 0.0  # presence of the second slot
    return x


def pq_kernel(kernel: Any, **options: Any) -> Example:
    return module(lambda: equivariant.PQConv3d(FIELD_IN, FIELD_OUT, 3, kernel, **options), PQ, Q)


LAYERS: dict[str, Example] = {
    "EquivariantAvgPool3d": module(equivariant.EquivariantAvgPool3d, P),
    "EquivariantBatchNorm": several(
        *(module(lambda: equivariant.EquivariantBatchNorm(FIELD_IN), P, training=t) for t in (True, False))
    ),
    "EquivariantDropout": module(lambda: equivariant.EquivariantDropout(FIELD_IN, p=0.5), P),
    "EquivariantInstanceNorm": module(lambda: equivariant.EquivariantInstanceNorm(FIELD_IN), P),
    "EquivariantUpsample3d": module(equivariant.EquivariantUpsample3d, P),
    "Gate": module(lambda: equivariant.Gate(FIELD_IN), drawn(2, GATED.dim, 4, 4, 4)),
    "Invariants": module(lambda: equivariant.Invariants(FIELD_IN), P),
    "NeighbourAttention": several(
        *(
            module(
                lambda: equivariant.NeighbourAttention("1x0e+1x2e", scalars=2, hidden=4),
                drawn(2, 6, 3, 3, 3),
                drawn(2, 2, 3, 3, 3),
                drawn(2, 1, 3, 3, 3) > 0,
                training=training,
            )
            for training in (True, False)
        )
    ),
    "NormActivation": module(lambda: equivariant.NormActivation(FIELD_IN), P),
    "NormGate": module(
        lambda: equivariant.NormGate(equivariant.Gate(FIELD_IN)), drawn(2, GATED.dim, 4, 4, 4)
    ),
    "PQConv3d": several(
        *(pq_kernel(PQDiff(), strategy=s) for s in ("dense", "spectral", "auto")),
        *(pq_kernel(PQTensorProduct(), strategy=s) for s in ("p_basis", "p_last")),
        pq_kernel(PSpace()),
        pq_kernel(equivariant.Sum(PQDiff(), QSpace())),
        pq_kernel(Concat((PQTensorProduct(), "2x0e"), (PSpace(), "1x1o+1x2e")), checkpoint=True),
    ),
    "QLengthWeightedMean": module(lambda: equivariant.QLengthWeightedMean(FIELD_IN), PQ, Q),
    "QMean": module(equivariant.QMean, PQ),
    "ShellEncoder": module(
        lambda: equivariant.ShellEncoder(4, scalars=4, l_max=4, hidden=8), shell_channels()
    ),
    "SphereActivation": module(
        lambda: equivariant.SphereActivation("3x0e+3x2e+3x4e", scalars=2, hidden=4),
        drawn(2, 45, 3, 3, 3),
        drawn(2, 2, 3, 3, 3),
    ),
    "SteerableBlock": module(lambda: equivariant.SteerableBlock(3, FIELD_IN, FIELD_OUT), P),
    "SteerableConv3d": several(
        *(
            module(lambda radial=radial: equivariant.SteerableConv3d(FIELD_IN, FIELD_OUT, radial=radial), P)
            for radial in (Bessel(), Cosine(), Gaussian(), Gaussian(mlp=RadialMLP()))
        ),
        module(
            lambda: equivariant.SteerableConv3d(FIELD_IN, FIELD_OUT, stride=2),
            P[..., :5, :5, :5],
            training=False,
        ),
    ),
    "SteerableResidualBlock": module(
        lambda: equivariant.SteerableResidualBlock(FIELD_IN, FIELD_OUT, norm="equivariant_batch"), P
    ),
}


def six_degree_channels() -> Tensor:
    """Two items of two shells to l = 6, of which one is there; the b-value and number are the scan's."""
    x = uniform(2, as_irreps(shell_irreps(2, 6)).dim, *SHAPE)
    x[:, 3:5] = torch.tensor([1.0, 0.0])[:, None, None, None]
    x[:, 5:9] = torch.tensor([2.0, 0.0, 3.0, 0.0])[:, None, None, None]
    return x


HARMONICS, LEVELS = harmonic_irreps(1, 4), ["2x0e+1x2e", "4x0e+1x1o"]
SAMPLES = (
    torch.tensor([[0.0, 0.0, *[1000.0] * 6]]),
    torch.cat([torch.zeros(2, 3), spread_directions(6).float()])[None],
)

NETWORKS: dict[str, Example] = {
    "AnyProtocolUNet": several(
        *(
            module(
                lambda: networks.AnyProtocolUNet(SHELLS, "4x0e", LEVELS, channels=4, scalars=4, hidden=8),
                shell_channels(),
                training=training,
            )
            for training in (True, False)
        )
    ),
    "EquivariantUNet": several(
        *(
            module(
                lambda: networks.EquivariantUNet(HARMONICS, "4x0e", LEVELS),
                drawn(1, as_irreps(HARMONICS).dim, *SHAPE),
                training=training,
            )
            for training in (True, False)
        )
    ),
    "InvariantUNet": module(
        lambda: networks.InvariantUNet(SHELLS, "4x0e", "tiny"),
        uniform(1, as_irreps(SHELLS).dim, 16, 16, 16),
        training=False,
    ),
    "PQSegmentationNet": several(
        *(
            module(
                lambda: networks.PQSegmentationNet("1x0e", 1000.0, pq=[[3, 1]], p=[[4, 1]], kernel_size=3),
                uniform(1, 8, 4, 4, 4),
                *SAMPLES,
                training=training,
            )
            for training in (True, False)
        )
    ),
    "PlainUNet": module(lambda: networks.PlainUNet(5, 2, 4), drawn(1, 5, 16, 8, 8)),
}

LABEL = classes(4, 2, 1, *SHAPE)
LESIONS = (uniform(2, 1, *SHAPE) > 0.8).float() - (uniform(2, 1, *SHAPE, seed=1) > 0.9).float()
DENSITY = drawn(2, 45, *SHAPE).square()

LOSSES: dict[str, Example] = {
    "AxialLoss": several(
        loss(losses.AxialLoss, drawn(2, 3, *SHAPE), drawn(2, 6, *SHAPE, seed=1)),
        loss(lambda: losses.AxialLoss("l2"), drawn(2, 5, *SHAPE), drawn(2, 3, *SHAPE, seed=1)),
    ),
    "CountedVoxelsLoss": loss(lambda: losses.CountedVoxelsLoss(_focal()), drawn(2, 1, *SHAPE), LESIONS),
    "CrossingsLoss": loss(
        lambda: losses.CrossingsLoss(ordinal=1.0, class_weights=[1, 2, 3, 4]), drawn(2, 4, *SHAPE), LABEL
    ),
    "DensityLoss": loss(losses.DensityLoss, drawn(2, 45, *SHAPE), DENSITY),
    "FractionsLoss": loss(losses.FractionsLoss, drawn(2, 4, *SHAPE), uniform(2, 3, *SHAPE) / 3),
    "HarmonicReconstructionLoss": several(
        loss(losses.HarmonicReconstructionLoss, drawn(2, 16, *SHAPE), uniform(2, 16, *SHAPE)),
        loss(
            lambda: losses.HarmonicReconstructionLoss(shell_weights=[1, 2], l_max=2, presence=True),
            *(drawn(2, 15, *SHAPE), uniform(2, 15, *SHAPE)),
        ),
    ),
    "LesionBCELoss": several(
        *(loss(lambda w=w: losses.LesionBCELoss(w), drawn(2, 1, *SHAPE), LESIONS) for w in (None, 10.0))
    ),
    "MaskedReconstructionLoss": loss(
        lambda: losses.MaskedReconstructionLoss(losses.SignalReconstructionLoss([1000.0])),
        *(drawn(2, 16, *SHAPE), scan_batch([1000.0])),
    ),
    "OneHotL1Loss": loss(losses.OneHotL1Loss, drawn(2, 4, *SHAPE), LABEL),
    "OwnShellsReconstructionLoss": loss(
        lambda: losses.OwnShellsReconstructionLoss(3, 4), drawn(2, 49, *SHAPE), scan_batch([1000.0, 2000.0])
    ),
    "SignalReconstructionLoss": loss(
        lambda: losses.SignalReconstructionLoss([1000.0]), drawn(2, 16, *SHAPE), scan_batch([1000.0])
    ),
    "SphericalDeconvolutionLoss": loss(
        losses.SphericalDeconvolutionLoss, drawn(2, 45, *SHAPE), six_degree_channels()
    ),
}


def _focal() -> nn.Module:
    from monai.losses import DiceFocalLoss

    return DiceFocalLoss(sigmoid=True)


MASK = (uniform(2, 1, *SHAPE, seed=2) > 0.2).float()
RAW, TABLE = scan_batch([1000.0])["image"], table()
ROWS = {"bvals": TABLE[0].expand(2, -1), "bvecs_voxel": TABLE[1].expand(2, -1, -1), "mask": MASK}
ONE_HOT = nn.functional.one_hot(LABEL[:, 0].long(), 4).movedim(-1, 1).float()

METRICS: dict[str, Example] = {
    "AngularError": several(
        metric(
            lambda: metrics.AngularError(peaks="all"),
            drawn(2, 6, *SHAPE),
            drawn(2, 6, *SHAPE, seed=1),
            mask=MASK,
        ),
        metric(lambda: metrics.AngularError("l2"), drawn(2, 5, *SHAPE), drawn(2, 3, *SHAPE, seed=1)),
    ),
    "ClassificationScore": several(
        *(
            metric(lambda s=s: metrics.ClassificationScore(4, s), drawn(2, 4, *SHAPE), LABEL, mask=MASK)
            for s in ("f1", "accuracy")
        )
    ),
    "ConfusionMatrix": metric(metrics.ConfusionMatrix, drawn(2, 4, *SHAPE), LABEL),
    "DensityCorrelation": metric(metrics.DensityCorrelation, drawn(2, 45, *SHAPE), DENSITY, mask=MASK),
    "FibreAgreement": metric(
        metrics.FibreAgreement, drawn(2, 45, 3, 3, 3), drawn(2, 45, 3, 3, 3, seed=1).square()
    ),
    "FractionError": several(
        *(
            metric(
                lambda s=s: metrics.FractionError(s),
                uniform(2, 3, *SHAPE) / 3,
                uniform(2, 3, *SHAPE, seed=1) / 3,
            )
            for s in ("absolute", "correlation")
        )
    ),
    "HarmonicTensorError": metric(
        lambda: metrics.HarmonicTensorError([1000.0]), uniform(2, 16, *SHAPE), uniform(2, 16, *SHAPE, seed=1)
    ),
    "HausdorffDistanceMM": metric(metrics.HausdorffDistanceMM, ONE_HOT.flip(2), ONE_HOT),
    "MaskedPSNR": metric(metrics.MaskedPSNR, uniform(2, 3, *SHAPE), uniform(2, 3, *SHAPE, seed=1), mask=MASK),
    "MaskedSSIM": metric(metrics.MaskedSSIM, uniform(2, 2, *SHAPE), uniform(2, 2, *SHAPE, seed=1), mask=MASK),
    "PolarAngleError": metric(metrics.PolarAngleError, drawn(2, 3, *SHAPE), drawn(2, 3, *SHAPE, seed=1)),
    "TensorError": metric(metrics.TensorError, RAW * 1.1, RAW, **ROWS),
    "VoxelRanking": several(
        *(
            metric(
                lambda s=s, p=p: metrics.VoxelRanking(s, pooled=p),
                uniform(2, 1, *SHAPE, seed=4),
                LESIONS,
                mask=MASK,
            )
            for s, p in (("average_precision", False), ("roc_auc", True))
        )
    ),
}

EXAMPLES: dict[str, Example] = {**TRANSFORMS, **LAYERS, **NETWORKS, **LOSSES, **METRICS}
