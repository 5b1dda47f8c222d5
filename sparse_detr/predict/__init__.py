"""Detection in many images: what `sparse-detr predict` reads, how it divides the work, and what it writes."""
