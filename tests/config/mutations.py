"""Seeded mutations of configs of both kinds, as overrides and as broken files."""

import random
from pathlib import Path

import yaml
from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf

ROOT = Path(__file__).parents[2]
LAZY = ROOT / "configs/quick/sparse_detr_mnv2.py"
YACS = ROOT / "projects/SparseDETR/configs/sparse_detr_r50_rho30.yaml"
VALUES = (
    *("0", "-1", "1", "2.0", "1.5", "1e400", "nan", "inf", "-inf", "3", "7", "100000000000000000000"),
    *("null", "None", "true", "False", "''", '""', "", "x", "gpu", "cuda:", "[]", "[1,2]", "[1,[2]]", "{}", "{a:1}"),
    *("(1,2)", "(", "[", "a b", "a=b", "~", "#", "$", "${x}", "${train.seed}", "épée", "a,b", "choice(1,2)", "\\", "'"),
)


def keys_of(cfg):
    """Return every dotted key of a config of either kind, groups too."""
    yacs = isinstance(cfg, CfgNode)
    plain = yaml.safe_load(cfg.dump()) if yacs else OmegaConf.to_container(cfg, resolve=False)
    found = []

    def walk(node, prefix):
        for name, value in node.items():
            found.append(f"{prefix}{name}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")

    walk(plain, "")
    return found


def random_overrides(rng, cfg, keys):
    """Return one or two overrides in the style of the config, some of them with keys that do not exist."""
    overrides = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        key, value = rng.choice(keys), rng.choice(VALUES)
        if rng.random() < 0.05:
            key = rng.choice((f"{key}x", f"{key}.x", key[:-1], f"+{key}", f"~{key}", "", ".", f"{key}."))
        overrides += [f"{key}={value}"] if isinstance(cfg, DictConfig) else [key, value]
    return overrides


def broken_text(rng, text):
    """Return the bytes of a config file with a part removed, doubled, replaced or inserted."""
    data = bytearray(text.encode())
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(data) + 1), rng.randrange(1, 12)
        piece = rng.choice(
            (b"\xff", b"\x00", b":", b"[", b"\n", b"\t", b"'", b"None", b"\xef\xbb\xbf", b"- ", b"}", b"=")
        )
        what = rng.randrange(4)
        if what == 0:
            del data[at : at + length]
        elif what == 1:
            data[at:at] = data[at : at + length]
        elif what == 2:
            data[at:at] = piece
        else:
            data = data[:at]
    return bytes(data)


def generator(seed):
    return random.Random(seed)
