"""Numba kernels of the tree operators; cpu.py drives them.

A task of `tree_sum` handles `w` channels of one batch element: it finds an order in which children
come before their parents, and follows it in the output, which initially holds the tokens. A task of
`grid_tree` is one grid: Kruskal's algorithm over the sorted edges, then a breadth-first search.
"""

from typing import Any

import numpy as np
from numba import boolean, float32, int32, types, uint64

from vimamba_kernels.cpu_math import (
    ONE,
    THREE,
    TWO,
    ZERO,
    U,
    arguments,
    helper,
    kernel,
    own,
    place,
    share,
    use_wide_vectors,
)

# inputs and outputs, indices, scratch, sizes, whether upward
SUM = types.Tuple(
    (
        types.UniTuple(float32[::1], 2),
        int32[::1],
        int32[::1],
        types.UniTuple(uint64, 8),
        boolean,
    )
)
# sorted edges, parents, scratch, sizes
TREE = types.Tuple((int32[::1], int32[::1], int32[::1], types.UniTuple(uint64, 2)))


@helper
def strip_leaves(parents: Any, start: Any, length: Any, memory: Any) -> Any:
    """Write tokens to `memory`, children before parents; returns how many were ordered.

    These are not all tokens if `parents` does not describe trees.
    """
    # after the order, the number of remaining children
    for i in range(length):
        memory[length + i] = 0
    for i in range(length):
        if parents[start + i] >= 0:
            memory[length + U(parents[start + i])] += 1
    count = ZERO
    for i in range(length):
        if memory[length + i] == 0:
            memory[count] = i
            count += ONE
    done = ZERO
    while done < count:
        parent = parents[start + U(memory[done])]
        done += ONE
        if parent >= 0:
            memory[length + U(parent)] -= 1
            if memory[length + U(parent)] == 0:
                memory[count] = parent
                count += ONE
    return count


@kernel
def tree_sum(frame: Any) -> None:
    """Sum along the trees, in place."""
    use_wide_vectors()
    member, first, last = share(frame)
    (y, weight), parents, scratch, sizes, upward = arguments(frame, SUM)
    memory = own(scratch, member)
    length, channels = sizes[2], sizes[4]
    for task in range(first, last):
        b, _, _, start, w = place(task, sizes)
        count = strip_leaves(parents, b * length, length, memory)
        for t in range(count):
            i = U(memory[t]) if upward else U(memory[count - ONE - t])
            if parents[b * length + i] < 0:
                continue
            child = (b * length + i) * channels + start
            parent = (b * length + U(parents[b * length + i])) * channels + start
            if upward:
                for d in range(w):
                    y[parent + d] += weight[child + d] * y[child + d]
            else:
                for d in range(w):
                    y[child + d] += weight[child + d] * y[parent + d]


@helper
def find_root(above: Any, i: Any) -> Any:
    """The representative of a cell's component; compresses the path to it."""
    while U(above[i]) != i:
        above[i] = above[U(above[i])]
        i = U(above[i])
    return i


@helper
def neighbor(i: Any, direction: Any, width: Any) -> Any:
    """The cell below, right, above or left of a cell."""
    if direction == ZERO:
        return i + width
    if direction == ONE:
        return i + ONE
    return i - width if direction == TWO else i - ONE


@helper
def join_cells(edges: Any, start: Any, height: Any, width: Any, memory: Any) -> None:
    """Write to `memory`, after the components, a bit per direction in which a cell is connected."""
    length, below = height * width, (height - ONE) * width
    count = below + height * (width - ONE)
    for i in range(length):
        memory[i] = i
        memory[length + i] = 0
    for t in range(count):
        edge = U(edges[start + t])
        direction = ZERO if edge < below else ONE
        i = edge
        if edge >= below:
            i = (edge - below) // (width - ONE) * width + (edge - below) % (width - ONE)
        j = neighbor(i, direction, width)
        a, b = find_root(memory, i), find_root(memory, j)
        if a != b:
            memory[a] = b
            memory[length + i] |= np.int32(1) << np.int32(direction)
            memory[length + j] |= np.int32(4) << np.int32(direction)


@kernel
def grid_tree(frame: Any) -> None:
    """Parents of the cells."""
    member, first, last = share(frame)
    edges, parents, scratch, (height, width) = arguments(frame, TREE)
    memory = own(scratch, member)
    length = height * width
    count = (height - ONE) * width + height * (width - ONE)
    for task in range(first, last):
        join_cells(edges, task * count, height, width, memory)
        start = task * length
        # the cells in breadth-first order overwrite the components
        parents[start] = -1
        memory[ZERO] = 0
        known = ONE
        for t in range(length):
            i = U(memory[t])
            for direction in range(ZERO, THREE + ONE):
                if memory[length + i] >> np.int32(direction) & np.int32(1):
                    j = neighbor(i, direction, width)
                    if parents[start + i] != np.int32(j):
                        parents[start + j] = i
                        memory[known] = j
                        known += ONE
