"""Honest timings: candidates take turns in one process, medians and ratios are what counts."""

from vimamba.benchmark.timing import Result, describe_machine, take_turns

__all__ = ["Result", "describe_machine", "take_turns"]
