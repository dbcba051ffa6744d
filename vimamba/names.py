"""Registration and lookup of names of scan orders, heads and networks.

A name can be registered only once. For an unknown name, similar ones are suggested.
"""

import difflib
import warnings
from collections.abc import Iterable
from itertools import chain


def check_free(
    name: str, there: object | None, *, kind: str, home: str, replace: bool, stacklevel: int = 3
) -> None:
    """Fail on a name that is taken.

    Args:
        name: The name.
        there: The function or class registered under it, or None.
        kind: What it names, such as "scan order".
        home: Module or package of those that come with vimamba. These can always be replaced, with
            a warning: names added to vimamba later must not break users' registrations.
        replace: Replace without a warning.
        stacklevel: Stack level of the warning, as for `warnings.warn` called here.

    Raises:
        ValueError: The name is taken by another registration of the user.
    """
    if there is None or replace:
        return
    module = getattr(there, "__module__", "")
    if module != home and not module.startswith(f"{home}."):
        raise ValueError(f"{kind} {name!r} is already registered; replace=True overwrites it")
    text = f"{kind} {name!r} replaces vimamba's own; use replace=True to silence this"
    warnings.warn(text, stacklevel=stacklevel)


def expect_maker(made: object, kind: str) -> None:
    """Check that what is registered is a function or a class, and not its name.

    Raises:
        TypeError: It is not.
    """
    if not callable(made):
        raise TypeError(
            f"received {made!r}, expected the function or class of a {kind}; to choose its name, "
            f"register with name='my_{kind.split()[-1]}'"
        )


def near_names(name: str, *kinds: Iterable[str]) -> str:
    """Suggestions for an unknown name: "close names are a, b", or "" if there are none.

    Args:
        name: The name.
        *kinds: The known names. Of several kinds, such as networks and backbones, only the kind of
            the closest name is suggested.
    """
    known = [list(kind) for kind in kinds]
    near = difflib.get_close_matches(name, list(chain(*known)), n=1, cutoff=0.5)
    kind = next((names for names in known if near and near[0] in names), [])
    near = difflib.get_close_matches(name, kind, n=4, cutoff=0.5)
    return f"close names are {', '.join(near)}" if near else ""


def unknown_name(argument: str, name: object, *kinds: Iterable[str], among: str = "") -> str:
    """The error message for an unknown name, with the known ones.

    Args:
        argument: Name of the argument.
        name: Its value.
        *kinds: The accepted names; see `near_names`.
        among: Description of the accepted names, used if none is close and they are too many to
            list.
    """
    known = [list(kind) for kind in kinds]
    names = sorted(chain(*known))
    hint = near_names(name, *known) if isinstance(name, str) else ""
    own = "register your own with --import, or by importing it"
    return f"{argument}={name!r} is unknown; {hint or among or f'choose from {names}'}; {own}"
