"""The studies of the Sparse DETR paper, one module each; `sparse-detr study` runs them.

A module has `SUMMARY`, `add_arguments(parser)` and `make(args) -> Study`; see `sparse_detr.studies.driver`.
"""

STUDIES = {
    "referred": "sparse_detr.studies.referred",
    "other-rho": "sparse_detr.studies.other_rho",
    "complexity": "sparse_detr.studies.complexity",
    "criteria": "sparse_detr.studies.criteria",
    "depth": "sparse_detr.studies.depth",
    "teacher": "sparse_detr.studies.teacher",
}
"""Name -> module."""
