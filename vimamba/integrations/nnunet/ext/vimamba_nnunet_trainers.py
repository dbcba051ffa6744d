"""Module that nnU-Net 2.8 and later finds in the folder `nnUNet_extTrainer`.

nnU-Net imports every module of such a folder and discards it, so this one only imports the
trainers.
"""

from vimamba.integrations.nnunet.trainers import *  # noqa: F403
