"""`EquivariantUNet` against plain U-Nets of the same channel width at 64 x 80 x 56, as JSON lines.

training_ratio, inference_ratio: time of the preset over `PlainUNet` with as many filters as the preset's finest level
has components, best of interleaved runs.  twin_ratio, beside them: over the preset's own wiring with ordinary
convolutions, instance norm and ReLU.  cpu_time_ratio: of CPU seconds, for a machine that is not alone.
whole_brain_s: inference at 96 x 96 x 60.  any_ratio: inference of `AnyProtocolUNet` over that of `EquivariantUNet`, a
scan of one shell whose head fills 44 % of the grid.  training_memory_ratio: growth of peak memory in a training step,
each in a process of its own.

On CPU in float32; on a GPU in bfloat16 autocast with channels last, for all networks alike.

Run: python benchmarks/networks.py [--size small] [--repeats 3] [--compile] [--only-any]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from dmri_monai.equivariant import as_irreps
from dmri_monai.networks import AnyProtocolUNet, EquivariantUNet, PlainUNet
from dmri_monai.networks.invariant_gate import InvariantNormGate
from dmri_monai.qspace.shell_set import shell_irreps

IRREPS_IN, CLASSES = "2x0e+1x2e+1x4e", 4
SHAPE, WHOLE_BRAIN = (64, 80, 56), (96, 96, 60)
SLOTS, DEGREE, HEAD = 4, 6, 0.92  # of `AnyProtocolUNet`; squared radius of a ball that fills the grid
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
TARGETS = {
    "training_ratio": 1.5 if CUDA else 1.15,
    "inference_ratio": 1.2 if CUDA else 1.1,
    "whole_brain_s": 0.15 if CUDA else 20.0,
    "any_ratio": 1.5,
    "training_memory_ratio": None,
}


def equivariant(size: str) -> nn.Module:
    return EquivariantUNet(IRREPS_IN, f"{CLASSES}x0e", size)


def plain(size: str) -> nn.Module:
    network = EquivariantUNet(IRREPS_IN, None, size)
    return PlainUNet(network.expected.dim, CLASSES, as_irreps(network.irreps_features).dim)


def twin(size: str) -> nn.Module:
    """The wiring of the preset with nothing equivariant in it but the resampling."""
    return _with_plain_gates(EquivariantUNet(IRREPS_IN, f"{CLASSES}x0e", size).to_dense())


def _with_plain_gates(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, InvariantNormGate):
            module.add_module(name, nn.Sequential(nn.InstanceNorm3d(sum(child.sizes)), nn.ReLU()))
        else:
            _with_plain_gates(child)
    return module


NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    "equivariant": equivariant,
    "plain": plain,
    "twin": twin,
}


def autocast():
    return torch.autocast("cuda", dtype=torch.bfloat16) if CUDA else nullcontext()


def placed(network: nn.Module, compiled: bool) -> nn.Module:
    network = network.to(DEVICE)
    if CUDA:
        network = network.to(memory_format=torch.channels_last_3d)
    return torch.compile(network) if compiled else network


def volume(shape: tuple[int, int, int]) -> Tensor:
    x = torch.randn(1, as_irreps(IRREPS_IN).dim, *shape, device=DEVICE)
    return x.to(memory_format=torch.channels_last_3d) if CUDA else x


def scan_of_one_shell() -> Tensor:
    """Channels of `AnyProtocolUNet`: the first slot alone is there, and no signal outside of a ball."""
    x = torch.rand(1, as_irreps(shell_irreps(SLOTS, DEGREE)).dim, *SHAPE, device=DEVICE)
    x[:, 2 + SLOTS : 1 + 2 * SLOTS] = 0.0
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, device=DEVICE) for n in SHAPE), indexing="ij")
    x[:, 1 : 1 + SLOTS] *= sum(axis.square() for axis in axes) < HEAD
    return x


def training_step(network: nn.Module, x: Tensor) -> None:
    network.zero_grad(set_to_none=True)
    with autocast():
        loss = network(x).float().square().mean()
    loss.backward()


def inference(network: nn.Module, x: Tensor) -> None:
    with torch.no_grad(), autocast():
        network(x)


def seconds(action: Callable[[], object]) -> tuple[float, float]:
    """Elapsed and CPU seconds; the latter count all threads and hardly depend on what else the machine does."""
    if CUDA:
        torch.cuda.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    action()
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def best(
    networks: dict[str, nn.Module], act: Callable, x: Tensor, repeats: int
) -> dict[str, tuple[float, float]]:
    """Best elapsed and CPU time of every network; runs are interleaved and the first round is not counted."""
    rounds = [{n: seconds(lambda m=m: act(m, x)) for n, m in networks.items()} for _ in range(repeats + 1)]
    return {
        name: (min(r[name][0] for r in rounds[1:]), min(r[name][1] for r in rounds[1:])) for name in networks
    }


def training_peak_mib(name: str, size: str) -> float:
    """Growth of peak memory in a first training step, in a fresh process (MiB)."""
    command = [sys.executable, __file__, "--peak-of", name, "--size", size]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_training_peak(name: str, size: str) -> None:
    network, x = placed(NETWORKS[name](size), compiled=False), volume(SHAPE)
    training_step(network, x[..., :16, :16, :16])  # what is set up once is not the step's
    before = torch.cuda.memory_allocated() / 1024 if CUDA else memory_kib("VmRSS")
    training_step(network, x)
    peak = torch.cuda.max_memory_allocated() / 1024 if CUDA else memory_kib("VmHWM")
    print((peak - before) / 1024)


def memory_kib(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith(f"{name}:")).split()[1])


def report(name: str, value: float, **details: float | str) -> None:
    rounded = {key: round(v, 3) if isinstance(v, float) else v for key, v in details.items()}
    print(json.dumps({"name": name, "value": round(value, 3), "target": TARGETS[name]} | rounded), flush=True)


def report_times(name: str, times: dict[str, tuple[float, float]], where: dict[str, str]) -> None:
    elapsed = {network: t[0] for network, t in times.items()}
    details = {f"{network}_s": t for network, t in elapsed.items()}
    details["twin_ratio"] = elapsed["equivariant"] / elapsed["twin"]
    if not CUDA:
        details["cpu_time_ratio"] = times["equivariant"][1] / times["plain"][1]
        details["cpu_time_twin_ratio"] = times["equivariant"][1] / times["twin"][1]
    report(name, elapsed["equivariant"] / elapsed["plain"], **details, **where)


def report_any(equivariant: nn.Module, options: argparse.Namespace, where: dict[str, str]) -> None:
    network = AnyProtocolUNet(shell_irreps(SLOTS, DEGREE), f"{CLASSES}x0e", options.size)
    own = {"any": placed(network, compiled=False).eval()}
    elapsed, cpu = best(own, inference, scan_of_one_shell(), options.repeats)["any"]
    today = best({"equivariant": equivariant}, inference, volume(SHAPE), options.repeats)["equivariant"]
    report("any_ratio", elapsed / today[0], any_s=elapsed, cpu_time_ratio=cpu / today[1], **where)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only-any", action="store_true", help="any_ratio alone")
    parser.add_argument("--peak-of", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if options.peak_of:
        print_training_peak(options.peak_of, options.size)
        return
    device = torch.cuda.get_device_name() if CUDA else f"{torch.get_num_threads()} CPU threads"
    where = {"size": options.size, "device": device}
    networks = {name: placed(make(options.size), options.compile) for name, make in NETWORKS.items()}
    if options.only_any:
        report_any(networks["equivariant"].eval(), options, where)
        return
    report_times("training_ratio", best(networks, training_step, volume(SHAPE), options.repeats), where)
    networks = {name: network.eval() for name, network in networks.items()}
    report_times("inference_ratio", best(networks, inference, volume(SHAPE), options.repeats), where)
    whole = best({"equivariant": networks["equivariant"]}, inference, volume(WHOLE_BRAIN), options.repeats)
    report("whole_brain_s", whole["equivariant"][0], cpu_s=whole["equivariant"][1], **where)
    report_any(networks["equivariant"], options, where)
    peaks = {name: training_peak_mib(name, options.size) for name in NETWORKS}
    details = {f"{name}_mib": peak for name, peak in peaks.items()}
    report("training_memory_ratio", peaks["equivariant"] / peaks["plain"], **details, **where)


if __name__ == "__main__":
    main()
