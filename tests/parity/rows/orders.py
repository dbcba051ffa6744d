"""Scan orders that LocalMamba's models searched for themselves, as manifests have them."""

from tests.parity.official import read_manifest
from vimamba.models import localvmamba


def local_orders(name: str) -> list[str]:
    """Scan orders of all blocks in a manifest of LocalMamba."""
    directions = read_manifest(name)["config"]["directions"]
    return localvmamba.local_orders("; ".join(" ".join(block) for block in directions))
