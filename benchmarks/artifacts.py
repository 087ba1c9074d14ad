"""Time and memory of the artifacts on a scan of 65 x 90 x 90 x 54: JSON lines, one per artifact, preset or
counterpart.

python benchmarks/artifacts.py [--device cpu|cuda] [--repeats 3] [--draws 100]

Presets are timed with every artifact's probability set to 1, at the given draw and, on a GPU or with --draws,
as the average over draws.  MONAI's counterparts run in the same process, alternating with ours at the same
effect.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import resource
import statistics
import time
from collections.abc import Callable

import torch
from monai.transforms import GibbsNoise, KSpaceSpikeNoise, RandBiasField, RandRicianNoise
from torch import Tensor

from dmri_monai.physics import bias_field, gibbs, rician, spike
from dmri_monai.physics.fields import polynomial_field
from dmri_monai.transforms.artifacts import ARTIFACTS, Preset, corrupt, load_preset, preset_files

SHAPE = (65, 90, 90, 54)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--draws", type=int, default=None, help="draws to average a preset over (100 on a GPU, 3 on a CPU)"
    )
    options = parser.parse_args()
    device = torch.device(options.device)
    draws = options.draws or (100 if device.type == "cuda" else 3)
    image, bvals, bvecs = scan(device)
    for name, kind in ARTIFACTS.items():
        preset = Preset(name, (kind(prob=1.0),))
        report(
            "artifact",
            name,
            device,
            timed(lambda p=preset: apply(image, bvals, bvecs, p, 0), device, options.repeats),
        )
    for name in preset_files():
        preset = certain(load_preset(name))
        result = timed(lambda p=preset: apply(image, bvals, bvecs, p, 0), device, options.repeats)
        result["mean_ms"] = mean_over_draws(image, bvals, bvecs, preset, draws)
        report("preset", name, device, result | {"draws": draws})
    for name, ours, theirs in counterparts(image):
        compare(name, ours, theirs, device, options.repeats)


def scan(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A head of Gaussian diffusion, one b0 and 64 directions."""
    generator = torch.Generator().manual_seed(0)
    x, y, z = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SHAPE[1:]], indexing="ij")
    head = 1000 * torch.exp(-(((x**2 + y**2 + z**2) / 0.7) ** 4))
    bvecs = torch.nn.functional.normalize(torch.randn(SHAPE[0], 3, generator=generator), dim=1)
    bvals = torch.full((SHAPE[0],), 1000.0)
    bvals[0], bvecs[0] = 0, 0
    attenuation = torch.exp(-bvals * (bvecs**2 @ torch.tensor([1.5e-3, 0.4e-3, 0.3e-3])))
    return (attenuation.view(-1, 1, 1, 1) * head).to(device), bvals, bvecs


def certain(preset: Preset) -> Preset:
    """`preset` with every artifact on."""
    return Preset(preset.name, tuple(dataclasses.replace(a, prob=1.0) for a in preset.artifacts))


def apply(image: Tensor, bvals: Tensor, bvecs: Tensor, preset: Preset, seed: int) -> Tensor:
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))
    return corrupt(image, bvals, bvecs, affine=affine, preset=preset, seed=seed)[0]


def timed(function: Callable[[], object], device: torch.device, repeats: int) -> dict[str, float]:
    """Best and median milliseconds, and peak memory above what was there before, in MiB."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = [once(function, device) for _ in range(repeats)]
    result = {"best_ms": min(times), "median_ms": statistics.median(times)}
    if device.type == "cuda":
        result["peak_mib"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    else:  # of the process so far: an upper bound
        result["process_peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return result


def once(function: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def mean_over_draws(image: Tensor, bvals: Tensor, bvecs: Tensor, preset: Preset, draws: int) -> float:
    return statistics.fmean(
        once(lambda s=seed: apply(image, bvals, bvecs, preset, s), image.device) for seed in range(draws)
    )


def counterparts(image: Tensor) -> list[tuple[str, Callable[[], object], Callable[[], object]]]:
    """(name, ours, MONAI's) at equal effect: same noise level, same truncation radius, one spike per"""
    n = SHAPE[0]
    field = polynomial_field([0.0] + [0.1] * 19, SHAPE[1:], 3, image)
    alpha = 0.5
    fraction = 1 - (1 - alpha) * math.sqrt(2)
    generator = torch.Generator(image.device).manual_seed(0)
    every = torch.arange(n).repeat_interleave(SHAPE[3])
    slices = torch.arange(SHAPE[3]).repeat(n)
    wave = {"volumes": every, "slices": slices, "frequency": torch.tensor([[9, 7]]).expand(len(every), 2)}
    noisy = RandRicianNoise(prob=1.0, std=30.0, sample_std=False)
    biased = RandBiasField(prob=1.0, degree=3, coeff_range=(0.1, 0.1))
    ringing = GibbsNoise(alpha=alpha)
    herringbone = KSpaceSpikeNoise(loc=(54, 52, 30), k_intensity=math.log(0.05 * float(image[0].sum())))
    return [
        ("rician", lambda: rician(image, sigma=30.0, generator=generator), lambda: noisy(image)),
        ("gibbs", lambda: gibbs(image, axes=(0, 1), fraction=fraction), lambda: ringing(image)),
        ("spike", lambda: spike(image, amplitude=0.05, **wave), lambda: herringbone(image)),
        ("bias_field", lambda: bias_field(image, log_gain=field), lambda: biased(image)),
    ]


def compare(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], device: torch.device, repeats: int
) -> None:
    """Both sides in turn; the ratio is of the best times."""
    times: dict[str, list[float]] = {"ours": [], "monai": []}
    for _ in range(repeats + 1):
        times["ours"].append(once(ours, device))
        times["monai"].append(once(theirs, device))
    best = {side: min(values[1:]) for side, values in times.items()}
    medians = {f"{side}_median_ms": statistics.median(values[1:]) for side, values in times.items()}
    result = {
        "ours_ms": best["ours"],
        "monai_ms": best["monai"],
        "ratio": best["monai"] / best["ours"],
        **medians,
    }
    report("counterpart", name, device, result)


def report(kind: str, name: str, device: torch.device, values: dict[str, float]) -> None:
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu x{torch.get_num_threads()}"
    rounded = {key: round(value, 2) if isinstance(value, float) else value for key, value in values.items()}
    print(json.dumps({"kind": kind, "name": name, "device": where, **rounded}), flush=True)


if __name__ == "__main__":
    main()
