"""Measures of a detector: its cost in floating point operations, and what its token selection keeps and loses."""
