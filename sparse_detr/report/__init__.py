"""A report on a set of detections: tables, curves, pictures and one page, see `docs/report.md`."""

NUMBERS = "report.json"
LIMIT = 100
"""How many detections of a class in an image count, as in COCO's scores."""
