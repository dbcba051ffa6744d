"""nnU-Net, without a fork, with our networks: through plans that name them and our trainers.

Importing this loads torch and timm; nnU-Net itself (`pip install "vimamba[nnunet]"`) is imported
when first needed. docs/nnunet.md shows how the parts work together.
"""

from vimamba.integrations.nnunet.network import PlansNetwork
from vimamba.integrations.nnunet.plans import Configuration, add_configuration
from vimamba.integrations.nnunet.registration import register, trainer_folder

__all__ = ["Configuration", "PlansNetwork", "add_configuration", "register", "trainer_folder"]
