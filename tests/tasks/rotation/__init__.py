"""A custom task in one folder: by which angle was an image rotated?

`vimamba fit --import tests/tasks/rotation --task rotation --data FOLDER` trains it.
"""

from tests.tasks.rotation.task import Rotation

__all__ = ["Rotation"]
