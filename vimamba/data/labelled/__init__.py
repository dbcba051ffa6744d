"""Images with one class, or any number of classes."""
