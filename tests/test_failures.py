"""A lack of memory is one line with what it was and what to try; an error with several handlers reaches them all."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from dmri_monai.failures import on_failure
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
