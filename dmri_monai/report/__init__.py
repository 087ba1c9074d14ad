"""Self-contained HTML reports with slices, fibre directions, label outlines, gradient tables and metrics."""

from dmri_monai.report.artifact_record import artifact_rows, recorded_artifacts
from dmri_monai.report.case import Case
from dmri_monai.report.folder import case_from_files, cases_from_folder, read_class_names
from dmri_monai.report.page import write_report
from dmri_monai.report.sphere import gradient_sphere, write_sphere

__all__ = [
    "Case",
    "artifact_rows",
    "case_from_files",
    "cases_from_folder",
    "gradient_sphere",
    "read_class_names",
    "recorded_artifacts",
    "write_report",
    "write_sphere",
]
