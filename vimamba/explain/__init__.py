"""What a network looks at: maps of its evidence, of its scans and of its receptive field.

    cam                evidence for a class: Grad-CAM and related methods
    attention, rollout which tokens a scan's result depends on, in one layer or through all
    erf                effective receptive field of a cell of the last map
    delta              step sizes: what is written into the state and what is skipped
    paths              the path of every scan over the image
    deletion_curve     whether a map is faithful to the network

All but `erf`, which takes several, take one image as the network does; all return arrays.
"""

from vimamba.explain.attention import attention, rollout
from vimamba.explain.cam import METHODS, cam
from vimamba.explain.delta import delta
from vimamba.explain.erf import ReceptiveField, erf
from vimamba.explain.errors import ExplainError
from vimamba.explain.faithfulness import deletion_curve
from vimamba.explain.paths import paths

__all__ = [
    "METHODS",
    "ExplainError",
    "ReceptiveField",
    "attention",
    "cam",
    "deletion_curve",
    "delta",
    "erf",
    "paths",
    "rollout",
]
