import pytest
from ignite.engine import Engine, Events

from dmri_monai.training.handlers import EarlyStopping

NAN = float("nan")


def epochs(values, patience, sign=1.0):
    """How many epochs a training takes whose validations give `values`."""
    trainer, evaluator = Engine(lambda *_: None), Engine(lambda *_: None)

    @trainer.on(Events.EPOCH_COMPLETED)
    def validate(engine):
        evaluator.state.metrics = {"value": values[engine.state.epoch - 1]}

    EarlyStopping(evaluator, "value", patience, sign=sign).attach(trainer)
    return trainer.run([0], max_epochs=len(values)).epoch


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ([1, 2, 3, 4, 5, 6], 1.0, 6),
        ([1, 2, 1, 2, 3, 4], 1.0, 4),
        ([6, 5, 4, 3, 2, 1], -1.0, 6),
        ([1, 2, 3, 4, 5, 6], -1.0, 3),
        ([1, NAN, NAN, NAN, NAN, NAN], 1.0, 3),
        ([NAN, NAN, NAN, NAN, NAN, NAN], 1.0, 3),
        ([NAN, 1, 2, 3, 4, 5], 1.0, 6),
    ],
    ids=["better", "plateau", "lower", "worse", "lost", "no-value", "late"],
)
def test_training_stops_after_two_validations_that_are_no_better(values, sign, expected):
    assert epochs(values, patience=2, sign=sign) == expected
