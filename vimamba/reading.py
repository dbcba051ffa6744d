"""Reads untrusted files: as plain data, within limits set by the file's size.

No name in a file decides what is imported or called. Checkpoints are read by a small reader of
PyTorch's two formats: the pickle in them may build dictionaries, lists and dense tensors, and every
other class becomes an inert placeholder. Sizes are compared with the file before memory is
allocated.
"""

import io
import json
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from vimamba.errors import VimambaError

# maximum bytes of the description of weights; the largest published checkpoint has 0.3 MB
_MOST_PICKLE = 32 << 20
_MOST_JSON = 16 << 20
_MOST_YAML = 1 << 20
# maximum nodes of a YAML file after expanding aliases
_MOST_NODES = 100_000
_MOST_DEPTH = 64
# maximum bytes of a tensor that repeats the values of a smaller storage
_MOST_REPEATED = 1 << 30
# magic number of torch.save's files before version 1.6
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class CheckpointError(VimambaError):
    """A checkpoint that cannot be read or does not fit; the message says why."""


class Inert(dict[Any, Any]):
    """Placeholder for every class in a checkpoint that is not a tensor: none of its code runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def append(self, item: Any) -> None:
        """Ignore an item, for list-like classes."""

    def extend(self, items: Any) -> None:
        """Ignore items, for list-like classes."""


class _Dictionary(dict[Any, Any]):
    """Placeholder for the standard library's dictionary classes."""

    def __init__(self, pairs: Any = (), *_: Any) -> None:
        # the first argument of a defaultdict is its factory
        super().__init__(pairs if isinstance(pairs, dict | list | tuple) else ())


class _Storage:
    """Bytes that tensors share.

    Args:
        dtype: Dtype, if the file gives it here.
        size: Bytes.
        content: The bytes; None if they come later in the file.
    """

    def __init__(self, dtype: torch.dtype | None, size: int, content: Tensor | None) -> None:
        self.dtype = dtype
        self.size = size
        if content is None:
            content = torch.empty(size, dtype=torch.uint8, device="cpu")
        self.content = content


def _storage_dtypes() -> dict[str, torch.dtype | None]:
    """Names of torch's storage classes."""
    names = {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
    }
    return {f"{name}Storage": dtype for name, dtype in names.items()} | {"UntypedStorage": None}


_STORAGES = _storage_dtypes()
_DICTIONARIES = {("collections", name) for name in ("OrderedDict", "defaultdict", "Counter")}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]  # the variant whose memo is a dict
    """Builds plain values, dense tensors and placeholders.

    Args:
        file: The pickle.
        load_storage: (key, dtype, bytes) to the storage.
        limit: Maximum bytes of a storage.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(
        self,
        file: IO[bytes],
        load_storage: Callable[[str, torch.dtype | None, int], _Storage],
        limit: int,
    ) -> None:
        super().__init__(file, encoding="utf-8")
        self.load_storage = load_storage
        self.limit = limit
        self.known: dict[tuple[str, str], Any] = {
            ("torch._utils", "_rebuild_tensor"): self.make_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self.make_tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self.make_tensor_of,
            ("torch._utils", "_rebuild_parameter"): _first,
            ("torch._utils", "_rebuild_parameter_with_state"): _first,
            ("torch._tensor", "_rebuild_from_type_v2"): self.make_subclass,
            ("torch", "Size"): tuple,
            ("torch", "device"): _first,
            ("builtins", "set"): set,
            ("__builtin__", "set"): set,
        }

    def find_class(self, module: str, name: str) -> Any:
        """The replacement for a name in the file; nothing is imported."""
        if (module, name) in self.known:
            return self.known[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        if (module, name) in _DICTIONARIES:
            return _Dictionary
        if module.startswith("torch") and name.startswith("_rebuild"):
            kind = name.removeprefix("_rebuild_").replace("_", " ")
            raise CheckpointError(f"it has a tensor that is not dense ({kind})")
        return Inert

    def load_build(self) -> None:
        """Ignore attributes of a placeholder; nothing else may have any."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        stack.pop()
        if not isinstance(stack[-1], Inert | _Dictionary):
            raise CheckpointError(f"it changes a {type(stack[-1]).__name__}")

    dispatch[pickle.BUILD[0]] = load_build

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage that the pickle refers to: ("storage", type, key, location, numel, view)."""
        _, kind, key, _, count, *view = pid
        if view and view[0] is not None:
            raise CheckpointError("it holds views of storages, as PyTorch 0.3 wrote them")
        if not isinstance(kind, _StorageType) or not isinstance(count, int) or count < 0:
            raise CheckpointError("a storage in it is described wrongly")
        size = count * (kind.dtype.itemsize if kind.dtype else 1)
        if size > self.limit:
            raise CheckpointError(f"a storage of {size} bytes is larger than the file")
        return self.load_storage(str(key), kind.dtype, size)

    def make_tensor(
        self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any
    ) -> Tensor:
        """A tensor on a storage."""
        return self.make_tensor_of(storage, offset, size, stride, False, None, storage.dtype)

    def make_tensor_of(
        self,
        storage: _Storage,
        offset: int,
        size: Any,
        stride: Any,
        requires_grad: bool,
        hooks: Any,
        dtype: torch.dtype | None,
        *_: Any,
    ) -> Tensor:
        """A tensor whose dtype is not given by the storage; torch checks that it is inside."""
        dtype = torch.uint8 if dtype is None else dtype
        if math.prod(size) * dtype.itemsize > max(self.limit, _MOST_REPEATED):
            raise CheckpointError(f"a tensor of shape {tuple(size)} is larger than the file")
        whole = storage.size // dtype.itemsize * dtype.itemsize
        typed = storage.content[:whole].view(dtype)
        return torch.as_strided(typed, tuple(size), tuple(stride), offset)

    def make_subclass(self, function: Any, kind: Any, args: Any, *_: Any) -> Any:
        """A tensor subclass, as a plain tensor."""
        return function(*args)


class _StorageType:
    """A storage class, which the pickle names for each storage."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype


def _first(first: Any, *_: Any) -> Any:
    return first


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` or PyTorch file without running any code in it.

    Training checkpoints often have an argument namespace or a configuration object in addition to
    the weights. Those become inert placeholders; they are never unpickled. The tensors of a PyTorch
    file are memory-mapped.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file has neither format, is damaged, requests more memory than it has
            bytes, or cannot be opened.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise CheckpointError("it is a folder")
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        if isinstance(content, Inert):
            raise CheckpointError("it holds an object that needs code to be rebuilt")
        if not isinstance(content, dict):
            raise CheckpointError(f"it holds a {type(content).__name__}, not a dictionary")
    except FileNotFoundError:
        raise FileNotFoundError(f"checkpoint file {str(path)!r} does not exist") from None
    # any exception of the reader is caused by the file
    except Exception as error:
        reason = str(error) if isinstance(error, CheckpointError) else _reason(error)
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint that can be read safely: {reason}; expected a "
            "PyTorch or .safetensors file with a dictionary of weights"
        ) from None
    return dict(content)


def holds_objects(content: Any) -> bool:
    """Whether the content has placeholders: objects that need their own code."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, Inert):
            return True
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left += value.values() if isinstance(value, dict) else value
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return f"damaged ({type(error).__name__}{': ' + lines[0][:120] if lines else ''})"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) < 8:
        raise CheckpointError("it is shorter than a header")
    (header,) = struct.unpack("<Q", start)
    if header > min(_MOST_JSON, path.stat().st_size - 8):
        raise CheckpointError(f"its header would have {header} bytes")
    return load_file(path)


def _read_torch(path: Path) -> Any:
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError("it is empty")
    with path.open("rb") as file:
        # a private mapping: modifying a tensor does not modify the file
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if memory[:4] == b"PK\x03\x04":
        return _read_zip(path, memory)
    return _read_legacy(memory)


def _read_zip(path: Path, memory: mmap.mmap) -> Any:
    """The format since PyTorch 1.6: a pickle and one stored record per storage."""
    with zipfile.ZipFile(path) as archive:
        records = _places(archive.infolist(), memory)
    if any(name.endswith("constants.pkl") for name in records):
        raise CheckpointError("it is a TorchScript program")
    names = [name for name in records if name.endswith("data.pkl")]
    if len(names) != 1:
        raise CheckpointError(f"it is a zip file with {len(names)} data.pkl, not PyTorch's")
    folder = names[0].removesuffix("data.pkl")
    order = records.get(f"{folder}byteorder")
    if order is not None and memory[slice(*order)] != b"little":
        raise CheckpointError("it was written on a big-endian machine")
    loaded: dict[tuple[str, torch.dtype | None], _Storage] = {}

    def load_storage(key: str, dtype: torch.dtype | None, size: int) -> _Storage:
        if (key, dtype) not in loaded:
            start, stop = records[f"{folder}data/{key}"]
            if size > stop - start:
                raise CheckpointError(f"storage {key} has {stop - start} bytes, not {size}")
            loaded[key, dtype] = _Storage(dtype, size, _view(memory, start, size))
        return loaded[key, dtype]

    start, stop = records[names[0]]
    if stop - start > _MOST_PICKLE:
        raise CheckpointError(f"the description of its weights has {stop - start} bytes")
    return _Unpickler(io.BytesIO(memory[start:stop]), load_storage, len(memory)).load()


def _places(records: list[zipfile.ZipInfo], memory: mmap.mmap) -> dict[str, tuple[int, int]]:
    """Start and end of each record's bytes.

    Raises:
        CheckpointError: One is compressed or encrypted, they overlap, or share a name.
    """
    places: dict[str, tuple[int, int]] = {}
    end = 0
    for record in sorted(records, key=lambda record: record.header_offset):
        if record.compress_type != zipfile.ZIP_STORED or record.file_size != record.compress_size:
            raise CheckpointError(f"its record {record.filename} is compressed")
        if record.flag_bits & 1:
            raise CheckpointError(f"its record {record.filename} is encrypted")
        start = record.header_offset
        if memory[start : start + 4] != b"PK\x03\x04":
            raise CheckpointError(f"its record {record.filename} is not where it should be")
        name, extra = struct.unpack("<HH", memory[start + 26 : start + 30])
        begin = start + 30 + name + extra
        if start < end or begin + record.file_size > len(memory):
            raise CheckpointError(f"its record {record.filename} overlaps another or the end")
        if record.filename in places:
            raise CheckpointError(f"it has two records {record.filename}")
        end = begin + record.file_size
        places[record.filename] = (begin, end)
    return places


def _view(memory: mmap.mmap, start: int, size: int) -> Tensor:
    if size == 0:
        return torch.empty(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)


def _read_legacy(memory: mmap.mmap) -> Any:
    """The format before PyTorch 1.6: five pickles, then the storages' bytes in a given order."""
    loaded: dict[str, _Storage] = {}
    promised = 0

    def load_storage(key: str, dtype: torch.dtype | None, size: int) -> _Storage:
        nonlocal promised
        if key not in loaded:
            promised += size
            if promised > len(memory):
                raise CheckpointError("its storages are larger than the file")
            loaded[key] = _Storage(dtype, size, None)
        return loaded[key]

    def load() -> Any:
        file = _Bounded(memory, memory.tell() + _MOST_PICKLE)
        return _Unpickler(file, load_storage, len(memory)).load()  # type: ignore[arg-type]

    if load() != _LEGACY_MAGIC:
        raise CheckpointError("it is neither PyTorch's zip file nor its older format")
    load()  # the version of the format
    load()  # sizes of C types on the machine that wrote it
    content, keys = load(), load()
    for key in map(str, keys):
        storage = loaded[key]
        (count,) = struct.unpack("<q", memory.read(8))
        if count * (storage.dtype.itemsize if storage.dtype else 1) != storage.size:
            raise CheckpointError(f"storage {key} has another size than declared")
        if storage.size:
            storage.content.copy_(_view(memory, memory.tell(), storage.size))
            memory.seek(storage.size, io.SEEK_CUR)
    return content


class _Bounded:
    """A file view with a limit on the size of a pickle."""

    def __init__(self, memory: mmap.mmap, end: int) -> None:
        self.memory, self.end = memory, end

    def _left(self, count: int) -> int:
        return min(count, max(self.end - self.memory.tell(), 0))

    def read(self, count: int) -> bytes:
        """The next bytes."""
        return self.memory.read(self._left(count))

    def readline(self) -> bytes:
        """The next bytes up to the end of a line."""
        line = self.memory.readline()
        if self.memory.tell() > self.end:
            raise CheckpointError(
                f"the description of its weights has more than {_MOST_PICKLE} bytes"
            )
        return line

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read_json(path: str | Path, error: type[VimambaError]) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        error: Error class to raise.

    Raises:
        VimambaError: An `error`: the file cannot be opened, is not a JSON object, or is too large
            or too deeply nested.
    """
    try:
        return _mapping(json.loads(_read_text(Path(path), _MOST_JSON)))
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path} cannot be read: {_short(cause)}") from None


def read_yaml(path: str | Path, error: type[VimambaError]) -> dict[str, Any]:
    """Read a YAML file of plain values, without tags for classes.

    Args:
        path: The file.
        error: Error class to raise.

    Raises:
        VimambaError: An `error`: the file cannot be opened, is not a mapping of plain values, or is
            too large, also through its aliases, or too deeply nested.
    """
    try:
        loader = yaml.SafeLoader(_read_text(Path(path), _MOST_YAML))
        node = loader.get_single_node()
        if node is None:
            raise ValueError("it is empty")
        _count_nodes(node, {}, 0)
        return _mapping(loader.construct_document(node))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as cause:
        raise error(f"{path} cannot be read: {_short(cause)}") from None


def _short(cause: Exception) -> str:
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    if isinstance(cause, UnicodeDecodeError):
        return "it is not UTF-8 text"
    mark = getattr(cause, "problem_mark", None)
    text = getattr(cause, "problem", None) or str(cause).splitlines()[0]
    return f"{text} (line {mark.line + 1})" if mark is not None else text


def _read_text(path: Path, most: int) -> str:
    if path.is_dir():
        raise ValueError("it is a folder")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content.decode("utf-8")


def _mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("it is not a mapping of names")
    return content


def _count_nodes(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Number of nodes below a node, including those repeated by aliases.

    Raises:
        ValueError: There are too many, they are nested too deeply, or the file merges mappings,
            whose cost aliases can multiply.
    """
    if depth > _MOST_DEPTH:
        raise ValueError("it is nested too deeply, or in itself")
    if id(node) in known:
        return known[id(node)]
    count = 1 + sum(_count_nodes(child, known, depth + 1) for child in _children(node))
    if count > _MOST_NODES:
        raise ValueError(f"it expands to more than {_MOST_NODES} values")
    known[id(node)] = count
    return count


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                raise ValueError("it merges mappings with <<")
            yield from (key, value)
