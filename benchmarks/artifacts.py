"""Time and memory of the artifacts on a scan of 65 x 90 x 90 x 54, as JSON lines.

artifact: each one alone, by its default ranges.  preset: with every artifact's probability set to 1 and a full-size
field per volume; mean_ms is the average over `draws` draws, own_mean_ms that with the preset's own probabilities, as in
training.  counterpart: MONAI's transforms at the same effect, in the
same process, ours and theirs in turn, and the ratio of the best times (target on a CPU: at least 3).
cpu_s: CPU seconds, which other load hardly changes.  peak_mib: growth of allocated memory (GPU; target for "strong":
1536 MiB), or of the process's peak memory (CPU; 0 where an earlier line needed
more).  Target for "strong" on an H100: 30 ms.

Run: python benchmarks/artifacts.py [--device cpu] [--threads 1] [--repeats 3] [--draws 100] [--only preset]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from monai.transforms import GibbsNoise, KSpaceSpikeNoise, RandBiasField, RandRicianNoise
from torch import Tensor

from dmri_monai.artifacts import bias_field, gibbs, rician, spike
from dmri_monai.artifacts.engine import ARTIFACTS, Preset, corrupt, load_preset, preset_files
from dmri_monai.artifacts.spatial_fields import polynomial_field

SHAPE = (65, 90, 90, 54)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("artifact", "preset", "counterpart"))
    parser.add_argument(
        "--draws", type=int, default=None, help="draws to average a preset over (100 on a GPU, 3 on a CPU)"
    )
    parser.add_argument(
        "--shape", type=int, nargs=4, default=SHAPE, help="volumes and voxels; targets: the default"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    draws = options.draws or (100 if device.type == "cuda" else 3)
    image, bvals, bvecs = scan(device, options.shape)
    if options.only in (None, "artifact"):
        for name, kind in ARTIFACTS.items():
            one = Preset(name, (kind(prob=1.0),))
            result = timed(partial(apply, image, bvals, bvecs, one), device, options.repeats)
            report("artifact", name, result, device)
    if options.only in (None, "preset"):
        for name in preset_files():
            preset = certain(load_preset(name))
            call = partial(apply, image, bvals, bvecs, preset)
            result = timed(call, device, options.repeats)
            mean = average(call, draws, device)
            own = average(partial(apply, image, bvals, bvecs, load_preset(name)), draws, device)
            report("preset", name, result | {"mean_ms": mean, "own_mean_ms": own, "draws": draws}, device)
    if options.only in (None, "counterpart"):
        for name, ours, theirs in counterparts(image):
            compare(name, ours, theirs, device, options.repeats)


def scan(device: torch.device, shape: Sequence[int] = SHAPE) -> tuple[Tensor, Tensor, Tensor]:
    """A head of Gaussian diffusion, one b0 and 64 directions."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape[1:]], indexing="ij")
    head = 1000 * torch.exp(-(((x**2 + y**2 + z**2) / 0.7) ** 4))
    bvecs = torch.nn.functional.normalize(torch.randn(shape[0], 3, generator=generator), dim=1)
    bvals = torch.full((shape[0],), 1000.0)
    bvals[0], bvecs[0] = 0, 0
    attenuation = torch.exp(-bvals * (bvecs**2 @ torch.tensor([1.5e-3, 0.4e-3, 0.3e-3])))
    return (attenuation.view(-1, 1, 1, 1) * head).to(device), bvals, bvecs


def certain(preset: Preset) -> Preset:
    """`preset` with every artifact on."""
    return Preset(preset.name, tuple(dataclasses.replace(a, prob=1.0) for a in preset.artifacts))


def apply(image: Tensor, bvals: Tensor, bvecs: Tensor, preset: Preset, seed: int = 0) -> Tensor:
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    return corrupt(image, bvals, bvecs, affine=affine, preset=preset, seed=seed)[0]


def timed(function: Callable[[], object], device: torch.device, repeats: int) -> dict[str, float]:
    """Best and median milliseconds, CPU seconds, and peak memory above what was there before, in MiB."""
    before = start_mib(device)
    function()
    peak = peak_mib(device) - before
    runs = [once(function, device) for _ in range(repeats)]
    times = [run[0] for run in runs]
    return {
        "best_ms": min(times),
        "median_ms": statistics.median(times),
        "cpu_s": min(r[1] for r in runs),
        "peak_mib": peak,
    }


def start_mib(device: torch.device) -> float:
    """What a call starts from: allocated memory of a GPU, peak memory of the process so far."""
    if device.type != "cuda":
        return peak_mib(device)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def peak_mib(device: torch.device) -> float:
    """Peak memory since the start."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return torch.cuda.max_memory_allocated(device) / 2**20


def once(function: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Milliseconds and CPU seconds of one call, from an idle device to an idle device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu = time.perf_counter(), time.process_time()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - start), time.process_time() - cpu


def average(call: Callable[[int], object], draws: int, device: torch.device) -> float:
    """Mean milliseconds of `call` over seeds 0 to `draws` - 1."""
    return statistics.fmean(once(partial(call, seed), device)[0] for seed in range(draws))


def counterparts(image: Tensor) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """(name, ours, MONAI's) at equal effect: same noise level, same truncation radius, spikes everywhere."""
    n, *shape = image.shape
    field = polynomial_field([0.0] + [0.1] * 19, tuple(shape), 3, image)
    alpha = 0.5
    fraction = 1 - (1 - alpha) * math.sqrt(2)
    generator = torch.Generator(image.device).manual_seed(0)
    every = torch.arange(n, device=image.device).repeat_interleave(shape[2])
    slices = torch.arange(shape[2], device=image.device).repeat(n)
    frequency = torch.tensor([[9, 7]], device=image.device).expand(len(every), 2)
    wave = {"volumes": every, "slices": slices, "frequency": frequency}
    noisy = RandRicianNoise(prob=1.0, std=30.0, sample_std=False)
    biased = RandBiasField(prob=1.0, degree=3, coeff_range=(0.1, 0.1))
    ringing = GibbsNoise(alpha=alpha)
    herringbone = KSpaceSpikeNoise(
        loc=(shape[0] // 2 + 9, shape[1] // 2 + 7, shape[2] // 2 + 3),
        k_intensity=math.log(0.05 * float(image[0].sum())),
    )
    return [
        ("rician", lambda: rician(image, sigma=30.0, generator=generator), lambda: noisy(image)),
        ("gibbs", lambda: gibbs(image, axes=(0, 1), fraction=fraction), lambda: ringing(image)),
        ("spike", lambda: spike(image, amplitude=0.05, **wave), lambda: herringbone(image)),
        ("bias_field", lambda: bias_field(image, log_gain=field), lambda: biased(image)),
    ]


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, repeats: int
) -> None:
    """Both sides in turn, the first round not counted."""
    rounds = [(once(ours, device), once(theirs, device)) for _ in range(repeats + 1)][1:]
    (ms, cpu), (monai_ms, monai_cpu) = (
        tuple(map(min, zip(*side, strict=True))) for side in zip(*rounds, strict=True)
    )
    result = {
        "best_ms": ms,
        "monai_ms": monai_ms,
        "ratio": monai_ms / ms,
        "cpu_s": cpu,
        "monai_cpu_s": monai_cpu,
    }
    report("counterpart", name, result | {"cpu_ratio": monai_cpu / cpu}, device)


def report(kind: str, name: str, values: dict[str, float], device: torch.device) -> None:
    cuda = device.type == "cuda"
    place = torch.cuda.get_device_name(device) if cuda else f"cpu x{torch.get_num_threads()}"
    rounded = {key: round(value, 3) for key, value in values.items()}
    print(json.dumps({"kind": kind, "name": name, "device": place, **rounded}), flush=True)


if __name__ == "__main__":
    main()
