"""Pairs of images or volumes: two dates of one place with labels, or images to register."""
