"""Two images of one place with labels of what has changed; one file per part of their reading."""
