"""One small subject per session: the whole head at 5 mm."""

import pytest

from dmri_monai.phantom import Subject, make_subject

SMALL = {"shape": (24, 28, 24), "spacing_mm": (5.0, 5.0, 5.0)}


@pytest.fixture(scope="session")
def subject() -> Subject:
    return make_subject(7, **SMALL)
