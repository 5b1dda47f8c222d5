"""`python -m sparse_detr.cli` is the `sparse-detr` command."""

import sys

from sparse_detr.cli.main import main

sys.exit(main())
