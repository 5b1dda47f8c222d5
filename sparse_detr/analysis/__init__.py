"""Measures of a detector: its FLOPs and times, what its token selection keeps and loses, and tables of them."""
