"""Self-contained HTML reports with slices, fibre directions, label outlines, gradient tables and metrics."""

from dmri_monai.report.case import Case
from dmri_monai.report.page import write_report
from dmri_monai.report.sphere import gradient_sphere, write_sphere

__all__ = ["Case", "gradient_sphere", "write_report", "write_sphere"]
