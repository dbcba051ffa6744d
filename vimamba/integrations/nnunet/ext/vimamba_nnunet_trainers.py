"""What nnU-Net 2.8 and later finds in the folder that `nnUNet_extTrainer` names.

nnU-Net imports every module of such a folder, and forgets it, so this is one that holds nothing.
"""

from vimamba.integrations.nnunet.trainers import *  # noqa: F403
