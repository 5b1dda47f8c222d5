"""A report on a set of detections: tables, curves, pictures and one page, see `docs/report.md`."""
