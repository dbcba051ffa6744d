"""Files and folders are written completely or not at all."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import vimamba
from vimamba.errors import VimambaError, WriteError
from vimamba.files import check_writable, list_entries, lock_folder, write_folder, write_whole


def fail_after_writing(path: Path) -> None:
    path.write_text("new")
    raise RuntimeError("half-way")


def test_a_file_is_written_with_its_folder(tmp_path):
    with write_whole(tmp_path / "a" / "b.txt") as part:
        part.write_text("new")
        assert part.suffix == ".txt"
        assert not (tmp_path / "a" / "b.txt").exists()
    assert (tmp_path / "a" / "b.txt").read_text() == "new"
    assert os.listdir(tmp_path / "a") == ["b.txt"]


def test_an_error_leaves_the_earlier_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half"), write_whole(target) as part:
        fail_after_writing(part)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_writers_do_not_share_a_temporary_name(tmp_path):
    def write(text: str) -> None:
        with write_whole(tmp_path / "a.txt") as part:
            part.write_text(text)
            together.wait()
            assert part.read_text() == text

    together = threading.Barrier(2)
    writers = [threading.Thread(target=write, args=(text,)) for text in "xy"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (tmp_path / "a.txt").read_text() in ("x", "y")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for content in ("old", "new"):
        with write_folder(tmp_path / "model") as part:
            (part / content).write_text(content)
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["new"]


def test_a_folder_is_replaced_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr("vimamba.files._exchange", lambda one, other: False)
    test_a_folder_takes_the_place_of_another(tmp_path)


def test_a_folder_that_cannot_be_moved_in_leaves_the_earlier_one(tmp_path, monkeypatch):
    with write_folder(tmp_path / "model") as part:
        (part / "old").touch()
    rename = os.rename

    def fail_to_move_in(source, target):
        if Path(target) == tmp_path / "model" and not str(source).endswith(".earlier"):
            raise OSError("moved away")
        rename(source, target)

    monkeypatch.setattr("vimamba.files._exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", fail_to_move_in)
    with pytest.raises(WriteError, match="moved away"), write_folder(tmp_path / "model"):
        pass
    assert os.listdir(tmp_path / "model") == ["old"]
    assert os.listdir(tmp_path) == ["model"]


def test_an_error_leaves_the_earlier_folder(tmp_path):
    with write_folder(tmp_path / "model") as part:
        (part / "old").touch()
    with pytest.raises(RuntimeError, match="half"), write_folder(tmp_path / "model") as part:
        fail_after_writing(part / "new")
    assert os.listdir(tmp_path / "model") == ["old"]
    assert os.listdir(tmp_path) == ["model"]


# `vimamba` without its models, which take seconds to import
BARE = f"""
import os, sys, types
sys.modules["vimamba"] = package = types.ModuleType("vimamba")
package.__path__ = {vimamba.__path__!r}
"""
KILLED = """
from vimamba.files import {function}
with {function}(sys.argv[1]) as part:
    (part / "new" if part.is_dir() else part).write_text("new")
    os.replace = os.rename = lambda *names: os._exit(9)
"""


@pytest.mark.parametrize("function", ["write_whole", "write_folder"])
def test_what_a_killed_process_leaves_is_hidden(tmp_path, function):
    code = BARE + KILLED.format(function=function)
    source = [sys.executable, "-c", code, str(tmp_path / "target")]
    assert subprocess.run(source).returncode == 9
    assert list_entries(tmp_path) == []
    assert os.listdir(tmp_path) != []


def test_a_full_disk_is_an_error_of_the_users(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    source = (
        f"{BARE}\nfrom vimamba.files import write_whole\n"
        "with write_whole(sys.argv[1]) as part:\n    part.write_bytes(bytes(5000))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", source, str(tmp_path / "big.bin")],
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )
    assert done.returncode == 1
    assert "WriteError" in done.stderr
    assert "big.bin' cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file/run' cannot be written"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []


def test_errors_of_all_parts_have_one_base():
    from vimamba.checkpoints import CheckpointError
    from vimamba.data.errors import DataError
    from vimamba.errors import UsageError
    from vimamba.exporting.report import ExportError
    from vimamba.tasks.errors import TaskError

    errors = [CheckpointError, UsageError, DataError, ExportError, TaskError, WriteError]
    assert all(issubclass(error, VimambaError) for error in errors)


def test_what_lies_in_a_folder_comes_in_order(tmp_path):
    for name in ("b", "a", ".part-x"):
        Path(tmp_path, name).touch()
    assert [path.name for path in list_entries(tmp_path)] == ["a", "b"]


HOLD = """
from vimamba.files import lock_folder
with lock_folder(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_locked_folder_is_another_processs_until_that_dies(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", BARE + HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        message = f"run' is being written by process {holder.pid} of "
        with pytest.raises(WriteError, match=message), lock_folder(folder):
            pass
        assert list_entries(folder) == []
        holder.kill()
        holder.wait()
        with lock_folder(folder):
            pass
    assert folder.exists()  # it was not created here
    assert os.listdir(folder) == []


def test_a_process_does_not_lock_a_folder_twice(tmp_path):
    with (
        lock_folder(tmp_path),
        pytest.raises(WriteError, match="by this very process"),
        lock_folder(tmp_path / "." / ".." / tmp_path.name),
    ):
        pass


def test_a_folder_made_for_a_lock_does_not_stay_empty(tmp_path):
    with pytest.raises(RuntimeError, match="nothing"), lock_folder(tmp_path / "run"):
        raise RuntimeError("nothing came of it")
    assert os.listdir(tmp_path) == []
    with lock_folder(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert os.listdir(tmp_path / "run") == ["file"]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.warns(UserWarning, match="cannot be locked: No locks"), lock_folder(tmp_path):
        pass
