"""Count parameters and FLOPs of the projects' configs and write them into the README of each project.

    python scripts/count_cost.py

Counted by Detectron2's own counter in eval mode on one random image of 850x1040 pixels, with 91 classes as in the
papers' repositories; one multiply-add is one FLOP.
"""

import re
import sys
from pathlib import Path

import torch
from detectron2.config import instantiate
from detectron2.utils.analysis import FlopCountAnalysis

from sparse_detr.config import load_config

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = (850, 1040)


def main() -> int:
    """Write a table between the markers of every project's README."""
    for readme in sorted(ROOT.glob("projects/*/README.md")):
        rows = ["| config | parameters | at inference | GFLOPs |", "|---|---|---|---|"]
        for config in sorted(readme.parent.glob("configs/*.py")):
            if "finetune" not in config.stem:
                rows.append(f"| `{config.stem}` | " + " | ".join(cost(config)) + " |")
                print(rows[-1], flush=True)
        text = readme.read_text()
        start, end = "<!-- table cost -->", "<!-- end cost -->"
        pattern = re.compile(f"{start}.*?{end}", re.DOTALL)
        readme.write_text(pattern.sub("\n".join([start, *rows, end]), text))
    return 0


def cost(config: Path) -> list[str]:
    """Trainable parameters, those of them that inference uses, and GFLOPs of a config's model."""
    cfg = load_config(str(config), ["model.num_classes=91"])
    model = instantiate(cfg.model).eval()
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    unused = sum(p.numel() for p in model.encoder_heads.parameters())
    image = torch.randint(0, 256, (3, *IMAGE_SIZE), dtype=torch.uint8)
    flops = FlopCountAnalysis(model, [{"image": image}]).total()
    return [f"{parameters:,}", f"{parameters - unused:,}", f"{flops / 1e9:.1f}"]


if __name__ == "__main__":
    sys.exit(main())
