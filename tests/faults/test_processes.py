"""Two writers, signals, killed workers, and two processes of one training of which one fails."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedTrainer
from torch.nn.parallel import DistributedDataParallel

from dmri_monai.io import leftovers
from dmri_monai.signals import end_on_sigterm
from dmri_monai.training.handlers import StopAtNonFinite
from tests.faults.counting import ended, fork
from tests.faults.trainings import train, training


def begin_alone(folder: Path) -> None:
    engine, _ = training(folder, overwrite=True)
    engine.run([torch.ones(4, 96)] * 400, max_epochs=2)


def test_of_many_trainings_in_one_folder_one_trains(tmp_path, count):
    def begin() -> None:
        try:
            begin_alone(tmp_path)
        except BlockingIOError:
            raise SystemExit(7) from None

    codes = [ended(pid) for pid in [fork(begin) for _ in range(8)]]
    assert set(codes) <= {0, 7}, count("two writers", "wrong")
    assert codes.count(0) >= 1
    count("two writers", "right", len(codes))
    begin_alone(tmp_path)
    left = [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    count("two writers", "left over", len(left))
    assert not left


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
@pytest.mark.parametrize("seed", range(8))
def test_a_terminated_training_leaves_nothing_beside_and_goes_on(tmp_path, count, seed, sent):
    reader, writer = os.pipe()

    def work() -> None:
        end_on_sigterm()
        train(tmp_path, epochs=10_000, on_epoch=lambda: os.write(writer, b"."))

    pid, draw = fork(work), random.Random(seed)
    for _ in range(draw.randint(1, 4)):
        os.read(reader, 1)
    time.sleep(draw.random() * 0.03)
    os.kill(pid, sent)
    assert ended(pid) in (143, 1)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    count("SIGTERM and SIGINT", "left over", len(left))
    count("SIGTERM and SIGINT", "right")
    assert not left
    if (tmp_path / "last.pt").is_file():
        train(tmp_path, epochs=torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] + 1)


class Deadly(torch.utils.data.Dataset):
    """Two batches; loading the second of the second epoch kills the process that loads it."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        if index and (self.home / "last.pt").is_file() and not (self.home / "killed").exists():
            (self.home / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((96,), float(index + 1))


def test_a_killed_loading_process_ends_the_training_in_one_line_and_it_goes_on(tmp_path, count):
    loader = DataLoader(Deadly(tmp_path), batch_size=1, num_workers=1)
    engine, _ = training(tmp_path)
    with pytest.raises(MemoryError, match="^out of memory: epoch 2, iteration .*; try a smaller --crop_size"):
        engine.run(loader, max_epochs=4)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["trainer"]["epoch"] == 1
    engine, _ = training(tmp_path, resume=True)
    engine.run(loader, max_epochs=4)
    assert engine.state.epoch == 4
    count("killed loading processes", "right")


def parallel(rank: int, home: Path, spoilt: int) -> None:
    """Process `rank` of two; in process `spoilt` the third loss is NaN."""
    dist.init_process_group("gloo", init_method=f"file://{home / 'store'}", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = DistributedDataParallel(torch.nn.Conv3d(1, 1, 1))
    image = MetaTensor(torch.ones(1, 1, 4, 4, 4), meta={"filename_or_obj": [f"scan-{rank}.nii"]})
    calls = iter(range(100))

    def loss(pred: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        factor = float("nan") if next(calls) == 2 and rank == spoilt else 1.0
        return (pred.mean() - 1).square() * factor

    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=3,
        train_data_loader=[{"image": image, "label": image}] * 2,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss,
        train_handlers=[StopAtNonFinite()],
    )
    try:
        trainer.run()
    except FloatingPointError as error:
        (home / f"message-{rank}").write_text(str(error), encoding="utf-8")
        raise SystemExit(7) from None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("spoilt", [0, 1, None])
def test_a_loss_that_is_not_finite_ends_both_processes(tmp_path, count, spoilt):
    pids = [
        fork(lambda rank=rank: parallel(rank, tmp_path, -1 if spoilt is None else spoilt)) for rank in (0, 1)
    ]
    codes = [ended(pid) for pid in pids]
    count("two processes, one loss not finite" if spoilt is not None else "two processes", "right")
    if spoilt is None:
        assert codes == [0, 0]
        return
    assert codes == [7, 7]
    messages = [(tmp_path / f"message-{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
    assert f"the loss is nan in epoch 2, iteration 3 for scan-{spoilt}.nii" in messages[spoilt]
    assert "not finite in 1 of 2 processes in epoch 2, iteration 3;" in messages[1 - spoilt]


def test_what_is_left_is_swept_whoever_was_killed(tmp_path, count):
    for _ in range(20):
        pid = fork(lambda: None)
        ended(pid)
        name = leftovers.temporary_name("model.pt").replace(f"-{os.getpid()}-", f"-{pid}-")
        (tmp_path / name).write_bytes(b"half")
    leftovers._swept.clear()
    leftovers.sweep(tmp_path)
    left = list(tmp_path.iterdir())
    count("leftovers of dead processes", "left over", len(left))
    count("leftovers of dead processes", "right", 20)
    assert not left
