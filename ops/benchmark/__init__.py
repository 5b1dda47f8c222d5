"""The benchmark of deformable attention, and what `ops/check_gpu.py` measures with: `python ops/benchmark --help`."""
