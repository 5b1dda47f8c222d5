"""Start the script of the quick configs that makes the sample data: `python -m sparse_detr.data.sample --help`."""

import runpy

from sparse_detr.model_zoo import get_config_file

if __name__ == "__main__":
    runpy.run_path(get_config_file("quick/sample.py"), run_name="__main__")
