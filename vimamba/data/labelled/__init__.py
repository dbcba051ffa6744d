"""Images with a class, or with any number of them."""
