"""Fair timings: candidates alternate in one process; medians and ratios are reported."""

from vimamba.benchmark.timing import Result, describe_machine, take_turns

__all__ = ["Result", "describe_machine", "take_turns"]
