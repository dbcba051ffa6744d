"""Shards weights over processes with torch's `fully_shard` (FSDP2)."""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

# timm's names of the stochastic-depth modules of a residual block
_OF_BLOCKS = ("drop_path", "drop_path1")


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Let each process keep a part of every weight; weights are gathered block by block for use.

    Args:
        net: A network of timm-style residual blocks; one that is already sharded is left alone.
        mesh: The processes.
    """
    if isinstance(net, FSDPModule):
        return
    for module in list(net.modules()):
        if any(hasattr(module, name) for name in _OF_BLOCKS):
            fully_shard(module, mesh=mesh)
            if hasattr(module, "update"):  # Vim's, from which features are taken
                register_fsdp_forward_method(module, "update")
    fully_shard(net, mesh=mesh)
