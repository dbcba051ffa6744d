"""Pairs of images or volumes, one of which is to be laid onto the other."""
