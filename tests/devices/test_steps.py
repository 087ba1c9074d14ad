"""A training step on another device: nothing mixes devices, and the CPU waits for the device in few known places."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn

from dmri_monai.inference.architectures import build_network, prepare_batch
from dmri_monai.inference.spec import TAKES, ModelSpec
from dmri_monai.losses import CrossingsLoss, OneHotL1Loss
from dmri_monai.metrics import AngularError, MetricHandler
from dmri_monai.tasks import TASKS
from dmri_monai.training import PretrainBatch, StopAtNonFinite, loss_of, pretext_loss
from dmri_monai.transforms import ToVoxelFramed, collate_dwi
from tests.devices.examples import SAMPLES, SHAPE, classes, drawn, item, uniform
from tests.devices.other_device import OTHER, Wait, other_device, values

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
CPU = torch.device("cpu")
# where a training step may wait for the device, and why
MAY_WAIT = {
    "training/handlers.py:__call__": "StopAtNonFinite: the loss decides whether the step goes on",
    "equivariant/finite_values.py:check_finite": "one look at the data, before anything is computed",
    "networks/samples.py:_check_values": "one look at the table, before anything is computed",
    "networks/samples.py:_rows_in_use": "their number is a size of the input",
    "networks/voxels_first.py:item": "the number of voxels that are not air is a size",
    "networks/voxels_first.py:present_channels": "the number of shells is a size",
    "losses/voxels.py:forward": "CountedVoxelsLoss: any loss of MONAI, over as many voxels as count",
    "artifacts/engine/raw_scan.py:to_canonical": "one look at the scan, before it is corrupted",
    "artifacts/engine/scan_context.py:_reference": "what is drawn depends on the level of the signal",
}

LABELS: dict[str, Callable[[], Tensor]] = {
    "tissue": lambda: classes(4, 2, 1, *SHAPE),
    "lesion": lambda: classes(2, 2, 1, *SHAPE),
    "crossings": lambda: classes(4, 2, 1, *SHAPE),
    "orientation": lambda: drawn(2, 3, *SHAPE),
    "fod": lambda: drawn(2, 45, *SHAPE),
    "fractions": lambda: uniform(2, 3, *SHAPE) / 3,
}


def unknown(waits: list[Wait]) -> list[Wait]:
    """Those that no reason is known for."""
    return [wait for wait in waits if not set(wait.places) & set(MAY_WAIT)]


def trained(
    network: nn.Module, batch: Any, loss: Callable[..., Tensor], prepare: Any
) -> tuple[nn.Module, list[Wait]]:
    """`network` after a step of a MONAI trainer on the other device, and what was waited for in it."""
    with other_device() as waits:
        network = network.to(OTHER)
        trainer = SupervisedTrainer(
            device=OTHER,
            max_epochs=1,
            train_data_loader=[batch],
            network=network,
            optimizer=torch.optim.Adam(network.parameters()),
            loss_function=loss,
            prepare_batch=prepare,
            train_handlers=[StopAtNonFinite()],
            decollate=False,  # which reads the loss, to hand it to metrics, when the step is over
        )
        trainer.run()
        assert trainer.state.output["loss"].device == OTHER
        return network, list(waits)


def loss_of_task(task: str) -> Any:
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    if task != "tissue":
        parser.update(ConfigParser.load_config_file(CONFIGS / "tasks" / f"{task}.json"))
    return parser.get_parsed_content("objective::loss")


@pytest.mark.parametrize("task", TASKS)
def test_a_step_of_each_task_stays_on_the_device(task: str) -> None:
    spec = ModelSpec(task=task)
    torch.manual_seed(0)
    channels = build_channels(spec)
    network = nn.Conv3d(2, channels, 1)
    batch = {"image": drawn(2, 2, *SHAPE), "label": LABELS[task]()}
    network, waits = trained(network, batch, loss_of_task(task), prepare_batch(spec))
    assert all(parameter.grad.device == OTHER for parameter in network.parameters())
    assert not unknown(waits)
    assert "training/handlers.py:__call__" in {place for wait in waits for place in wait.places}


def build_channels(spec: ModelSpec) -> int:
    from dmri_monai.so3 import as_irreps

    return as_irreps(spec.irreps_out).dim


def raw_batch() -> dict[str, Any]:
    """Two raw scans, collated for a pretext."""
    scans = [ToVoxelFramed("image")({k: item(CPU)[k] for k in ("image", "bvals", "bvecs")}) for _ in range(2)]
    return dict(collate_dwi([{**scan, "item_seed": seed} for seed, scan in enumerate(scans)]))


@pytest.mark.parametrize("pretext", ["autoencoder", "artifacts", "masked"])
@pytest.mark.parametrize("architecture", TAKES)
def test_a_step_of_each_pretext_stays_on_the_device(architecture: str, pretext: str) -> None:
    options = {"n_directions": 6} if architecture == "plain-directions" else {}
    spec = ModelSpec(architecture=architecture, task=None, size="tiny", shells=[1000.0], **options)
    prepare, batch = PretrainBatch(pretext, spec), raw_batch()
    inputs, target, *_ = prepare(batch, CPU)
    channels = (target["harmonics"] if isinstance(target, dict) else target).shape[1]
    network = _FirstInput(inputs.shape[1], channels)
    _, waits = trained(network, batch, pretext_loss(pretext, spec), prepare)
    assert not unknown(waits)


class _FirstInput(nn.Module):
    """A network of any input, tables included, that is quick."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, outputs, 1)

    def forward(self, image: Tensor, **_: Tensor) -> Tensor:
        return self.conv(image)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TAKES)
def test_networks_wait_in_known_places_alone(architecture: str) -> None:
    spec = ModelSpec(architecture=architecture, task="tissue", size="tiny", shells=[1000.0], n_directions=6)
    shape = (32, 16, 16) if architecture == "invariants" else (16, 8, 8)
    torch.manual_seed(0)
    network = build_network(spec)
    channels = spec.in_channels or SAMPLES[0].shape[1]
    batch = {"image": uniform(1, channels, *shape), "label": classes(4, 1, 1, *shape)}
    if spec.takes == "samples":
        batch |= {
            "bvals": SAMPLES[0],
            "bvecs_voxel": SAMPLES[1],
            "valid": torch.ones(1, channels, dtype=torch.bool),
        }
    _, waits = trained(network, batch, loss_of_task("tissue"), prepare_batch(spec))
    assert not unknown(waits)


def test_an_evaluation_stays_on_the_device() -> None:
    batch = {"image": drawn(1, 3, *SHAPE), "label": drawn(1, 3, *SHAPE)}
    with other_device():
        evaluator = SupervisedEvaluator(
            device=OTHER,
            val_data_loader=[batch],
            network=nn.Conv3d(3, 3, 1).to(OTHER),
            key_val_metric={"angle": MetricHandler(AngularError())},
            additional_metrics={"loss": _averaged(nn.functional.mse_loss)},
        )
        evaluator.run()
        assert evaluator.state.output[0]["pred"].device == OTHER
    assert 0 < evaluator.state.metrics["angle"] < 90
    assert evaluator.state.metrics["loss"] > 0


def _averaged(loss: Callable[..., Tensor]) -> Any:
    from ignite.metrics import Average

    return Average(output_transform=loss_of(loss))


def test_a_loss_that_reads_a_value_is_noted() -> None:
    def read(pred: Tensor, target: Tensor) -> Tensor:
        difference = (pred - target).square().mean()
        return difference / max(1.0, difference.item())

    batch = {"image": drawn(1, 3, *SHAPE), "label": drawn(1, 3, *SHAPE)}
    _, waits = trained(nn.Conv3d(3, 3, 1), batch, read, prepare_batch(ModelSpec()))
    assert [wait.operation for wait in unknown(waits)] == ["item"]


@pytest.mark.parametrize(
    "loss", [OneHotL1Loss(), CrossingsLoss(ordinal=1.0)], ids=lambda loss: type(loss).__name__
)
def test_a_class_that_does_not_exist_makes_the_loss_nan_without_a_wait(loss: nn.Module) -> None:
    pred, label = drawn(1, 4, *SHAPE), classes(4, 1, 1, *SHAPE)
    wrong = label.clone()
    wrong[0, 0, 0, 0, 0] = 4
    with pytest.raises(ValueError, match="expected 0 to 3"):
        loss(pred, wrong)
    with other_device() as waits:
        right, found = (loss(pred.to(OTHER), one.to(OTHER)) for one in (label, wrong))
        assert not waits
    assert values(right).isfinite()
    assert values(found).isnan()
