"""torch.compile compiles a model once for all batches and image sizes, also in training."""

import pytest
import timm
import torch

import vimamba  # noqa: F401  registers the models
from tests.backbones import kinds_first
from tests.closeness import assert_same
from vimamba.scan_orders import registry

# as few blocks as cover every path through the code
MODELS = {
    "test_vmamba": {"depths": (1, 1), "dims": (16, 24)},
    "test_vmamba_m2": {"depths": (1,), "dims": (16,)},
    "test_mlla": {"depths": (1, 1), "dims": (16, 24)},
    "test_spatialmamba": {"depths": (1, 1), "dims": (16, 24)},
    "test_msvmamba": {"depths": (1, 1), "dims": (16, 24)},
    "test_vim": {
        "depth": 2,
        "dynamic_img_size": True,
        "scan_order": ["bidirectional", "raster + local(window=3)"],
    },
    "test_adventurer": {"depth": 1, "dynamic_img_size": True},
    "test_arm": {"depth": 1, "dynamic_img_size": True},
    "test_mamband": {"depth": 2, "merge_after": 0, "dynamic_img_size": True},
    "test_mambar": {"depth": 1, "dynamic_img_size": True},
    "test_plainmamba": {"depth": 2},
    "test_videomamba": {"depth": 1, "dynamic_img_size": True},
    "test_vimf": {"depth": 2, "fourier_blocks": 1},
}
UNORDERED_STRIDES = pytest.mark.xfail(
    torch.__version__.startswith("2.14."),
    raises=torch._dynamo.exc.BackendCompilerFailed,
    strict=True,
    reason="Inductor of torch 2.14 cannot order the strides of their grids on a CPU",
)
UNPADDED = pytest.mark.xfail(
    torch.__version__.startswith("2.14."),
    raises=AssertionError,
    strict=True,
    reason="Inductor of torch 2.14 expects other strides of the gradient of replicated padding",
)
# models for which Inductor of torch 2.14 makes programs of one size only on a CPU
ONE_SIZE = ("test_plainmamba", "test_spatialmamba")
SHAPES = [(2, 80, 112), (3, 96, 96), (5, 75, 101)]


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **{**MODELS[name], **kwargs})


def results(function, model, image):
    """Logits and all gradients."""
    model.zero_grad()
    logits = function(image)
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.fixture(autouse=True)
def one_program():
    """Start without compiled programs, and forbid recompilation."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.mark.parametrize("name", kinds_first(MODELS))
def test_one_program_serves_all_batches_and_sizes_with_eager_gradients(name):
    model = build(name)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, height, width in SHAPES:
        image = torch.randn(batch, 3, height, width)
        assert_same(results(compiled, model, image), results(model, model, image))


@pytest.mark.parametrize("name", kinds_first(MODELS))
def test_gradient_checkpointing_stays_in_the_program(name):
    model = build(name)
    image = torch.randn(2, 3, 64, 96)
    expected = results(model, model, image)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(results(compiled, model, image), expected)


@pytest.mark.parametrize("name", kinds_first(MODELS))
def test_a_model_of_fixed_size_compiles_as_well(name):
    fixed = {"dynamic_img_size": False, "img_size": 64}
    model = build(name, **(fixed if "dynamic_img_size" in MODELS[name] else {}))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    image = torch.randn(2, 3, 64, 64)
    assert_same(compiled(image), model(image))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=UNORDERED_STRIDES if name in ONE_SIZE else ()) for name in MODELS],
)
def test_inductor_gives_the_same(name):
    assert_inductor_gives_the_same(name, SHAPES[:2], dynamic=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["test_plainmamba", pytest.param("test_spatialmamba", marks=UNPADDED)]
)
def test_inductor_gives_the_same_where_it_supports_one_size_at_a_time(name):
    assert_inductor_gives_the_same(name, SHAPES[:1], dynamic=False)


def assert_inductor_gives_the_same(name, shapes, *, dynamic):
    model = build(name)
    # torch 2.14 cannot order the strides of a stem's view in another layout
    options = {"layout_optimization": name in ONE_SIZE}
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, options=options)
    # it may choose other code for larger sums
    with torch._dynamo.config.patch(error_on_recompile=False):
        for batch, height, width in shapes:
            image = torch.randn(batch, 3, height, width)
            # sums are computed in a different order
            torch.testing.assert_close(
                results(compiled, model, image), results(model, model, image), rtol=1e-3, atol=1e-5
            )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", MODELS)
def test_cuda_graphs_are_made_without_an_eager_call_before(name):
    registry._table.cache_clear()
    model = build(name).cuda().eval()
    compiled = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    images = torch.randn(4, 2, 3, 96, 96, device="cuda")
    with torch.no_grad():
        for image in images:
            torch.testing.assert_close(compiled(image).clone(), model(image), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_captured_model_outlives_the_cache_of_path_tables():
    model, image = build("test_vmamba").cuda().eval(), torch.randn(2, 3, 96, 96, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        expected = model(image)
        with torch.cuda.graph(graph):
            logits = model(image)
        registry._table.cache_clear()
        rest = [
            torch.full((2**16,), -1, device="cuda") for _ in range(100)
        ]  # overwrites free memory
        graph.replay()
    torch.testing.assert_close(logits, expected)
    assert len(rest) == 100
