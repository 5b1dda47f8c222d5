"""The message for a batch that does not fit into memory."""

from typing import Any


def out_of_memory_message(batch: list[dict[str, Any]]) -> str:
    """Return a message with the sizes and boxes of the batch, and the settings that help."""
    images = ", ".join(
        f"{item.get('file_name', 'an image')} {item['image'].shape[-1]}x{item['image'].shape[-2]} with "
        f"{len(item.get('instances', ()))} boxes"
        for item in batch
    )
    return (
        f"out of memory on a batch of {len(batch)}: {images}; the last checkpoint is kept; lower the batch size (and "
        "raise train.accumulate to make up for it), the image sizes of the augmentation or the keep ratio, or train "
        "with train.amp.enabled=true"
    )
