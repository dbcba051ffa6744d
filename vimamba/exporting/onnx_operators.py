"""The selective scan and the convolution along paths in standard ONNX operators.

The time in a runtime depends on the number of passes over memory and the number of nodes per step.
So the tokens are gathered once in the order of the steps, with the steps first, which `Scan` slices
without copying; everything that needs no state is computed for all steps at once; and the channels
are last, so that every operator processes whole rows.

If a channel has one state, a step is too little work for its nodes. Then each path is cut into P
chunks that are processed in parallel from a zero state; a second pass over the P chunks computes
the states before them, whose decayed values are added.

All of this works on rows: a tensor of tokens (B, L, D) gets a row of zeros for steps without a
token, and rows (B * (L + 1), D) are gathered.

Sizes: B batch, K paths, L tokens, T steps in P chunks of Q, D channels in G groups, N states,
R rank, W taps; S is B for separate paths per sample and 1 otherwise.
"""

from typing import TYPE_CHECKING, Any

import onnx_ir
from onnxscript import FLOAT, INT64, graph, opset18, script
from onnxscript.values import Opset

# functions under `script` are parsed, not run: their types are ONNX's
op: Any = opset18
if TYPE_CHECKING:
    X = Any
    Y = Any
else:
    X, Y = FLOAT[...], INT64[...]
_OURS = Opset("vimamba", 1)

# elements per node of a step: fewer cost call overhead, more cost cache misses
_STEP_SIZE = 16384
_MOST_CHUNKS = 64


@script(_OURS, default_opset=op)
def walk(dt: X, A: X, write: X, B: X, C: X) -> X:
    """Run all paths in parallel, step by step; returns their outputs, (T, K, B, 1, D).

    dt and write are (T, K, B, 1, D), A (K, 1, N, D), B (T, K, B, N, 1), C (T, K, B, 1, N).
    """
    state = op.Concat(op.Shape(dt, start=1, end=3), op.Shape(A, start=2), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), state)

    @graph()
    def step(h: X, dt_t: X, write_t: X, B_t: X, C_t: X):  # noqa: ANN202
        h_t = op.Exp(dt_t * A) * h + write_t * B_t
        y_t = op.MatMul(C_t, h_t)
        return h_t, y_t

    _, y = op.Scan(start, dt, write, B, C, body=step, num_scan_inputs=4)
    return y


@script(_OURS, default_opset=op)
def walk_chunks(decay: X, write: X, C: X, chunked: Y) -> X:
    """Run all chunks in parallel, with one state per channel; returns (Q, K, P * B, D).

    decay and write are (Q, K, P * B, D), C (Q, K, P * B, 1), `chunked` is the shape (K, P, B, D).
    """
    rows = op.Shape(decay, start=1)
    zeros = op.Expand(op.Constant(value_float=0.0), rows)
    ones = op.Expand(op.Constant(value_float=1.0), rows)

    @graph()
    def step(h: X, kept: X, decay_t: X, write_t: X, C_t: X):  # noqa: ANN202
        h_t = decay_t * h + write_t
        kept_t = decay_t * kept
        y_t = C_t * h_t
        share_t = C_t * kept_t
        return h_t, kept_t, y_t, share_t

    h, kept, y, share = op.Scan(zeros, ones, decay, write, C, body=step, num_scan_inputs=3)
    h_chunks = op.Reshape(h, chunked)
    kept_chunks = op.Reshape(kept, chunked)
    first = op.Gather(op.Reshape(zeros, chunked), op.Constant(value_int=0), axis=1)

    @graph()
    def carry(state: X, h_p: X, kept_p: X):  # noqa: ANN202
        after = kept_p * state + h_p
        before = op.Identity(state)
        return after, before

    _, before = op.Scan(
        first,
        h_chunks,
        kept_chunks,
        body=carry,
        num_scan_inputs=2,
        scan_input_axes=[1, 1],
        scan_output_axes=[1],
    )
    return y + share * op.Reshape(before, rows)


def selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_weight: Any = None,
    delta_softplus: bool = False,
    paths: Any = None,
    merge: bool = True,
    backend: str = "auto",
) -> Any:
    """`torch.ops.vimamba.selective_scan`."""
    arguments = (u, delta, A, B, C, D, delta_bias, delta_weight)
    scan = _scan if len(B.shape) == 4 else _scan_of_groups
    y = scan(*arguments, paths, delta_softplus=delta_softplus, merge=merge)
    if z is not None:
        gate = op.Mul(z, op.Sigmoid(z))
        y = op.Mul(y, gate if merge else op.Unsqueeze(gate, [1]))
    return y


def _scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    delta_bias: Any,
    delta_weight: Any,
    paths: Any,
    *,
    delta_softplus: bool,
    merge: bool,
) -> Any:
    """The scan without its gate, B and C (B, K, L, N)."""
    count, channels, states = A.shape
    shared = len(u.shape) == 3
    chunks = 1
    if states == 1:
        chunks = min(max(_STEP_SIZE // (count * channels), 2), _MOST_CHUNKS)
    way = _Way(u, paths, count, chunks)

    u_steps = way.steps(u, shared)
    dt = way.steps(delta)
    if delta_weight is not None:
        dt = op.MatMul(dt, op.Transpose(delta_weight, perm=[0, 2, 1]))
    if delta_bias is not None:
        dt = op.Add(dt, op.Unsqueeze(delta_bias, [1]))
    if delta_softplus:
        # onnxruntime's own Softplus is not vectorized and about ten times slower
        dt = op.Where(op.Greater(dt, 20.0), dt, op.Log(op.Add(op.Exp(dt), 1.0)))
    write = op.Mul(dt, u_steps)
    B_steps, C_steps = way.steps(B), way.steps(C)
    if states == 1:
        decay = op.Exp(op.Mul(dt, op.Transpose(A, perm=[0, 2, 1])))
        chunked = _sizes([count, chunks], way.batch, [channels])
        y = walk_chunks(decay, op.Mul(write, B_steps), C_steps, chunked)
    else:
        A = op.Unsqueeze(op.Transpose(A, perm=[0, 2, 1]), [1])
        dt, write, C_steps = (op.Unsqueeze(t, [3]) for t in (dt, write, C_steps))
        y = op.Squeeze(walk(dt, A, write, op.Unsqueeze(B_steps, [4]), C_steps), [3])

    # if the paths share their tokens and are summed, the sum of their D suffices
    skip_late = shared and merge
    if D is not None and not skip_late:
        y = op.Add(y, op.Mul(op.Unsqueeze(D, [1]), u_steps))
    y = way.tokens(y, channels, merge)
    if D is not None and skip_late:
        y = op.Add(y, op.Mul(u, op.MatMul(op.Transpose(way.visited, perm=[0, 2, 1]), D)))
    return y


def _scan_of_groups(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    delta_bias: Any,
    delta_weight: Any,
    paths: Any,
    *,
    delta_softplus: bool,
    merge: bool,
) -> Any:
    """The scan without its gate, B and C (B, K, G, L, N): one path per group of each path."""
    count, channels, states = A.shape
    groups = B.shape[2]
    ways, width = count * groups, channels // groups

    def apart(x: Any) -> Any:
        """(B, K, L, D) to (B, K * G, L, D / G)."""
        x = op.Transpose(op.Reshape(x, [0, 0, 0, groups, width]), perm=[0, 1, 3, 2, 4])
        return _reshape(x, [0, ways, -1, width])

    if len(u.shape) == 3:
        u = op.Expand(op.Unsqueeze(u, [1]), [1, count, 1, 1])
    if delta_weight is not None:
        delta = op.MatMul(delta, op.Transpose(delta_weight, perm=[0, 2, 1]))
    D, delta_bias = (None if t is None else _reshape(t, [ways, width]) for t in (D, delta_bias))
    if paths is not None:
        samples = [0] * (len(paths.shape) - 2)
        paths = op.Expand(op.Unsqueeze(paths, [-2]), [groups, 1])
        paths = _reshape(paths, [*samples, ways, -1], onnx_ir.DataType.INT64)
    B, C = (_reshape(t, [0, ways, -1, states]) for t in (B, C))
    A = _reshape(A, [ways, width, states])
    y = _scan(
        apart(u),
        apart(delta),
        A,
        B,
        C,
        D,
        delta_bias,
        None,
        paths,
        delta_softplus=delta_softplus,
        merge=False,
    )
    y = op.Transpose(op.Reshape(y, [0, count, groups, -1, width]), perm=[0, 1, 3, 2, 4])
    y = op.Reshape(y, [0, 0, 0, channels])
    return op.ReduceSum(y, [1], keepdims=0) if merge else y


def causal_conv_along_paths(
    x: Any,
    weight: Any,
    bias: Any = None,
    paths: Any = None,
    activation: str | None = None,
    backend: str = "auto",
) -> Any:
    """`torch.ops.vimamba.causal_conv_along_paths`: each tap gathers earlier tokens."""
    count, _, taps = weight.shape
    way = _Way(x, paths, count, 1)
    y = None
    for lag in range(taps):
        tap = op.Unsqueeze(op.Gather(weight, taps - 1 - lag, axis=2), [1])
        term = op.Mul(way.earlier(x, lag), tap)
        y = term if y is None else op.Add(y, term)
    if bias is not None:
        y = op.Add(y, op.Unsqueeze(bias, [1]))
    if activation == "silu":
        y = op.Mul(y, op.Sigmoid(y))
    return op.Mul(y, op.Unsqueeze(way.visited, [3]))


class _Way:
    """Index tables from tokens to the steps of the paths, and back.

    Attributes:
        batch: (1,), B.
        visited: (S, K, L), 1 where a path visits a token and 0 elsewhere.
    """

    def __init__(self, tokens: Any, paths: Any, count: int, chunks: int) -> None:
        self.count = count
        axes = len(tokens.shape)
        self.batch = op.Shape(tokens, start=0, end=1)
        self.length = op.Shape(tokens, start=axes - 2, end=axes - 1)
        self.rows = op.Add(self.length, 1)
        if paths is None:
            paths = op.Expand(_range(self.length), _sizes([1, count], self.length))
        elif len(paths.shape) == 2:
            paths = op.Unsqueeze(paths, [0])
        # (S, K, T); a step without a token reads the row after the last
        self.at = op.Where(op.Less(paths, 0), self.length, paths)
        self.number = _range(self.batch)

        steps = op.Shape(paths, start=2, end=3)
        turns = op.Div(op.Add(steps, chunks - 1), [chunks])
        padding = _sizes([0] * 5, op.Sub(op.Mul(turns, chunks), steps))
        padded = op.Pad(self.at, padding, op.Squeeze(self.length))
        split = op.Reshape(padded, _sizes([-1, count, chunks], turns))
        # here (Q, K, P, S): Q steps of K * P parallel chunks
        self.order = op.Transpose(split, perm=[3, 1, 2, 0])

        # for each token on a path: its step, and the row of the step among all steps of one image
        step = _range(steps)
        self.step = self._by_token(step)
        place = op.Add(op.Mul(op.Mod(step, turns), count * chunks), op.Div(step, turns))
        first = op.Constant(value_ints=[k * chunks for k in range(count)])
        self.place = op.Add(place, op.Unsqueeze(first, [1]))
        self.visited = op.Cast(op.GreaterOrEqual(self.step, 0), to=1)

    def _by_token(self, values: Any) -> Any:
        """Values of every step, (T,) or (K, T), to every token, (S, K, L); -1 without a step."""
        size = _sizes(op.Shape(self.at, start=0, end=2), self.rows)
        none = op.Expand(op.Constant(value_int=-1), size)
        values = op.Expand(values, op.Shape(self.at))
        return op.Slice(op.ScatterElements(none, self.at, values, axis=2), [0], self.length, [2])

    def steps(self, x: Any, shared: bool = False) -> Any:
        """Tokens of every path (B, K, L, D), or of all (B, L, D), by step: (Q, K, P * B, D)."""
        image = self.number
        if not shared:
            path = op.Constant(value_ints=list(range(self.count)))
            path = op.Unsqueeze(path, [1, 2])
            image = op.Add(op.Mul(image, self.count), path)
        rows = op.Add(self.order, op.Mul(image, self.rows))
        return op.Gather(_flat(x), op.Reshape(rows, [0, 0, -1]), axis=0)

    def earlier(self, x: Any, lag: int) -> Any:
        """Inputs of each path `lag` steps before each token, (B, K, L, D); zeros if none."""
        step = op.Sub(self.step, lag)
        at = op.GatherElements(self.at, op.Max(step, 0), axis=2)
        at = op.Where(op.Less(step, 0), self.length, at)
        image = op.Unsqueeze(op.Mul(self.number, self.rows), [1, 2])
        return op.Gather(_flat(x), op.Add(at, image), axis=0)

    def tokens(self, y: Any, channels: int, merge: bool) -> Any:
        """Steps (Q, K, P * B, D) back to the tokens (B, K, L, D), or their sum (B, L, D)."""
        place = op.Max(self._by_token(self.place), 0)
        rows = op.Add(op.Mul(place, self.batch), op.Unsqueeze(self.number, [1, 2]))
        y = op.Reshape(y, [-1, channels])
        if not merge:
            return op.Mul(op.Gather(y, rows, axis=0), op.Unsqueeze(self.visited, [3]))
        each = op.Gather(y, op.Transpose(rows, perm=[0, 2, 1]), axis=0)
        visited = op.Unsqueeze(op.Transpose(self.visited, perm=[0, 2, 1]), [2])
        return op.Squeeze(op.MatMul(visited, each), [2])


def _reshape(x: Any, sizes: list[int], dtype: Any = onnx_ir.DataType.FLOAT) -> Any:
    """Reshape `x`, with the static shape recorded as for the model's own values."""
    y = op.Reshape(x, sizes)
    y.dtype = dtype
    y.shape = onnx_ir.Shape([size if size > 0 else None for size in sizes])
    return y


def _flat(x: Any) -> Any:
    """(..., L, D) with a row of zeros after every L rows, (-1, D)."""
    axes = len(x.shape)
    padding = [0] * (2 * axes)
    padding[-2] = 1
    return op.Reshape(op.Pad(x, padding), [-1, x.shape[-1]])


def _range(size: Any) -> Any:
    """0, 1, ... up to a size (1,)."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    return op.Range(zero, op.Squeeze(size), one)


def _sizes(*parts: Any) -> Any:
    """Lists of numbers and tensors (n,), joined."""
    tensors = (op.Constant(value_ints=p) if isinstance(p, list) else p for p in parts)
    return op.Concat(*tensors, axis=0)
