"""Fibres and tissue of real scans: a network and methods without training, on the same voxels, as JSON lines.

No truth is known. The reference is multi-tissue deconvolution of all shells where a scan has several (MRtrix3 where it
is installed and the scan is large enough, else DIPY), else deconvolution of its one shell with all its directions; the
methods get the same or fewer measurements. Scans: the samples that come with DIPY (`small_64D`, `small_101D`), and
folders with `dwi.nii.gz`, its table and perhaps `mask.nii.gz`. With `--independent` the reference has every second
measurement, and the methods the others: else a method of the reference's kind on the same measurements repeats its
noise, and is told to be right.

angle_deg, within_10: main direction in white matter (the reference's fraction above 0.5; FA above 0.25 for one
shell), median and share within 10 degrees; single_deg: where it finds one fibre; crossing_deg, recall_20, false_20:
where it finds more, median of the main direction, share of the reference's peaks within 20 degrees of a found one,
share of found peaks far from all of the reference's; number, number_1: number of fibres in white matter, exact and
within one; tissue_pure, tissue: same largest fraction, where one is above 0.8, and everywhere; r_wm, r_gm, r_csf:
correlation of fractions.

Methods: `network`, the voxel-wise NETWORK.pt; `fod`, a model of that task, by default the released one, as the product
predicts, neighbours included; and those of `rivals.py`.

Run: python -m benchmarks.real.compare NETWORK.pt [FOLDER ...] [--model fod] [--apart NAME ...] [--independent]
    [--force]
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from dipy.data import get_fnames
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.real import rivals
from benchmarks.real.references import reference_of
from benchmarks.real.rivals import Found, Scan
from dmri_monai.io import read_dwi, read_nifti
from dmri_monai.metrics.angles import axial_angle_deg
from dmri_monai.networks.voxelwise import VoxelwiseNet
from dmri_monai.prediction import TrainedModel, load_model
from dmri_monai.qspace.fibre_density import number_of_peaks, peaks_of_density
from dmri_monai.qspace.shell_set import shell_channels, shell_set
from dmri_monai.scan import Scan as ProductScan

PURE = 0.8
FEWEST = 12  # directions of a shell on its own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--force", action="store_true", help="also DIPY's FORCE: minutes a scan")
    parser.add_argument("--cache", type=Path, help="folder that keeps the references between runs")
    parser.add_argument("--methods", nargs="*", help="only these")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--model", default="fod", help="of task fod")
    parser.add_argument(
        "--apart", nargs="*", default=[], help="scans whose slices, along z, do not lie side by side"
    )
    parser.add_argument(
        "--independent", action="store_true", help="reference and methods have measurements of their own"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    network = load(options.network)
    model = load_model(options.model, "cpu")
    for name, scan in scans(options.folders):
        cache = options.cache / f"{name}.pt" if options.cache else None
        others = scan
        if options.independent:
            cache = options.cache / f"{name}-half.pt" if options.cache else None
            scan, others = halves(scan)
        try:
            reference, white = reference_of(others, cache)
        except ValueError as error:  # half of the measurements may not suffice
            print(json.dumps({"scan": name, "refused": str(error)}), flush=True)
            continue
        methods: dict[str, Callable[[Scan], Found]] = {
            "network": partial(predicted, network, slots=options.slots),
            "fod": partial(released, model, apart=name in options.apart),
            "tensor": rivals.tensor,
            "csd": rivals.csd,
            "msmt": rivals.msmt,
            "kmeans": rivals.kmeans,
        }
        if options.force:
            methods["force"] = rivals.force
        for part, rows in parts(scan):
            for method, run in methods.items():
                if options.methods and method not in options.methods:
                    continue
                line = compared(run, scan.select(rows), reference, white)
                if line:
                    print(json.dumps({"scan": name, "part": part, "method": method, **line}), flush=True)


def load(path: Path) -> VoxelwiseNet:
    state = torch.load(path, weights_only=True)
    network = VoxelwiseNet(**state["network"])
    network.load_state_dict(state["model"])
    return network.eval()


def scans(folders: list[Path]) -> Iterator[tuple[str, Scan]]:
    for name in ("small_64D", "small_101D"):
        image, table = read_dwi(get_fnames(name=name)[0])
        yield name, Scan(image.as_tensor(), table, (image.as_tensor() > 0).all(0), image.affine)
    for folder in folders:
        image, table = read_dwi(folder / "dwi.nii.gz")
        mask = folder / "mask.nii.gz"
        inside = read_nifti(mask).as_tensor()[0] > 0 if mask.exists() else torch.ones(image.shape[1:]).bool()
        inside = inside & (image.as_tensor()[table.b0_mask] > 0).all(0)
        yield folder.name, Scan(image.as_tensor(), table, inside, image.affine)


def parts(scan: Scan) -> Iterator[tuple[str, Tensor]]:
    """All measurements, every shell of at least 12 directions alone, and half the directions of a single shell."""
    everything = torch.ones(len(scan.table), dtype=torch.bool)
    yield "all", everything
    shells = scan.table.shells()
    if len(shells) == 1:
        half = torch.zeros_like(everything)
        half[shells[0].indices[::2]] = True
        yield "half", half
    elif len(shells) < 9:
        for shell in shells:
            if len(shell.indices) >= FEWEST:
                rows = torch.zeros_like(everything)
                rows[shell.indices] = True
                yield f"b{shell.bval:.0f}", rows


def halves(scan: Scan) -> tuple[Scan, Scan]:
    """Every second measurement of each shell of 12 directions at least, and the others; both with all b0 volumes."""
    first, second = torch.zeros(2, len(scan.table), dtype=torch.bool)
    for shell in scan.table.shells():
        if len(shell.indices) >= FEWEST:
            first[shell.indices[::2]] = second[shell.indices[1::2]] = True
    return scan.select(first), scan.select(second)


@torch.no_grad()
def predicted(network: VoxelwiseNet, scan: Scan, slots: int) -> Found:
    """World frame in, world frame out: the density is found voxel by voxel."""
    shells = shell_set(scan.table.bvals, scan.table.bvecs, slots=slots)
    response: Literal["scan"] | None = "scan" if network.deconvolution else None
    channels = shell_channels(scan.image, scan.table.bvals, shells, brain=scan.mask[None], response=response)
    out = network(channels[:, scan.mask].unsqueeze(0))[0]
    peaks = peaks_of_density(out[:45])
    directions = torch.nan_to_num(normalize(peaks.T.unflatten(1, (3, 3)), dim=2))
    fractions = out[45:48].T
    return Found(directions.float(), number_of_peaks(peaks).long(), fractions, fractions.argmax(1))


def released(model: TrainedModel, scan: Scan, apart: bool = False) -> Found:
    """By a model of task fod, as `dmri-monai predict` runs it.  apart: each slice, along z, is a window."""
    whole = ProductScan.of_arrays(scan.image, scan.table.bvals, scan.table.bvecs, scan.affine)
    width, height, _ = scan.mask.shape
    found = model.predict(whole, window=(width, height, 1) if apart else None)
    directions = torch.nan_to_num(normalize(found.peaks()[:, scan.mask].T.unflatten(1, (3, 3)), dim=2))
    return Found(directions.float(), found.n_fibres()[scan.mask].long())


def compared(run: Callable[[Scan], Found], scan: Scan, reference: Found, white: Tensor) -> dict[str, float]:
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = run(scan)
    except ValueError:  # the method does not apply to these measurements
        return {}
    return {
        "seconds": time.perf_counter() - started,
        **_fibres(found, reference, white),
        **_tissue(found, reference),
    }


def _fibres(found: Found, reference: Found, white: Tensor) -> dict[str, float]:
    assert reference.peaks is not None
    assert reference.number is not None
    single, crossing = white & (reference.number == 1), white & (reference.number > 1)
    line: dict[str, float] = {"n_white": int(white.sum()), "n_single": int(single.sum())}
    if found.peaks is not None:
        angle = axial_angle_deg(found.peaks[:, 0], reference.peaks[:, 0]).nan_to_num(90.0)
        line |= {
            "angle_deg": float(angle[white].median()),
            "within_10": float((angle[white] <= 10).float().mean()),
            "single_deg": float(angle[single].median()),
            "crossing_deg": float(angle[crossing].median()),
        }
        line |= _all_peaks(found.peaks[crossing], reference.peaks[crossing])
    if found.number is not None:
        off = (found.number - reference.number)[white].abs()
        line |= {"number": float((off == 0).float().mean()), "number_1": float((off <= 1).float().mean())}
    return line


def _all_peaks(found: Tensor, reference: Tensor) -> dict[str, float]:
    near = torch.einsum("vic,vjc->vij", found.float(), reference.float()).abs() >= 0.9397  # cos 20 degrees
    theirs, ours = (peaks.norm(dim=2) > 0 for peaks in (reference, found))
    recall = (near & ours.unsqueeze(2)).any(1)[theirs].float().mean()
    false = 1 - (near & theirs.unsqueeze(1)).any(2)[ours].float().mean()
    return {"recall_20": float(recall), "false_20": float(false)}


def _tissue(found: Found, reference: Found) -> dict[str, float]:
    if reference.fractions is None or found.tissue is None:
        return {}
    same = (found.tissue == reference.fractions.argmax(1)).float()
    pure = reference.fractions.amax(1) > PURE
    line = {"tissue_pure": float(same[pure].mean()), "tissue": float(same.mean())}
    if found.fractions is not None:
        pairs = zip(("wm", "gm", "csf"), found.fractions.T, reference.fractions.T, strict=True)
        line |= {f"r_{name}": float(torch.corrcoef(torch.stack([a, b.to(a)]))[0, 1]) for name, a, b in pairs}
    return line


if __name__ == "__main__":
    main()
