"""`EquivariantUNet` against plain U-Nets of the same channel width at 64 x 80 x 56, as JSON lines.

training_ratio, inference_ratio: time of the preset over `PlainUNet` with as many filters as the preset's finest level
has components, best of interleaved runs.  twin_ratio, beside them: over the preset's own wiring with ordinary
convolutions, instance norm and ReLU.  cpu_time_ratio: of CPU seconds, for a machine that is not alone.
whole_brain_s: inference at 96 x 96 x 60.  any_ratio: inference of `AnyProtocolUNet` over that of `EquivariantUNet`, a
scan of one shell whose head fills 44 % of the grid; any_training_ratio: the same of a training step on a crop of 32
voxels inside the head.  training_memory_ratio: growth of peak memory in a training step, each in a process of its own.

On CPU in float32; on a GPU in bfloat16 autocast (or --precision float32) with channels last, for all networks alike.

Run: python benchmarks/networks.py [--size small] [--repeats 3] [--compile] [--precision float32] [--shape 64 80 56]
     python benchmarks/networks.py --only-any
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dmri_monai.equivariant import as_irreps
from dmri_monai.networks import AnyProtocolUNet, EquivariantUNet, PlainUNet
from dmri_monai.networks.invariant_gate import InvariantNormGate
from dmri_monai.qspace.shell_set import shell_irreps

IRREPS_IN, CLASSES = "2x0e+1x2e+1x4e", 4
SHAPE, WHOLE_BRAIN, CROP = (64, 80, 56), (96, 96, 60), 32
SLOTS, DEGREE, HEAD = 4, 6, 0.92  # of `AnyProtocolUNet`; squared radius of a ball that fills the grid
TARGETS = {  # on the CPU in float32, on a GPU in bfloat16
    "training_ratio": {"cpu": 1.15, "cuda": 1.5},
    "inference_ratio": {"cpu": 1.1, "cuda": 1.2},
    "whole_brain_s": {"cpu": 20.0, "cuda": 0.15},
    "any_ratio": {"cpu": 1.5, "cuda": 1.5},
    "any_training_ratio": {},
    "training_memory_ratio": {},
}


@dataclass(frozen=True)
class Place:
    """Where and how networks run: "cpu" or "cuda", the name of a dtype, a backend of `torch.compile` or none."""

    device: str
    precision: str
    backend: str | None = None

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def network(self, network: nn.Module) -> nn.Module:
        network = network.to(self.device)
        if self.cuda:
            network = network.to(memory_format=torch.channels_last_3d)
        return torch.compile(network, backend=self.backend) if self.backend else network

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.cuda else f"{torch.get_num_threads()} CPU threads"


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


def volume(shape: Sequence[int], place: Place) -> Tensor:
    x = torch.randn(1, as_irreps(IRREPS_IN).dim, *shape, device=place.device)
    return x.to(memory_format=torch.channels_last_3d) if place.cuda else x


def scan_of_one_shell(shape: Sequence[int], place: Place, head: float = HEAD) -> Tensor:
    """Channels of `AnyProtocolUNet`: the first slot alone is there, and no signal outside of a ball."""
    x = torch.rand(1, as_irreps(shell_irreps(SLOTS, DEGREE)).dim, *shape, device=place.device)
    x[:, 2 + SLOTS : 1 + 2 * SLOTS] = 0.0
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n, device=place.device) for n in shape), indexing="ij")
    x[:, 1 : 1 + SLOTS] *= sum(axis.square() for axis in axes) < head
    return x


def training_step(network: nn.Module, x: Tensor, place: Place) -> None:
    network.zero_grad(set_to_none=True)
    with place.autocast():
        loss = network(x).float().square().mean()
    loss.backward()


def inference(network: nn.Module, x: Tensor, place: Place) -> None:
    with torch.no_grad(), place.autocast():
        network(x)


def seconds(action: Callable[[], object], place: Place) -> tuple[float, float]:
    """Elapsed and CPU seconds; the latter count all threads and hardly depend on what else the machine does."""
    place.synchronize()
    start, cpu = time.perf_counter(), time.process_time()
    action()
    place.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def best(
    networks: dict[str, nn.Module], act: Callable, x: Tensor, place: Place, repeats: int
) -> dict[str, tuple[float, float]]:
    """Best elapsed and CPU time of every network; runs are interleaved and the first round is not counted."""
    rounds = [
        {n: seconds(lambda m=m: act(m, x, place), place) for n, m in networks.items()}
        for _ in range(repeats + 1)
    ]
    return {
        name: (min(r[name][0] for r in rounds[1:]), min(r[name][1] for r in rounds[1:])) for name in networks
    }


def training_peak_mib(name: str, size: str, shape: Sequence[int], place: Place) -> float:
    """Growth of peak memory in a first training step, in a fresh process (MiB), not compiled."""
    own = [
        "--size",
        size,
        "--shape",
        *map(str, shape),
        "--device",
        place.device,
        "--precision",
        place.precision,
    ]
    command = [sys.executable, __file__, "--peak-of", name, *own]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_training_peak(name: str, size: str, shape: Sequence[int], place: Place) -> None:
    network, x = place.network(NETWORKS[name](size)), volume(shape, place)
    training_step(network, x[..., :16, :16, :16], place)  # what is set up once is not the step's
    before = torch.cuda.memory_allocated() / 1024 if place.cuda else memory_kib("VmRSS")
    training_step(network, x, place)
    peak = torch.cuda.max_memory_allocated() / 1024 if place.cuda else memory_kib("VmHWM")
    print((peak - before) / 1024)


def memory_kib(name: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in status if line.startswith(f"{name}:")).split()[1])


def report(name: str, value: float, place: Place, **details: float | str) -> None:
    rounded = {key: round(v, 3) if isinstance(v, float) else v for key, v in details.items()}
    own = {"device": place.name, "precision": place.precision, "compiled": place.backend}
    line = {"name": name, "value": round(value, 3), "target": TARGETS[name].get(place.device)}
    print(json.dumps(line | rounded | own), flush=True)


def report_times(name: str, times: dict[str, tuple[float, float]], place: Place, size: str) -> None:
    elapsed = {network: t[0] for network, t in times.items()}
    details = {f"{network}_s": t for network, t in elapsed.items()}
    details["twin_ratio"] = elapsed["equivariant"] / elapsed["twin"]
    if not place.cuda:
        details["cpu_time_ratio"] = times["equivariant"][1] / times["plain"][1]
        details["cpu_time_twin_ratio"] = times["equivariant"][1] / times["twin"][1]
    report(name, elapsed["equivariant"] / elapsed["plain"], place, **details, size=size)


def report_any(equivariant: nn.Module, size: str, shape: Sequence[int], repeats: int, place: Place) -> None:
    network = AnyProtocolUNet(shell_irreps(SLOTS, DEGREE), f"{CLASSES}x0e", size)
    own = {"any": replace(place, backend=None).network(network).eval()}
    elapsed, cpu = best(own, inference, scan_of_one_shell(shape, place), place, repeats)["any"]
    one = {"equivariant": equivariant}
    today = best(one, inference, volume(shape, place), place, repeats)["equivariant"]
    report("any_ratio", elapsed / today[0], place, any_s=elapsed, cpu_time_ratio=cpu / today[1], size=size)
    crop = (CROP,) * 3
    trained = best(own, training_step, scan_of_one_shell(crop, place, 4.0), place, repeats)["any"]
    before = best(one, training_step, volume(crop, place), place, repeats)["equivariant"]
    ratios = {"any_s": trained[0], "cpu_time_ratio": trained[1] / before[1], "crop": CROP}
    report("any_training_ratio", trained[0] / before[0], place, **ratios, size=size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    there = torch.cuda.is_available()
    parser.add_argument("--size", default="small")
    parser.add_argument(
        "--shape", type=int, nargs=3, help="voxels; by default those that the targets hold for"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-any", action="store_true", help="any_ratio and any_training_ratio alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if there else "cpu")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="bfloat16 on a GPU, else float32"
    )
    parser.add_argument("--compile", nargs="?", const="inductor", metavar="BACKEND", help="of torch.compile")
    parser.add_argument("--peak-of", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    precision = options.precision or ("bfloat16" if options.device == "cuda" else "float32")
    place = Place(options.device, precision, options.compile)
    shape = options.shape or SHAPE
    if options.peak_of:
        print_training_peak(options.peak_of, options.size, shape, place)
    elif options.only_any:
        equivariant = place.network(NETWORKS["equivariant"](options.size)).eval()
        report_any(equivariant, options.size, shape, options.repeats, place)
    else:
        measure(options.size, shape, options.shape or WHOLE_BRAIN, options.repeats, place)


def measure(size: str, shape: Sequence[int], whole_brain: Sequence[int], repeats: int, place: Place) -> None:
    networks = {name: place.network(make(size)) for name, make in NETWORKS.items()}
    report_times(
        "training_ratio", best(networks, training_step, volume(shape, place), place, repeats), place, size
    )
    networks = {name: network.eval() for name, network in networks.items()}
    times = best(networks, inference, volume(shape, place), place, repeats)
    report_times("inference_ratio", times, place, size)
    one = {"equivariant": networks["equivariant"]}
    whole = best(one, inference, volume(whole_brain, place), place, repeats)["equivariant"]
    report("whole_brain_s", whole[0], place, cpu_s=whole[1], size=size)
    report_any(networks["equivariant"], size, shape, repeats, place)
    peaks = {name: training_peak_mib(name, size, shape, place) for name in NETWORKS}
    details = {f"{name}_mib": peak for name, peak in peaks.items()}
    report(
        "training_memory_ratio", peaks["equivariant"] / max(peaks["plain"], 1e-3), place, **details, size=size
    )


if __name__ == "__main__":
    main()
