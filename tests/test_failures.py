"""A lack of memory is one line with what it was and what to try; an error with several handlers reaches them all."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from dmri_monai.failures import NameScans, naming_scan, on_failure
from dmri_monai.out_of_memory import telling_memory

LACKS = {
    "python": MemoryError(),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "worker": RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."),
}


@pytest.mark.parametrize("error", LACKS.values(), ids=LACKS.keys())
def test_lack_of_memory_is_told_with_what_to_try(error):
    expected = r"^out of memory: sub-01; try a smaller window$"
    with pytest.raises(MemoryError, match=expected), telling_memory("sub-01", "try a smaller window"):
        raise error


def test_lack_of_memory_behind_another_error_is_told():
    with pytest.raises(MemoryError, match="out of memory: sub-01"), telling_memory("sub-01", "try"):
        raise RuntimeError("applying transform") from MemoryError()


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), telling_memory("sub-01", "try"):
        raise RuntimeError("shapes")


def test_what_has_been_told_is_not_told_again():
    told = pytest.raises(MemoryError, match="^out of memory: inner; a$")
    with told, telling_memory("outer", "b"), telling_memory("inner", "a"):
        raise MemoryError


def test_every_handler_of_a_failure_is_called_and_the_error_raised():
    called, engine = [], Engine(lambda *_: 1 / 0)
    for name in "ab":
        on_failure(engine, lambda _, error, name=name: called.append((name, type(error))))
    with pytest.raises(ZeroDivisionError):
        engine.run([0])
    assert called == [("a", ZeroDivisionError), ("b", ZeroDivisionError)]


def test_training_out_of_memory_names_place_and_scans():
    def step(engine, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = Engine(step)
    on_failure(engine, lambda *_: None)
    image = MetaTensor(torch.zeros(1), meta={"filename_or_obj": ["a.nii", "a.nii", "b.nii"]})
    expected = "out of memory: epoch 1, iteration 1: a.nii, b.nii; try a smaller --crop_size"
    with pytest.raises(MemoryError, match=expected):
        engine.run([{"image": image}])


def test_interrupts_reach_the_handlers():
    called, engine = [], Engine(lambda *_: None)
    on_failure(engine, lambda _, error: called.append(type(error)))

    @engine.on(Events.ITERATION_COMPLETED)
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run([0])
    assert called == [KeyboardInterrupt]


def test_error_is_named_after_the_scan_and_keeps_its_kind():
    with pytest.raises(ValueError, match=r"^a\.nii: no shell$"), naming_scan("a.nii"):
        raise RuntimeError("applying transform") from ValueError("no shell")


def test_error_that_names_the_scan_is_not_named_twice():
    with pytest.raises(OSError, match=r"^cannot read a\.nii$"), naming_scan("a.nii"):
        raise RuntimeError("applying transform") from OSError("cannot read a.nii")


class Scans:
    """Batches that know their files; the one of number `broken` cannot be made."""

    def __init__(self, broken=None):
        self.broken = broken

    def __len__(self):
        return 2

    def __iter__(self):
        return (self.batch(index) for index in range(2))

    def batch(self, index):
        if index == self.broken:
            raise ValueError(f"{index}.nii: no shell")
        return {"image": MetaTensor(torch.zeros(1), meta={"filename_or_obj": [f"{index}.nii"]})}


def failing(event):
    engine = Engine(lambda *_: None)
    NameScans().attach(engine)

    @engine.on(event)
    def fail():
        raise ValueError("what was wrong")

    return engine


@pytest.mark.parametrize("event", [Events.ITERATION_STARTED, Events.ITERATION_COMPLETED])
def test_error_of_an_iteration_names_the_scans_of_its_batch(event):
    with pytest.raises(ValueError, match=r"^0\.nii: what was wrong$"):
        failing(event).run(Scans())


def test_error_between_iterations_is_not_laid_on_a_scan():
    engine = failing(Events.EPOCH_COMPLETED)
    with pytest.raises(ValueError, match="^what was wrong$"):
        engine.run(Scans())


def test_scan_that_cannot_be_loaded_is_not_confused_with_the_one_before():
    engine = Engine(lambda *_: None)
    NameScans().attach(engine)
    with pytest.raises(ValueError, match=r"^1\.nii: no shell$"):
        engine.run(Scans(broken=1))


def test_error_of_a_validation_does_not_name_the_training_scan():
    trainer = Engine(lambda *_: None)
    NameScans().attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: failing(Events.ITERATION_STARTED).run(Other())
    )
    with pytest.raises(ValueError, match=r"^val 0\.nii: what was wrong$"):
        trainer.run(Scans())


class Other(Scans):
    def batch(self, index):
        item = super().batch(index)
        item["image"].meta["filename_or_obj"] = [f"val {index}.nii"]
        return item


def test_chain_of_an_unwrapped_error_ends():
    """Loggers that follow causes and contexts would never come to the end of a ring."""

    def wrapped():
        try:
            try:
                raise ValueError("a.nii: no shell")
            except ValueError as inner:
                raise RuntimeError("applying transform") from inner
        except RuntimeError as middle:
            raise RuntimeError("applying Compose") from middle

    with pytest.raises(ValueError, match="no shell") as caught, naming_scan("a.nii"):
        wrapped()
    seen, error = [], caught.value
    while error is not None and len(seen) < 10:
        seen.append(error)
        error = error.__cause__ or error.__context__
    assert len(seen) == 2
