"""Runs in separate processes: lost ones and interrupted ones."""

import os
import signal
import threading
import time
from unittest.mock import Mock

import pytest

from tests.bench_worker import job, pretend
from vimamba.errors import UsageError
from vimamba.scanbench.running import INTERRUPTED, LocalPool, RayPool, run_all


def test_a_lost_process_costs_its_run_only(tmp_path, capfd):
    ended_jobs = []
    jobs = [job(tmp_path, order) for order in ("one", "two", "killed", "three")]
    ended = run_all(LocalPool(pretend, 1), jobs, lambda job, outcome: ended_jobs.append(job))
    outcomes = {job.trial.order: outcome for job, outcome in ended}
    assert {order: outcome.code for order, outcome in outcomes.items()} == {
        "one": 0, "two": 0, "killed": 1, "three": 0,
    }  # fmt: skip
    assert "SIGKILL" in outcomes["killed"].error
    assert ended_jobs == jobs
    # a process is reused after a run, as imports are slow, and is restarted when it is lost
    assert outcomes["one"].seconds == outcomes["two"].seconds != outcomes["three"].seconds
    assert "KeyboardInterrupt" not in capfd.readouterr().err


def test_an_interrupt_stops_the_run_and_begins_no_other(tmp_path):
    jobs = [job(tmp_path, order) for order in ("long", "after")]
    begun = tmp_path / "long.begun"

    def interrupt():
        while not begun.exists():
            time.sleep(0.05)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before, start = signal.getsignal(signal.SIGINT), time.monotonic()
    ended = run_all(
        LocalPool(pretend, 1),
        jobs,
        lambda job, outcome: pytest.fail("called for an interrupted run"),
    )
    assert [outcome.code for _, outcome in ended] == [INTERRUPTED] * 2
    assert not (tmp_path / "after.begun").exists()
    assert time.monotonic() - start < 50
    assert signal.getsignal(signal.SIGINT) is before


def test_a_refused_connection_to_ray_says_what_to_do(monkeypatch):
    ray = pytest.importorskip("ray")
    for kind in (ConnectionError, ValueError, ray.exceptions.AuthenticationError):
        monkeypatch.setattr(ray, "init", Mock(side_effect=kind("Failed at 10.0.0.1:6379")))
        with pytest.raises(UsageError, match=r"--ray auto: Failed at .*:6379\. .*RAY_AUTH_MODE"):
            RayPool(pretend, "auto", None)


@pytest.mark.slow
def test_ray_starts_a_lost_run_again(tmp_path):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        jobs = [job(tmp_path, order) for order in ("killed_once", "two", "three")]
        ended = run_all(RayPool(pretend, "auto", None), jobs, lambda job, outcome: None)
        assert ray.is_initialized()  # the caller's connection is kept
    finally:
        ray.shutdown()
    assert {job.trial.order for job, _ in ended} == {"killed_once", "two", "three"}
    assert all(outcome.code == 0 for _, outcome in ended)
    first, second = (tmp_path / "killed_once.begun").read_text().split()
    (outcome,) = (found for job, found in ended if job.trial.order == "killed_once")
    assert first != second == str(int(outcome.seconds))
