"""How names are given and looked up: of scan orders, heads and networks alike.

A name is given once. One that a user asks for and nobody has given is answered with those near it.
"""

import difflib
import warnings
from collections.abc import Iterable
from itertools import chain


def check_free(
    name: str, there: object | None, *, kind: str, home: str, replace: bool, stacklevel: int = 3
) -> None:
    """Refuse a name that is taken.

    Args:
        name: The name.
        there: The function or class that has it, None if none has.
        kind: What it names, as in "scan order".
        home: Module or package of those that come with vimamba. They give way in any case, with a
            warning: a name that vimamba takes later must not break what others have registered.
        replace: Take the name in silence.
        stacklevel: Whom the warning is for, as for `warnings.warn` called here.

    Raises:
        ValueError: Something of a user's has the name.
    """
    if there is None or replace:
        return
    module = getattr(there, "__module__", "")
    if module != home and not module.startswith(f"{home}."):
        raise ValueError(f"{kind} {name!r} is already registered; replace=True overwrites it")
    text = f"{kind} {name!r} takes the place of vimamba's own; replace=True is silent"
    warnings.warn(text, stacklevel=stacklevel)


def near_names(name: str, *kinds: Iterable[str]) -> str:
    """What to try instead of an unknown name: "close names are a, b", or "" if none is near.

    Args:
        name: The name.
        *kinds: Known names. Of several kinds, such as networks and backbones, only those of the
            nearest name's kind are told.
    """
    known = [list(kind) for kind in kinds]
    near = difflib.get_close_matches(name, list(chain(*known)), n=1, cutoff=0.5)
    kind = next((names for names in known if near and near[0] in names), [])
    near = difflib.get_close_matches(name, kind, n=4, cutoff=0.5)
    return f"close names are {', '.join(near)}" if near else ""


def unknown_name(argument: str, name: object, *kinds: Iterable[str], among: str = "") -> str:
    """The text of an error: that nothing is known by a name, and what is.

    Args:
        argument: What was given.
        name: Its value.
        *kinds: What could have been given; see `near_names`.
        among: Says what could have been, where none is near and they are too many to list.
    """
    known = [list(kind) for kind in kinds]
    names = sorted(chain(*known))
    hint = near_names(name, *known) if isinstance(name, str) else ""
    own = "one of your own is made known with --import, or by importing it"
    return f"{argument}={name!r} is unknown; {hint or among or f'choose from {names}'}; {own}"
