"""Set-up for Detectron2's own tools: `DETECTRON2_ENV_MODULE=sparse_detr.env python tools/plain_train_net.py ...`."""


def setup_environment() -> None:
    """Add our keys to Detectron2's default config and our names to its registries; `import detectron2` calls it."""
    from detectron2.config import defaults

    import sparse_detr.recipes  # noqa: F401 registers the names
    from sparse_detr.config.keys import add_detr_config

    add_detr_config(defaults._C)
