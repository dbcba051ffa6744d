"""Meaning of class indices in masks, shared by losses, scores, data sets and pictures."""

# pixels of this class count in neither losses nor scores
IGNORE = 255
