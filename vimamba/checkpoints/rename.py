"""Renames published weights by rules with regular expressions."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vimamba.reading import CheckpointError

StateDict = dict[str, Tensor]
Replacement = str | Callable[[re.Match[str]], str] | None
Rules = Mapping[str, Replacement]
Known = Callable[[str], bool]


def rename_keys(state_dict: Mapping[str, Tensor], rules: Rules) -> StateDict:
    r"""Rename every key by the first rule whose pattern matches it completely.

    Args:
        state_dict: The published weights.
        rules: Regular expression to replacement, e.g. `{r"layers\.(.*)": r"blocks.\1"}`; None drops
            the entry (computed buffers).

    Raises:
        CheckpointError: Keys match no rule, or two keys get the same name.
    """
    out: StateDict = {}
    unknown = []
    for key, value in state_dict.items():
        pattern = next((p for p in rules if re.fullmatch(p, key)), None)
        if pattern is None:
            unknown.append(key)
            continue
        new = _replaced(key, pattern, rules[pattern])
        if new in out:
            raise CheckpointError(f"{key!r} and another key are both renamed to {new!r}")
        if new is not None:
            out[new] = value
    if unknown:
        raise CheckpointError(f"the layout is another: {listed('unknown key', unknown)}")
    return out


def average_classifiers(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Average `head.fc` and the distillation head `head.taught` into one classifier, `head.fc`.

    The official code averages their logits, which equals averaging the weights.
    """
    state = dict(state_dict)
    for leaf in ("weight", "bias"):
        if (taught := state.pop(f"head.taught.{leaf}", None)) is not None:
            state[f"head.fc.{leaf}"] = (state[f"head.fc.{leaf}"] + taught) / 2
    return state


def rename_key(key: str, rules: Rules) -> str | None:
    """The result of the first rule for a key: a name, None to drop it, or the key itself."""
    pattern = next((p for p in rules if re.fullmatch(p, key)), None)
    return key if pattern is None else _replaced(key, pattern, rules[pattern])


def _replaced(key: str, pattern: str, replacement: Replacement) -> str | None:
    return None if replacement is None else re.sub(pattern, replacement, key)


def known_names(model: nn.Module, rules: Rules) -> Known:
    """A function that returns whether a name belongs to the model or is renamed by the rules."""
    ours = model.state_dict().keys()
    patterns = [re.compile(pattern) for pattern in rules]
    return lambda key: key in ours or any(pattern.fullmatch(key) for pattern in patterns)


def in_official_names(state: Mapping[str, Tensor], model: nn.Module, rules: Rules) -> bool:
    """Whether weights have official names that are not ours, at any depth."""
    ours = {without_numbers(key) for key in model.state_dict()}
    others = (key for key in state if without_numbers(key) not in ours)
    return any(rename_key(key, rules) != key for key in others)


def without_numbers(key: str) -> str:
    """A name with all numbers set to zero, common to blocks of one kind."""
    return re.sub(r"\d+", "0", key)


def listed(what: str, keys: list[str], most: int = 6) -> str:
    """A count of things and the first of them: "7 missing keys: a, b, c, d, e, f and 1 more"."""
    plural = what if len(keys) == 1 else re.sub(r"\b(key|tensor|part)\b", r"\1s", what)
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {plural}: {', '.join(keys[:most])}{rest}"
