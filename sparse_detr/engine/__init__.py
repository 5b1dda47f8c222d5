"""Training: Detectron2's loop, hooks and checkpointer, with exact resume, mixed precision and clear errors."""
