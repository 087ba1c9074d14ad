"""Tensor fit against DIPY, and a training chain, on a scan of 96 x 96 x 60 voxels and 65 volumes, as JSON lines.

tensor: seconds of `fit_tensor` + `tensor_metrics` and of DIPY's `TensorModel` (WLS, fit and eigenvalues) on the same
scan in the same process, runs interleaved, and their ratio (target: at least 10).
chain: seconds per item, loading excluded, of: subsample directions, rotate in mm, flip and crop to 64 x 64 x 48
(lazy: one resampling, onto the crop alone, in single precision: MONAI's lazy resampling would take double), harmonics
to l_max 4 (target on 2 CPU cores: at most 1.0); `eager` is the same without laziness, to show what cropping before
resampling saves.  peak_mib: growth of peak memory over the scan itself, in a fresh process (CPU) or of allocated
memory (GPU).  cpu_s: CPU seconds, which other load changes little.  Where other processes take turns on the cores, two
threads wait for each other spinning, and lose to one: there, set OMP_WAIT_POLICY=passive.

elastic_before: the elastic warp by the package in another checkout (--baseline FOLDER), in turns with this one's.

Run: python benchmarks/transforms.py [--repeats 3] [--device cpu] [--threads 2] [--skip-dipy]
     python benchmarks/transforms.py --only elastic --baseline ../before
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import monai.transforms as mt
import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from dmri_monai.gradients import grid_rotation
from dmri_monai.qspace.direction_sets import spread_directions
from dmri_monai.qspace.tensor import fit_tensor, tensor_metrics
from dmri_monai.transforms import (
    RandElasticDWId,
    RandRotateMMd,
    RandSubsampleDirectionsd,
    ResampleDirectionsd,
    SphericalHarmonicsd,
)

SHAPE, CROP, N_VOLUMES = (96, 96, 60), (64, 64, 48), 65
TARGETS = {"tensor_ratio": 10.0, "chain_s": 1.0}


def scan(device: str, shape: Sequence[int] = SHAPE) -> dict[str, Any]:
    """A noisy scan with a fibre direction that turns over space, on an oblique grid."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij"))
    fibres = torch.nn.functional.normalize(
        torch.sin(3 * grid + torch.tensor([0.3, 1.0, 2.0]).view(3, 1, 1, 1)), dim=0
    )
    bvals = torch.cat([torch.zeros(1), torch.full((N_VOLUMES - 1,), 1000.0)])
    bvecs = torch.cat([torch.zeros(1, 3), spread_directions(N_VOLUMES - 1).float()])
    image = torch.empty(N_VOLUMES, *shape)
    for i, (b, g) in enumerate(zip(bvals, bvecs, strict=True)):
        along = (fibres * g.view(3, 1, 1, 1)).sum(0)
        image[i] = 500 * torch.exp(-b * (0.4e-3 + 1.2e-3 * along**2))
        image[i] += 10 * torch.randn(*shape, generator=generator)
    affine = torch.eye(4, dtype=torch.float64)
    turn = torch.linalg.qr(
        torch.eye(3, dtype=torch.float64) + 0.2 * torch.ones(3, 3, dtype=torch.float64).triu()
    )[0]
    affine[:3, :3] = turn @ torch.diag(torch.tensor([2.0, 2.0, 2.5], dtype=torch.float64))
    image = image.clamp_(min=1.0).to(device)
    return {"image": MetaTensor(image, affine=affine), "bvals": bvals, "bvecs": bvecs}


def chain(shape: Sequence[int] = SHAPE, lazy: bool = True) -> mt.Compose:
    crop = [min(c, n) for c, n in zip(CROP, shape, strict=True)]
    return mt.Compose(
        [
            RandSubsampleDirectionsd(directions=(30, 30)),
            RandRotateMMd("image", prob=1.0),
            mt.RandFlipd("image", prob=1.0, spatial_axis=0),
            mt.RandSpatialCropd("image", roi_size=crop, random_size=False),
            SphericalHarmonicsd(shells=[1000], l_max=4),
        ],
        lazy=lazy,
        overrides={"image": {"dtype": torch.float32}} if lazy else None,
    )


def timed(call: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall-clock seconds and CPU seconds of this process; the latter hardly depend on other load."""
    if device != "cpu":
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def medians(runs: list[tuple[float, ...]]) -> list[float]:
    return [median(values) for values in zip(*runs, strict=True)]


def report(name: str, device: str, **values: float) -> None:
    rounded = {key: round(value, 4) for key, value in values.items()}
    print(
        json.dumps({"benchmark": name, "device": device, "threads": torch.get_num_threads(), **rounded}),
        flush=True,
    )


def tensor_benchmark(item: dict[str, Any], device: str, repeats: int, with_dipy: bool) -> None:
    image = item["image"].as_tensor().unsqueeze(0)
    bvecs = (item["bvecs"].double() @ grid_rotation(item["image"].affine)).unsqueeze(0)

    def ours() -> Any:
        return tensor_metrics(fit_tensor(image, item["bvals"].unsqueeze(0), bvecs))

    ours()
    if not with_dipy:
        wall, cpu = medians([timed(ours, device) for _ in range(repeats)])
        report("tensor", device, dmri_monai_s=wall, dmri_monai_cpu_s=cpu)
        return
    from dipy.core.gradients import gradient_table
    from dipy.reconst.dti import TensorModel

    unit = bvecs[0].numpy() / np.linalg.norm(bvecs[0].numpy(), axis=1, keepdims=True).clip(min=1e-9)
    model = TensorModel(gradient_table(item["bvals"].double().numpy(), bvecs=unit), fit_method="WLS")
    data = np.ascontiguousarray(np.moveaxis(image[0].cpu().numpy(), 0, -1))
    runs = [(*timed(ours, device), *timed(lambda: model.fit(data).fa, "cpu")) for _ in range(repeats)]
    names = ("dmri_monai_s", "dmri_monai_cpu_s", "dipy_s", "dipy_cpu_s")
    values = dict(zip(names, medians(runs), strict=True))
    ratio = {"ratio": values["dipy_s"] / values["dmri_monai_s"], "target": TARGETS["tensor_ratio"]}
    report("tensor", device, **values, **ratio)


def chain_benchmark(item: dict[str, Any], device: str, repeats: int) -> None:
    shape = item["image"].shape[1:]
    for name, pipeline in (("chain", chain(shape)), ("chain_eager", chain(shape, lazy=False))):
        pipeline.set_random_state(0)
        pipeline(item)
        runs = [timed(lambda p=pipeline: p(item), device) for _ in range(2 * repeats)]
        wall, cpu = medians(runs)
        memory = gpu_memory(pipeline, item) if device != "cpu" else cpu_memory(name, shape)
        extra = {"target": TARGETS["chain_s"]} if name == "chain" else {}
        report(name, device, seconds=wall, cpu_s=cpu, worst_s=max(runs)[0], peak_mib=memory, **extra)
    singles = {
        "harmonics": SphericalHarmonicsd(shells=[1000], l_max=4),
        "resample_directions": ResampleDirectionsd(n_directions=64),
        "elastic": RandElasticDWId(prob=1.0, strength=1.0),
    }
    for name, transform in singles.items():
        transform(item)
        wall, cpu = medians([timed(lambda t=transform: t(item), device) for _ in range(repeats)])
        report(name, device, seconds=wall, cpu_s=cpu)


def elastic_benchmark(options: argparse.Namespace) -> None:
    """Lines of the elastic warp here and, where asked for, in another checkout; every run in a process of its own."""
    here = str(Path(__file__).resolve().parents[1])
    folders = {"elastic": here, **({"elastic_before": options.baseline} if options.baseline else {})}
    runs: dict[str, list[tuple[float, ...]]] = {name: [] for name in folders}
    for _ in range(options.repeats):
        for name, folder in folders.items():
            command = [sys.executable, __file__, "--time-elastic", "--threads", str(options.threads)]
            path = {**os.environ, "PYTHONPATH": str(folder)}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=path)
            runs[name].append(tuple(json.loads(done.stdout)))
    for name, values in runs.items():
        wall, cpu = medians(values)
        report(name, "cpu", seconds=wall, cpu_s=cpu)


def time_elastic() -> None:
    item, transform = scan("cpu"), RandElasticDWId(prob=1.0, strength=1.0)
    transform(item)
    print(json.dumps(timed(lambda: transform(item), "cpu")))


def gpu_memory(pipeline: mt.Compose, item: dict[str, Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pipeline(item)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def cpu_memory(name: str, shape: Sequence[int]) -> float:
    """Growth of peak memory in a process of its own, so that nothing else has raised the peak before."""
    command = [sys.executable, __file__, "--memory", name, "--shape", *map(str, shape)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def measure_memory(name: str, shape: Sequence[int]) -> None:
    pipeline = chain(shape, lazy=name == "chain")
    small = scan("cpu", shape)
    small["image"] = small["image"][:, :8, :8, :8]
    mt.Compose(pipeline.transforms[:3])(small)  # everything imported and warm
    item = scan("cpu", shape)
    pipeline.set_random_state(0)
    Path("/proc/self/clear_refs").write_text(
        "5", encoding="utf-8"
    )  # the peak so far, of making the scan, is forgotten
    before = status_kib("VmRSS")
    pipeline(item)
    print((status_kib("VmHWM") - before) / 1024)


def status_kib(name: str) -> int:
    """An entry of /proc/self/status: VmRSS, resident memory, or VmHWM, its peak."""
    return next(
        int(line.split()[1])
        for line in open("/proc/self/status", encoding="utf-8")
        if line.startswith(f"{name}:")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", action="append", help="cpu or cuda; by default both where there is a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-dipy", action="store_true")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=SHAPE, help="voxels; by default what the targets hold for"
    )
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["elastic"])
    parser.add_argument("--baseline", help="folder with another checkout, for elastic_before")
    parser.add_argument("--time-elastic", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.time_elastic:
        time_elastic()
        return
    if options.only == "elastic":
        elastic_benchmark(options)
        return
    if options.memory:
        measure_memory(options.memory, options.shape)
        return
    devices = options.device or (["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
    for device in devices:
        item = scan(device, options.shape)
        chain_benchmark(item, device, options.repeats)
        tensor_benchmark(item, device, options.repeats, with_dipy=not options.skip_dipy and device == "cpu")


if __name__ == "__main__":
    main()
