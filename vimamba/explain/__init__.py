"""What a network looks at: maps of its answers, of its scans and of its field of view.

cam                evidence for a class: Grad-CAM and its kin
attention, rollout what a scan's result at a token is made of, in one layer or through all
erf                how far a cell of the last map sees
delta              step sizes: what is written into the state and what is passed over
paths              the way of every scan over the image
deletion_curve     whether a map tells what the network goes by
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
