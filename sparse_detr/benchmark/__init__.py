"""`sparse-detr benchmark`: cost of detectors side by side, measured on real images.

images.py        images of a folder or of the config's data -> batches, fresh in every round
contestants.py   what is timed: a detector with its parts; our models, plain and optimised
rivals.py        detectors of Detectron2, transformers and RF-DETR with the same call
machine.py       the load by other processes and the drift of a fixed kernel: may a table be printed?
timing.py        all detectors in turn on the same batches: milliseconds by part
measure.py       everything together -> one record, which is saved as JSON
report.py        the record -> protocol in words, tables, CSV
picture.py       the record -> bars by part
"""
