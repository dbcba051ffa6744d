"""Images, and volumes slice by slice, with a mask that gives every pixel a class."""
