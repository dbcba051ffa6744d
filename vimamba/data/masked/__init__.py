"""Images, and volumes slice by slice, with masks that give every pixel a class."""
