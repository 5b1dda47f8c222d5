"""Files that run in a process without this package: ONNX, torch.export (.pt2) and TorchScript.

detections.py   what a file computes: images and their sizes in, boxes, scores and labels out
trace.py        the detector as a program of PyTorch, with open or fixed sizes
formats.py      the program as a file
plugin.py       TensorRT's plugin in place of the standard operators
metadata.py     what the file says of itself: classes, preprocessing, sizes
runtime.py      runs a file
parity.py       compares the file with the model on images
write.py        all of this in one call, `export_model`
"""

from sparse_detr.export.metadata import Metadata
from sparse_detr.export.runtime import ExportedFile
from sparse_detr.export.write import export_model

__all__ = ["ExportedFile", "Metadata", "export_model"]
