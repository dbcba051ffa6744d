"""Volumes with masks, whole: what nnU-Net, the Decathlon, BraTS and ACDC lie in."""
