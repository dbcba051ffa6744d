"""Hands runs to processes of this machine or to Ray.

A process trains one run after another, so the seconds that imports take are spent once. One that is
lost costs its run only: here the same command goes on with it, Ray starts it again by itself.
"""

import ctypes
import importlib
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch

from vimamba.errors import UsageError
from vimamba.scanbench.plan import Trial

INTERRUPTED = 130
# of Linux: the signal that a process gets when the one that started it ends
PR_SET_PDEATHSIG = 1
# how often Ray starts a run again whose process or machine was lost
RETRIES = 3
# what to do where Ray does not connect; its error does not say whether a token was missing
NO_CONNECTION = (
    "If there is no cluster, `ray start --head` starts one, and --ray local uses this machine. If "
    "the cluster checks tokens, set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what "
    "`ray get-auth-token` prints on its head node"
)


@dataclass(frozen=True)
class Job:
    """A run to train.

    Attributes:
        trial: Which run of the bench it is.
        out: Its folder.
        settings: Of `vimamba fit`, as a recipe.
        plugins: Modules to import first.
    """

    trial: Trial
    out: Path
    settings: dict[str, Any]
    plugins: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: 0, `INTERRUPTED`, or another exit code of `vimamba fit`.
        seconds: How long it took.
        error: What went wrong, in a line.
    """

    code: int
    seconds: float
    error: str = ""


Train = Callable[[Job], Outcome]


class Pool(Protocol):
    """Processes that train."""

    def submit(self, job: Job) -> "Future[Outcome]":
        """Have a run trained, after those that were submitted before."""
        ...

    def interrupt(self) -> None:
        """Stop the current runs at the next step, and start no others."""
        ...

    def close(self) -> None:
        """End the processes; what they train is interrupted before."""
        ...


class LocalPool:
    """Processes of this machine; they share its cores, and each has one of its GPUs.

    Args:
        train: A function of a module, called in the processes.
        size: Number of processes.
    """

    def __init__(self, train: Train, size: int) -> None:
        threads = max(1, torch.get_num_threads() // size) if size > 1 else None
        devices = _visible_devices()
        self._stopping = threading.Event()
        self._workers = [
            _Worker(train, self._stopping, threads, devices[i % len(devices)] if devices else None)
            for i in range(size)
        ]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(size)

    def submit(self, job: Job) -> "Future[Outcome]":
        """See `Pool`."""
        return self._threads.submit(self._run, job)

    def _run(self, job: Job) -> Outcome:
        worker = self._idle.get()
        try:
            outcome = None if self._stopping.is_set() else worker.run(job)
        finally:
            self._idle.put(worker)
        if outcome is None or (outcome.code and self._stopping.is_set()):
            return Outcome(INTERRUPTED, 0.0)
        return outcome

    def interrupt(self) -> None:
        """See `Pool`."""
        self._stopping.set()
        for worker in self._workers:
            worker.interrupt()

    def close(self) -> None:
        """See `Pool`."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    """A process that trains runs one after another; started again after it was lost."""

    def __init__(
        self, train: Train, stopping: threading.Event, threads: int | None, device: str | None
    ) -> None:
        self._train, self._threads, self._device = train, threads, device
        self._stopping = stopping
        self._process: BaseProcess | None = None
        self._pipe: Any = None
        self._busy = False

    def run(self, job: Job) -> Outcome:
        """Train a run and wait for its end."""
        begun = time.monotonic()
        pipe, process = self._started()
        self._busy = True
        try:
            pipe.send(job)
            if self._stopping.is_set():  # since this run was taken up
                self.interrupt()
            return pipe.recv()
        except (EOFError, OSError):
            self.close()
            ended = describe_end(process.exitcode)
            return Outcome(1, time.monotonic() - begun, f"its process was lost: {ended}")
        finally:
            self._busy = False

    def _started(self) -> tuple[Any, BaseProcess]:
        if self._process is not None and self._process.is_alive():
            return self._pipe, self._process
        # a fresh interpreter: a fork would inherit threads that hold locks
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, self._train, self._threads, self._device)
        process = context.Process(target=serve, args=arguments)
        process.start()
        theirs.close()
        self._process = process
        return self._pipe, process

    def interrupt(self) -> None:
        """Stop the run that trains now."""
        process = self._process
        if self._busy and process is not None and process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)

    def close(self) -> None:
        """End the process, because no process is left to control it."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join()
        self._pipe = self._process = None


def serve(pipe: Any, train: Train, threads: int | None, device: str | None) -> None:
    """What a process of `LocalPool` does: train what comes through the pipe until it is closed.

    Args:
        pipe: The end of a `multiprocessing.Pipe` to the process that hands out runs.
        train: Trains one.
        threads: Of torch's; its own choice if None.
        device: The GPU to see; all if None.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(os, "setsid"):  # so that Ctrl-C comes once, by way of `interrupt`
        os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            pipe.send(train(pipe.recv()))
    # the thread that started this process ends now, too, which counts as the end of its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _visible_devices() -> list[str]:
    """Names of the GPUs that this process may use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else map(str, range(count))
    return list(names)[:count]


def describe_end(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, as the system does where memory runs out" if name == "SIGKILL" else name


class RayPool:
    """Ray's workers, on one machine or many; all see the folder of the bench and the data.

    Args:
        train: A function of a module that is installed on all machines.
        address: Of a cluster, "auto" for the one that this machine belongs to, or "local" for one
            that ends with this process. A connection that the caller made already is used instead.
        gpus: Part of a GPU that each run takes; a whole one if None and if there are any.

    Raises:
        UsageError: There is no cluster, it refuses the connection, or the address is none.
    """

    def __init__(self, train: Train, address: str, gpus: float | None) -> None:
        self._ray: Any = importlib.import_module("ray")
        self._own = not self._ray.is_initialized()
        if self._own:
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except (ConnectionError, ValueError, self._ray.exceptions.RayError) as error:
                reason = str(error).partition(". ")[0]
                raise UsageError(f"--ray {address}: {reason}. {NO_CONNECTION}") from None
        if gpus is None:
            gpus = 1.0 if self._ray.cluster_resources().get("GPU") else 0.0
        self._train = self._ray.remote(train).options(num_gpus=gpus, max_retries=RETRIES)
        self._refs: list[Any] = []

    def submit(self, job: Job) -> "Future[Outcome]":
        """See `Pool`."""
        self._refs.append(self._train.remote(job))
        return self._refs[-1].future()

    def interrupt(self) -> None:
        """See `Pool`."""
        for ref in self._refs:
            self._ray.cancel(ref)

    def close(self) -> None:
        """See `Pool`."""
        if self._own:
            self._ray.shutdown()


def run_all(
    pool: Pool, jobs: Sequence[Job], on_end: Callable[[Job, Outcome], None]
) -> list[tuple[Job, Outcome]]:
    """Train all runs; SIGINT and SIGTERM interrupt them.

    Args:
        pool: Trains them.
        jobs: In the order in which they are begun.
        on_end: Called with each run that ended and its outcome, unless it was interrupted.

    Returns:
        Every run with how it ended, as they ended.
    """
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        pool.interrupt()

    ended: list[tuple[Job, Outcome]] = []
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        futures = {pool.submit(job): job for job in jobs}
        for future in as_completed(futures):
            job, outcome = futures[future], _outcome_of(future, stopping=stopping)
            ended.append((job, outcome))
            if outcome.code != INTERRUPTED:
                on_end(job, outcome)
    except BaseException:
        pool.interrupt()
        raise
    finally:
        pool.close()
        for number, handler in before.items():
            signal.signal(number, handler)
    return ended


def _outcome_of(future: "Future[Outcome]", *, stopping: bool) -> Outcome:
    """How a run ended, where Ray gave it up, too."""
    try:
        return future.result()
    except Exception as error:
        if stopping:
            return Outcome(INTERRUPTED, 0.0)
        text = " ".join(str(error).split())[:300]
        return Outcome(1, 0.0, f"{type(error).__name__}: {text}")
