"""Self-contained HTML reports with slices, fibre directions, label outlines, gradient tables and metrics."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Case": "case",
        "Cut": "cut",
        "artifact_rows": "artifact_record",
        "case_from_files": "folder",
        "cases_from_folder": "folder",
        "gradient_sphere": "sphere",
        "read_class_names": "folder",
        "recorded_artifacts": "artifact_record",
        "write_report": "page",
        "write_sphere": "sphere",
    },
)
