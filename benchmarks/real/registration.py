"""Where a head lay in two scans: rigid registration of their mean b0, by DIPY, in the world frame."""

from __future__ import annotations

import contextlib
import io
import logging

import numpy as np
from dipy.align import affine_registration

from dmri_monai.qspace.b0 import mean_b0
from dmri_monai.scan import Scan

ITERATIONS, SMOOTHING, REDUCTION = [200, 100], [3.0, 1.0], [2, 1]  # coarse first


def rigid(first: Scan, second: Scan) -> np.ndarray:
    """(4, 4): from a place of the head in the world of the first scan, mm, to that in the second's, by mutual
    information.
    """
    fixed, moving = (mean_b0(s.signal, s.table.bvals, s.table.b0_threshold).numpy() for s in (first, second))
    level = logging.root.manager.disable
    logging.disable(logging.INFO)  # a line for every step
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _, matrix = affine_registration(
                moving,
                fixed,
                moving_affine=second.affine.numpy(),
                static_affine=first.affine.numpy(),
                pipeline=["translation", "rigid"],
                level_iters=ITERATIONS,
                sigmas=SMOOTHING,
                factors=REDUCTION,
            )
    finally:
        logging.disable(level)
    return np.asarray(matrix)
