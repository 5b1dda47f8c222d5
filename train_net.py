#!/usr/bin/env python
"""Train or evaluate a detector; see `python train_net.py --help`."""

import sys

from sparse_detr.train import main

if __name__ == "__main__":
    sys.exit(main())
