"""Deformable registration of images and volumes: what it minimizes and how it is scored."""
