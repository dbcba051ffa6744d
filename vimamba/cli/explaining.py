"""Turns errors of jsonargparse and Lightning about settings into one line with the option."""

import dataclasses
import difflib
import inspect
import re
import typing
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vimamba.cli.options import ALIASES, FLAGS, TYPED_TO_SHORT
from vimamba.errors import UsageError, VimambaError
from vimamba.lightning import MisconfigurationException, Trainer, callbacks, loggers

TYPE_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
# option names of other tools, and ours
ELSEWHERE = {"ckpt_path": "--resume RUN", "ckpt-path": "--resume RUN", "max_epochs": "--epochs N"}
# modules of the classes that an option can name
CLASSES = {
    "trainer.callbacks": callbacks,
    "trainer.logger": loggers,
}
# where Lightning looks up metrics during training
WAITING = ("early_stopping", "model_checkpoint")
SETTINGS_OF = (
    *("pytorch_lightning", "lightning_fabric", "lightning.", "lightning_utilities"),
    "jsonargparse",
)


@contextmanager
def settings_errors() -> Iterator[None]:
    """Lightning's errors about settings as ours, in one line.

    Raises:
        UsageError: Replaces an error of Lightning's.
        VimambaError: Our own error, if they wrap one.
    """
    try:
        yield
    except VimambaError:
        raise
    except MisconfigurationException as error:
        raise UsageError(first_line(error)) from None
    except (ValueError, TypeError, ImportError) as error:
        if ours := find_ours(error):
            raise ours from None
        if not origin(error).startswith(SETTINGS_OF):
            raise
        # the error of a part's own constructor, which jsonargparse turns into a list
        first = error.__cause__ or error
        raise UsageError(explain_part(str(error)) or first_line(first)) from None
    except RuntimeError as error:
        if not origin(error).endswith(WAITING):
            raise
        raise UsageError(first_line(error)) from None


def find_ours(error: BaseException) -> VimambaError | None:
    """Our own error that caused another one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, VimambaError):
        cause = cause.__cause__ or cause.__context__
    return cause


def origin(error: BaseException) -> str:
    """Name of the module that raised an error."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "") if trace else ""


def first_line(error: BaseException) -> str:
    """The first nonempty line of a message."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def explain(error: ArgumentError, options: Sequence[str], known: Sequence[str]) -> str:
    """One line with the option as the user typed it, instead of a message about types.

    Args:
        error: Error of jsonargparse.
        options: Typed options, as given.
        known: Names of all typed options, such as "trainer.devices".
    """
    text = str(error)
    if "arguments are required: root" in text:
        return "--data PATH is required"
    if "expected one argument" in text:
        return f"{find_bare(options)}: a value is missing"
    keys = re.findall(r'Parser key "([\w.]+)"', text)
    place = ".".join(keys[:1] + keys[-1:] if len(keys) > 1 else keys)
    if found := re.search(r"Option '(.*)' is not accepted", text):
        return unknown_option(f"{place}.{found[1]}" if place else found[1], known)
    if found := re.search(r"unrecognized arguments: --([^\s=]+)", text):
        return unknown_option(f"{place}.{found[1]}" if place else found[1], known)
    if found := re.search(r"unrecognized arguments: (.*)", text):
        return f"{found[1]!r} is no option; see vimamba fit --help"
    if place in CLASSES and (found := re.search(r"Expected a dot import path string: (.*)", text)):
        return unknown_class(place, found[1])
    if part := explain_part(text):
        return part
    value = re.search(r"(?:Got value|Given value): (.*?)$", text, re.MULTILINE)
    if not (place and value):
        return first_line(error)
    option = TYPED_TO_SHORT.get(f"--{place}", f"--{place}")
    wanted = wanted_values(text)
    if len(wanted) > 2:
        return f"{option} {value[1]}: expected one of {', '.join(wanted)}"
    return f"{option} {value[1]}: expected {' or '.join(wanted) or 'something else'}"


def explain_part(text: str) -> str | None:
    """Describe the problem with a class named by an option, if that is the cause."""
    found = re.search(r"Problem with given class_path '([\w.]+)':\s*\n\s*(.+)", text)
    if not found or 'Parser key "' in found[2]:
        return None
    module, _, name = found[1].rpartition(".")
    option = next((f"--{key}" for key, held in CLASSES.items() if held.__name__ in module), module)
    if missing := re.search(r"arguments are required: (.*)", found[2]):
        needs = ", ".join(f"{option}.{argument}" for argument in missing[1].split(", "))
        hint = "; `vimamba fit --help` lists the metrics" if "monitor" in needs else ""
        return f"{option} {name}: {needs} must be given{hint}"
    return f"{option} {name}: {found[2].strip()}"


def wanted_values(text: str) -> list[str]:
    """The choices and kinds of values listed in a message about types."""
    wanted = []
    for choices in re.findall(r"Expected a typing\.Literal\[(.*?)\](?:\.|$)", text, re.MULTILINE):
        wanted += re.findall(r"[^\s,']+", choices)
    kinds = [] if wanted else re.findall(r"Expected a <class '(\w+)'>", text)
    wanted += [TYPE_WORDS[kind] for kind in kinds if kind in TYPE_WORDS]
    return list(dict.fromkeys(wanted))


def find_bare(options: Sequence[str]) -> str:
    """The option without a value, as the user typed it."""
    following = [*options[1:], "--"]
    bare = [
        option
        for option, value in zip(options, following, strict=True)
        if option.startswith("--") and "=" not in option and value.startswith("--")
    ]
    name = bare[0] if bare else "an option"
    return TYPED_TO_SHORT.get(name, name)


def unknown_option(name: str, known: Sequence[str]) -> str:
    """Name the option and those with similar spelling."""
    if name in ELSEWHERE:
        return f"--{name} is unknown; here it is {ELSEWHERE[name]}"
    whole, _, last = name.rpartition(".")
    beside = [option for option in known if option.rpartition(".")[0] == whole]
    ends = {option.rpartition(".")[2]: option for option in beside}
    near = [f"--{option}" for end, option in ends.items() if initials(end) == last]
    near += [f"--{ends[end]}" for end in difflib.get_close_matches(last, ends, n=3, cutoff=0.6)]
    if not whole:
        own = ("--out", "--resume", "--task", "--config", "--patience", "--logger")
        short = [*ALIASES, *FLAGS, *own]
        near = difflib.get_close_matches(f"--{name}", short, n=3, cutoff=0.6)
    if not near:  # the same name elsewhere
        near = [f"--{option}" for option in known if option.rpartition(".")[2] == last][:3]
    if near:
        return f"--{name} is unknown; close options are {', '.join(dict.fromkeys(near))}"
    if beside:
        return f"--{name} is unknown; --{whole} has {', '.join(ends)}"
    return f"--{name} is unknown; see vimamba fit --help"


def unknown_class(place: str, name: str) -> str:
    """Name an unknown class, and the ones that exist."""
    known = [entry for entry in CLASSES[place].__all__ if entry not in ("Callback", "Logger")]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6) or known
    return f"--{place} {name}: there is no such class; choose from {', '.join(near)}"


def initials(name: str) -> str:
    """First letters of a name's words: `wd` of `weight_decay`."""
    return "".join(word[:1] for word in name.split("_"))


def typed_options(task: type, data: type) -> list[str]:
    """Names of all typed options of a task, a data set and the trainer."""
    parts = {"model": task, "data": data, "trainer": Trainer}
    return [f"{part}.{name}" for part, kind in parts.items() for name in list_arguments(kind)]


def list_arguments(kind: type) -> Iterator[str]:
    """Arguments of a class and, through its `**kwargs`, of its bases; settings by dotted names."""
    for ancestor in kind.__mro__:
        if "__init__" not in vars(ancestor):
            continue
        hints = typing.get_type_hints(ancestor.__init__)
        parameters = inspect.signature(ancestor.__init__).parameters
        for name in list(parameters)[1:]:
            if parameters[name].kind in (
                inspect.Parameter.VAR_KEYWORD,
                inspect.Parameter.VAR_POSITIONAL,
            ):
                continue
            yield name
            for option in (hints.get(name), *typing.get_args(hints.get(name))):
                if dataclasses.is_dataclass(option):
                    yield from (f"{name}.{field.name}" for field in dataclasses.fields(option))
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            return
