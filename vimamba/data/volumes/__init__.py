"""Whole volumes with masks, in the formats of nnU-Net, the Decathlon, BraTS and ACDC."""
