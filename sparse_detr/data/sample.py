"""Start the quick configs' script that makes the sample data: `python -m sparse_detr.data.sample --help`."""

import runpy
from pathlib import Path

PACKAGE = Path(__file__).parents[1]

if __name__ == "__main__":
    installed = PACKAGE / "_configs"  # in a wheel; else the configs lie beside the package
    root = installed if installed.is_dir() else PACKAGE.parent
    runpy.run_path(str(root / "configs" / "quick" / "sample.py"), run_name="__main__")
