"""Parts of `ops/benchmark.py` and `ops/check_gpu.py`."""
