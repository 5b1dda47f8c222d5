"""Start the benchmark with this checkout's modules: `python ops/benchmark`."""

import sys
from pathlib import Path

OPS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(OPS), str(OPS.parent)]

from benchmark.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
