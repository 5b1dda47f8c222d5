"""The parts of a detection transformer and the detector that is made of them."""
