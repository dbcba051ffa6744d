"""Deformable registration of images and volumes: training, scores, fields for other tools."""

from vimamba.tasks.registration.objective import RegistrationObjective
from vimamba.tasks.registration.task import ImageRegistration

__all__ = ["ImageRegistration", "RegistrationObjective"]
