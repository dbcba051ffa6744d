"""Errors for wrong arguments of the selective scan, and the choice of the backend."""

import re

import pytest
import torch

from tests.kernels.problems import make_problem
from vimamba_kernels import arguments, backends, selective_scan
from vimamba_kernels.selective_scan.op import choose_backend


def changed(rank=None, **changes):
    """A good float32 problem with some arguments replaced or, if callable, changed."""
    problem = make_problem(dtype=torch.float32, rank=rank)
    for name, change in changes.items():
        problem[name] = change(problem[name]) if callable(change) else change
    return problem


def repeated(paths):
    paths = paths.clone()
    paths[1, 4] = paths[1, 7] = 5
    return paths


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": lambda t: t[0]}, "delta has shape (2, 13, 6); expected (B, K, L, D)"),
        (
            {"delta": lambda t: t[:, :, :0]},
            "delta has shape (2, 2, 0, 6); expected at least one token",
        ),
        (
            {"u": lambda t: t[:, :5]},
            "u has shape (2, 5, 6); expected (B, L, D) or (B, K, L, D) = (2, 13, 6) or "
            "(2, 2, 13, 6)",
        ),
        ({"A": lambda t: t[0]}, "A has shape (6, 3); expected (K, D, N) = (2, 6, N >= 1)"),
        (
            {"B": lambda t: t[..., :2]},
            "B has shape (2, 2, 13, 2); expected (B, K, L, N) or (B, K, G, L, N) = "
            "(2, 2, 13, 3) or (2, 2, 1, 13, 3)",
        ),
        (
            {"C": lambda t: t[:1]},
            "C has shape (1, 2, 13, 3); expected the shape of B = (2, 2, 13, 3)",
        ),
        (
            {"B": lambda t: t.unsqueeze(2).expand(-1, -1, 4, -1, -1)},
            "B has 4 groups; expected a divisor of D = 6",
        ),
        ({"D": lambda t: t[0]}, "D has shape (6,); expected (K, D) = (2, 6)"),
        ({"delta_bias": lambda t: t.T}, "delta_bias has shape (6, 2); expected (K, D) = (2, 6)"),
        (
            {"z": lambda t: t.unsqueeze(1)},
            "z has shape (2, 1, 13, 6); expected (B, L, D) = (2, 13, 6)",
        ),
        ({"paths": lambda t: t[:1]}, "paths has shape (1, 13); expected (K, T) = (2, T >= 1)"),
        (
            {"paths": lambda t: t.expand(3, -1, -1)},
            "paths has shape (3, 2, 13); expected (K, T) = (2, T >= 1) or "
            "(B, K, T) = (2, 2, T >= 1)",
        ),
        ({"paths": lambda t: t[:, :0]}, "paths has shape (2, 0); expected (K, T) = (2, T >= 1)"),
        ({"paths": lambda t: t[0]}, "paths has shape (13,); expected (K, T) = (2, T >= 1) or"),
        (
            {"paths": lambda t: torch.stack([t, repeated(t)])},
            "paths[1, 1] visits token 5 again; expected each at most once",
        ),
        ({"paths": lambda t: t + 1}, "paths holds values from 1 to 13; expected [-1, 13)"),
        ({"paths": lambda t: t - 2}, "paths holds values from -2 to 10; expected [-1, 13)"),
        ({"paths": repeated}, "paths[1] visits token 5 again; expected each at most once"),
        ({"A": lambda t: t.to("meta")}, "A is on meta; expected cpu, as u is"),
        ({"paths": lambda t: t.to("meta")}, "paths is on meta; expected cpu, as u is"),
    ],
)
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        selective_scan(**changed(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": lambda t: t[0]}, "delta has shape (2, 13, 4); expected (B, K, L, R)"),
        ({"u": lambda t: t[..., :5]}, "u has shape (2, 13, 5); expected (B, L, D) or"),
        (
            {"delta_weight": lambda t: t[..., :3]},
            "delta_weight has shape (2, 6, 3); expected (K, D, R) = (2, D, 4)",
        ),
        (
            {"delta_weight": lambda t: t[0]},
            "delta_weight has shape (6, 4); expected (K, D, R) = (2, D, 4)",
        ),
        ({"delta_weight": lambda t: t[:, :5]}, "A has shape (2, 6, 3); expected (K, D, N) = (2, 5"),
        (
            {"delta": lambda t: t[..., :0], "delta_weight": lambda t: t[..., :0]},
            "delta_weight has shape (2, 6, 0); expected (K, D, R) = (2, D, 1)",
        ),
    ],
)
def test_a_wrong_value_of_a_projected_scan_is_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        selective_scan(**changed(rank=4, **changes))


def test_the_weight_of_the_projection_has_the_dtype_of_u():
    message = "delta_weight is torch.float64; expected torch.float32, as u is"
    with pytest.raises(TypeError, match=message):
        selective_scan(**changed(rank=4, delta_weight=lambda t: t.double()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": 1.0}, "u is float; expected a tensor"),
        ({"A": None}, "A is NoneType; expected a tensor"),
        ({"z": [1]}, "z is list; expected a tensor"),
        ({"u": lambda t: t.long()}, "u is torch.int64; expected one of"),
        ({"B": lambda t: t.half()}, "B is torch.float16; expected torch.float32, as u is"),
        ({"z": lambda t: t.double()}, "z is torch.float64; expected torch.float32, as u is"),
        ({"D": lambda t: t.int()}, "D is torch.int32; expected a floating dtype"),
        ({"paths": lambda t: t.float()}, "paths is torch.float32; expected torch.int32 or"),
    ],
)
def test_a_wrong_type_is_named(changes, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        selective_scan(**changed(**changes))


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_the_operator_itself_refuses_wrong_shapes(backend):
    problem = changed(B=lambda t: t[:, :, :5])
    tensors = [problem[n] for n in ("u", "delta", "A", "B", "C")]
    with pytest.raises(ValueError, match="B has shape"):
        torch.ops.vimamba.selective_scan(*tensors, backend=backend)


def test_the_cpu_backend_never_reads_outside_the_tokens():
    problem = changed()
    tensors = [problem[n] for n in ("u", "delta", "A", "B", "C")]
    far = problem["paths"] + 10**6
    for paths in (far, torch.stack([problem["paths"], far])):
        with pytest.raises(ValueError, match=r"paths holds values from \d+ to 1000012"):
            torch.ops.vimamba.selective_scan(*tensors, paths=paths, backend="cpu")


def test_the_values_of_a_path_table_are_read_once_until_they_change(monkeypatch):
    problem = changed()
    selective_scan(**problem)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "min", lambda *_: pytest.fail("the values were read again"))
        selective_scan(**problem)
    problem["paths"][0, 0] = 99
    with pytest.raises(ValueError, match="paths holds values"):
        selective_scan(**problem)


def test_checked_path_tables_are_not_kept_alive():
    selective_scan(**changed())
    arguments._good_paths.clear()
    problem = changed()
    selective_scan(**problem)
    assert len(arguments._good_paths) == 1
    del problem
    assert len(arguments._good_paths) == 0


def test_paths_may_be_int64():
    problem = changed()
    y = selective_scan(**problem)
    torch.testing.assert_close(selective_scan(**changed(paths=lambda t: t.long())), y)


def test_an_unknown_backend_gets_the_choices():
    message = r"backend='gpu' is unknown; choose from \['auto', 'triton', 'cpu'"
    with pytest.raises(ValueError, match=message):
        selective_scan(**changed(), backend="gpu")


def test_the_environment_variable_chooses_the_backend(monkeypatch):
    problem = changed()
    monkeypatch.setenv("VIMAMBA_BACKEND", "chunked")
    assert choose_backend("auto", problem["u"]) == "chunked"
    torch.testing.assert_close(
        selective_scan(**problem), selective_scan(**problem, backend="chunked")
    )
    monkeypatch.setenv("VIMAMBA_BACKEND", "fastest")
    with pytest.raises(ValueError, match="VIMAMBA_BACKEND='fastest' is unknown"):
        selective_scan(**problem)


def test_the_argument_wins_over_the_environment_variable(monkeypatch):
    monkeypatch.setenv("VIMAMBA_BACKEND", "fastest")
    selective_scan(**changed(), backend="cpu")


def test_automatic_choice_takes_numba_where_it_can_run(monkeypatch):
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    monkeypatch.delenv("VIMAMBA_BACKEND", raising=False)
    assert choose_backend("auto", single) == "cpu"
    assert choose_backend("auto", single.bfloat16()) == "cpu"
    assert choose_backend("auto", double) == "chunked"
    assert choose_backend("auto", single.to("meta")) == "chunked"
    monkeypatch.setattr(backends, "_numba_is_installed", lambda: False)
    assert choose_backend("auto", single) == "chunked"


def test_a_forced_backend_that_cannot_run_says_why(monkeypatch):
    double = make_problem()
    message = "backend='cpu' cannot run: u is float64; it computes in float32; use 'chunked' or"
    with pytest.raises(ValueError, match=re.escape(message)):
        selective_scan(**double, backend="cpu")
    monkeypatch.setenv("VIMAMBA_BACKEND", "cpu")
    with pytest.raises(ValueError, match="VIMAMBA_BACKEND='cpu' cannot run: u is float64"):
        selective_scan(**double)
    with pytest.raises(ValueError, match="cannot run: u is on meta; it runs on the CPU only"):
        choose_backend("cpu", torch.zeros(1, device="meta"))
    monkeypatch.setattr(backends, "_numba_is_installed", lambda: False)
    with pytest.raises(ValueError, match="cannot run: numba is not installed"):
        selective_scan(**changed(), backend="cpu")
