#!/usr/bin/env python
"""Train or evaluate; `python train_net.py --help` says how."""

import sys

from sparse_detr.train import main

if __name__ == "__main__":
    sys.exit(main())
