"""Measures of a detector: its FLOPs and times, what its token selection covers, and tables of these."""
