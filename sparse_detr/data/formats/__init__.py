"""Read own data of any common form: a folder or a file of COCO, YOLO, Pascal VOC or CSV.

    found = find_data_set("my_data")      # what it is, and its parts: "train", "val", "test" or "all"
    part = found.parts["train"]()         # the content of a COCO file, and the folder of its images
    own = read_own_parts("my_data")       # the parts for training and validation, with the same classes

Everything becomes the content of a COCO file, so that all else (checks, registration, evaluation) exists once.

Libraries that read these forms were judged first. supervision 0.31 decodes every picture of a Pascal VOC folder and
keeps YOLO's shares as float32; globox 2.9 ignores the EXIF orientation, sorts class names as text and stops at the
first broken file without its name; datumaro 1.13 is exact, but pins pandas, pyarrow, NumPy and OpenCV. These readers
need only Python and Pillow, read a picture's header and no pixels, keep float64, and list all broken entries at once.
"""

from sparse_detr.data.formats.find import Found, find_data_set
from sparse_detr.data.formats.part import Part
from sparse_detr.data.formats.prepare import OwnParts, read_own_parts, write_parts

__all__ = ["Found", "OwnParts", "Part", "find_data_set", "read_own_parts", "write_parts"]
