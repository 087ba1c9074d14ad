"""Time and memory of the equivariant layers beside a dense conv3d of the same channel counts, in the same run.

Prints one JSON line per layer, size and device: best and median seconds and peak memory of a forward pass and of a
training step (forward + backward, input gradient included), and the ratio of best times to the dense convolution's.
Repetitions of all layers are interleaved, so that a busy machine slows them alike.

    python benchmarks/equivariant_layers.py                 # CPU, and GPU where there is one
    python benchmarks/equivariant_layers.py --cases wide --q 64 --size 16 --repeats 3
    python benchmarks/equivariant_layers.py --cases network --threads 2    # dense: before, spectral: after; 8 GiB
    python benchmarks/equivariant_layers.py --cases strategies

network: CPU seconds, elapsed seconds and peak memory of a training step of a network with two pq layers of `PQDiff`
(channels [7, 4] and [20, 5], 64 samples of 16³ voxels), each strategy in a process of its own.
strategies: CPU seconds of a training step by every strategy of a kernel that factorises, over a range of sizes, which
one `auto` takes, and its time over that of the fastest.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from dmri_monai.equivariant import (
    PQConv3d,
    PQDiff,
    PQTensorProduct,
    SteerableConv3d,
    irreps_from_multiplicities,
)
from dmri_monai.equivariant.pq.contraction.factorised import costs
from dmri_monai.equivariant.pq.contraction.interface import Sizes
from dmri_monai.networks import PQSegmentationNet
from dmri_monai.networks.pq_segmentation import PQOptions

STRATEGIES = ("dense", "p_basis", "p_last")
CASES = {"narrow": ([1], [10, 5]), "wide": ([7, 4], [10, 5])}


@dataclass
class Candidate:
    """Something to time: a forward function, its parameters, and what was measured."""

    name: str
    forward: Callable[[Tensor], Tensor]
    module: nn.Module
    forward_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    peak_mib: float = 0.0


def gradient_table(samples: int, device: str) -> Tensor:
    """(samples, 3) q-vectors: one b = 0 and a shell of random directions."""
    q = torch.nn.functional.normalize(
        torch.randn(samples, 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    q[0] = 0
    return q.to(device)


def pq_candidates(case: str, samples: int, device: str) -> tuple[int, list[Candidate]]:
    """Channels of the input, and the candidates of one table size."""
    irreps_in, irreps_out = (irreps_from_multiplicities(m) for m in CASES[case])
    q = gradient_table(samples, device)
    dense = nn.Conv3d(irreps_in.dim * samples, irreps_out.dim * samples, 3, padding=1).to(device)
    candidates = [Candidate("dense conv3d", lambda x: dense(x.flatten(1, 2)), dense)]
    for kernel in (PQTensorProduct(), PQDiff()):
        layer = PQConv3d(irreps_in, irreps_out, 3, kernel).to(device)
        candidates.append(Candidate(type(kernel).__name__, lambda x, layer=layer: layer(x, q), layer))
    return irreps_in.dim, candidates


def steerable_candidates(device: str, width: int) -> tuple[int, list[Candidate]]:
    """A steerable convolution of `width` channels per degree 0, 1, 2 halved, and its dense twin."""
    irreps = f"{width}x0e+{width // 2}x1o+{width // 4}x2e"
    layer = SteerableConv3d(irreps, irreps).to(device)
    dense = nn.Conv3d(layer.irreps_in.dim, layer.irreps_out.dim, 3, padding=1).to(device)
    return layer.irreps_in.dim, [
        Candidate("dense conv3d", dense, dense),
        Candidate("SteerableConv3d", layer, layer),
    ]


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def resident(entry: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at its peak."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) / 2**10
    raise RuntimeError(f"no {entry} in /proc/self/status")


def start_of_peak(device: str) -> float:
    """Reset the peak; on the CPU return the MiB in use, which the peak is measured from."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return 0.0
    ctypes.CDLL(None).malloc_trim(0)  # memory kept from earlier layers would hide this one's
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return resident("VmRSS")


def measure(candidate: Candidate, x: Tensor, device: str, dtype: torch.dtype) -> None:
    """One inference in eval mode and one training step."""
    before = start_of_peak(device)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        candidate.module.eval()
        with torch.no_grad():
            start = clock(device)
            candidate.forward(x)
            candidate.forward_s.append(clock(device) - start)
        candidate.module.train()
        start = clock(device)
        y = candidate.forward(x)
    y.backward(torch.ones_like(y))
    candidate.step_s.append(clock(device) - start)
    x.grad = None
    candidate.module.zero_grad(set_to_none=True)
    if device == "cuda":
        candidate.peak_mib = torch.cuda.max_memory_allocated() / 2**20
    else:
        candidate.peak_mib = max(candidate.peak_mib, resident("VmHWM") - before)


def run(
    label: dict, x: Tensor, candidates: list[Candidate], device: str, dtype: torch.dtype, repeats: int
) -> None:
    for repetition in range(repeats + 1):
        for candidate in list(candidates):
            try:
                measure(candidate, x, device, dtype)
            except torch.OutOfMemoryError:
                print(json.dumps({**label, "layer": candidate.name, "error": "out of memory"}), flush=True)
                candidates.remove(candidate)
                torch.cuda.empty_cache()
                continue
            if repetition == 0:  # warm-up: caches, autotuning
                candidate.forward_s.clear()
                candidate.step_s.clear()
    if not candidates:
        return
    dense = candidates[0] if candidates[0].name.startswith("dense") else None
    for candidate in candidates:
        line = {
            **label,
            "layer": candidate.name,
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "forward_s": round(min(candidate.forward_s), 5),
            "forward_median_s": round(statistics.median(candidate.forward_s), 5),
            "step_s": round(min(candidate.step_s), 5),
            "step_median_s": round(statistics.median(candidate.step_s), 5),
            "peak_mib": round(candidate.peak_mib),
        }
        if dense is not None:
            line["forward_ratio"] = round(min(candidate.forward_s) / min(dense.forward_s), 3)
            line["step_ratio"] = round(min(candidate.step_s) / min(dense.step_s), 3)
        print(json.dumps(line), flush=True)


STRATEGY_CASES = list(
    itertools.product(
        (3, 5),
        (16, 64),
        [([1], [7, 4], 12), ([7, 4], [10, 5], 8), ([20, 5], [10, 3], 8)],
        [(True, True), (True, False), (False, True)],
    )
)


def compare_strategies(repeats: int) -> None:
    for kernel_size, samples, (into, out, edge), (q_in, q_out) in STRATEGY_CASES:
        fields = [irreps_from_multiplicities(m) for m in (into, out)]
        q = gradient_table(samples, "cpu")
        x = torch.randn(1, fields[0].dim, *([samples] if q_in else []), edge, edge, edge, requires_grad=True)
        args = (x, q if q_in else None, q if q_out and not q_in else None)
        layers = {
            name: PQConv3d(*fields, kernel_size, PQTensorProduct(), q_in=q_in, q_out=q_out, strategy=name)
            for name in STRATEGIES
        }
        operator = layers["dense"].operator
        sizes = Sizes(samples if q_out else 1, samples if q_in else 1, edge**3, 1.0, on_cpu=True)
        expected = costs(operator.layout, sizes)
        chosen = min(expected, key=expected.__getitem__)
        plausible = {n: layer for n, layer in layers.items() if expected[n] < 12 * expected[chosen]}
        runs = {
            name: [step_cpu(layer, args) for _ in range(repeats + 1)][1:] for name, layer in plausible.items()
        }
        found = {name: round(statistics.median(values), 4) for name, values in runs.items()}
        label = {
            "case": "strategies",
            "kernel_size": kernel_size,
            "q": samples,
            "in": into,
            "out": out,
            "size": edge,
        }
        sides = {"q_in": q_in, "q_out": q_out, "chosen": chosen}
        loss = {"over_fastest": round(found[chosen] / min(found.values()), 2)}
        print(json.dumps({**label, **sides, "cpu_s": found, **loss}), flush=True)


def step_cpu(layer: PQConv3d, args: tuple) -> float:
    """CPU seconds of a training step, which other load changes little."""
    start = time.process_time()
    y = layer(*args)
    y.backward(torch.ones_like(y))
    return time.process_time() - start


def network_step(strategy: str, samples: int, size: int, repeats: int) -> None:
    """Time a network with two pq layers in this process, and print one line."""
    torch.manual_seed(0)
    options = PQOptions(strategy=strategy)
    network = PQSegmentationNet("1x0e", 1000.0, pq=[[7, 4], [20, 5]], kernel=PQDiff(), options=options)
    bvecs = gradient_table(samples, "cpu").unsqueeze(0)
    bvals = 1000.0 * bvecs.norm(dim=-1).round()
    image = torch.rand(1, samples, size, size, size)
    before, runs = start_of_peak("cpu"), []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        network(image, bvals, bvecs).square().mean().backward()
        runs.append((time.perf_counter() - start, time.process_time() - cpu))
    seconds, cpu_s = (statistics.median(values) for values in zip(*runs, strict=True))
    line = {
        "case": "network",
        "strategy": strategy,
        "q": samples,
        "size": size,
        "threads": torch.get_num_threads(),
    }
    times = {"step_s": round(seconds, 2), "step_cpu_s": round(cpu_s, 2)}
    print(json.dumps({**line, **times, "peak_mib": round(resident("VmHWM") - before)}), flush=True)


def compare_networks(options: argparse.Namespace) -> None:
    for strategy in ("dense", "spectral"):
        command = [sys.executable, __file__, "--network-step", strategy, "--threads", str(options.threads)]
        numbers = [
            "--q",
            str(max(options.q) if len(options.q) == 1 else 64),
            "--size",
            str(options.size or 16),
        ]
        subprocess.run([*command, *numbers, "--repeats", str(options.repeats)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="*", default=["steerable", "narrow", "wide"])
    parser.add_argument("--q", nargs="*", type=int, default=[16, 32, 64, 128])
    parser.add_argument(
        "--size", type=int, default=None, help="voxels along an edge; default 32 on GPU, 16 (wide: 12) on CPU"
    )
    parser.add_argument("--device", nargs="+", help="by default the CPU, and the GPU where there is one")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--largest", type=float, default=1e11, help="multiplications of a dense layer on CPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--network-step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    if options.network_step:
        network_step(options.network_step, options.q[0], options.size, options.repeats)
        return
    if "strategies" in options.cases:
        compare_strategies(options.repeats)
    if "network" in options.cases:
        compare_networks(options)
    options.cases = [case for case in options.cases if case not in ("strategies", "network")]
    for device in options.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for dtype in [torch.float32, *([torch.bfloat16] if device == "cuda" else [])]:
            if device == "cuda":
                torch.backends.cudnn.benchmark = True
            run_cases(options, device, dtype)


def run_cases(options: argparse.Namespace, device: str, dtype: torch.dtype) -> None:
    for case in options.cases:
        size = options.size or (32 if device == "cuda" else 12 if case == "wide" else 16)
        if case == "steerable":
            edge = max(size, 32)
            channels, candidates = steerable_candidates(device, 16)
            x = torch.randn(1, channels, edge, edge, edge, device=device, requires_grad=True)
            run({"case": case, "size": edge}, x, candidates, device, dtype, options.repeats)
            continue
        for samples in options.q:
            channels, candidates = pq_candidates(case, samples, device)
            weight = candidates[0].module.weight
            if (
                device == "cpu" and weight.numel() * size**3 > options.largest
            ):  # minutes: time what factorises
                candidates = [c for c in candidates if c.name == "PQTensorProduct"]
            x = torch.randn(1, channels, samples, size, size, size, device=device, requires_grad=True)
            run({"case": case, "size": size, "q": samples}, x, candidates, device, dtype, options.repeats)


if __name__ == "__main__":
    main()
