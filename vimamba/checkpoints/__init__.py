"""Published checkpoints: find the weights, rename them, load completely or not at all.

    nesting.py    removes the dictionaries and prefixes around the weights
    rename.py     official names to ours
    fit.py        checks weights against a model: names, shapes, dtypes, finite values
    families.py   registry of families: rules, layouts, published accuracy, facts
    identity.py   identifies a file
    loading.py    combines all steps: implements a model's `load_pretrained`

Files are read by `vimamba.reading`, as data and within limits.
"""

from vimamba.checkpoints.families import (
    Facts,
    Family,
    count_blocks,
    family_of,
    find_facts,
    find_family,
    forget_stored,
    list_families,
    register_family,
)
from vimamba.checkpoints.fit import check_finite, check_fit, classifiers
from vimamba.checkpoints.identity import (
    Identity,
    find_identity,
    identify,
    identify_checkpoint,
    register_matcher,
)
from vimamba.checkpoints.loading import load_official
from vimamba.checkpoints.nesting import Weights, find_weights, thin_out, unwrap
from vimamba.checkpoints.rename import (
    Known,
    Rules,
    StateDict,
    average_classifiers,
    in_official_names,
    known_names,
    rename_key,
    rename_keys,
    without_numbers,
)
from vimamba.reading import CheckpointError, read_checkpoint

__all__ = [
    "CheckpointError",
    "Facts",
    "Family",
    "Identity",
    "Known",
    "Rules",
    "StateDict",
    "Weights",
    "average_classifiers",
    "check_finite",
    "check_fit",
    "classifiers",
    "count_blocks",
    "family_of",
    "find_facts",
    "find_family",
    "find_identity",
    "find_weights",
    "forget_stored",
    "identify",
    "identify_checkpoint",
    "in_official_names",
    "known_names",
    "list_families",
    "load_official",
    "read_checkpoint",
    "register_family",
    "register_matcher",
    "rename_key",
    "rename_keys",
    "thin_out",
    "unwrap",
    "without_numbers",
]
