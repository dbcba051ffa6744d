"""Weights shared out over processes: torch's `fully_shard`, FSDP2."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

# what timm calls the path that a residual block can drop
_OF_BLOCKS = ("drop_path", "drop_path1")


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Let each process keep a part of every weight, gathered block by block when it is used.

    Args:
        net: A network of residual blocks as timm's are; one that is sharded stays as it is.
        mesh: The processes.
    """
    if isinstance(net, FSDPModule):
        return
    for module in list(net.modules()):
        if any(hasattr(module, name) for name in _OF_BLOCKS):
            fully_shard(module, mesh=mesh)
            if hasattr(module, "update"):  # Vim's, which features are taken from
                register_fsdp_forward_method(module, "update")
    fully_shard(net, mesh=mesh)
