"""Exported files compute the model's outputs, also at other batch and image sizes."""

import subprocess
import sys

import onnx
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vimamba
from tests.backbones import KINDS, kinds_first, stirred
from vimamba.exporting import ExportError, export_model
from vimamba.exporting.onnx_file import OnnxRunner
from vimamba.exporting.portable import computes_from_size
from vimamba.exporting.report import TOLERANCE, compare
from vimamba.scan_orders import registry

# as few blocks as cover every path through the code
MODELS = {
    "test_vmamba": {"depths": (1, 1), "dims": (16, 24)},
    "test_vmamba_m2": {"depths": (1,), "dims": (16,)},
    "test_vim": {
        "depth": 1,
        "dynamic_img_size": True,
        "scan_order": ["bidirectional + columns"],
    },
    "test_adventurer": {"depth": 1, "dynamic_img_size": True},
    "test_arm": {"depth": 1, "dynamic_img_size": True},
    "test_mamband": {"depth": 2, "merge_after": 0, "dynamic_img_size": True},
    "test_mambar": {"depth": 1, "dynamic_img_size": True},
    "test_plainmamba": {"depth": 2},
    "test_videomamba": {"depth": 1, "dynamic_img_size": True},
    "test_vimf": {"depth": 2, "fourier_blocks": 1},
}
# neither multiples of a stride nor of a chunk, and a square
SHAPES = [(1, 3, 75, 101), (3, 3, 64, 160), (2, 3, 128, 128)]


def build(name, **kwargs):
    torch.manual_seed(0)
    return stirred(timm.create_model(name, num_classes=5, **{**MODELS[name], **kwargs}).eval())


@pytest.mark.parametrize("name", kinds_first(MODELS))
def test_an_onnx_file_takes_any_batch_and_size(name, tmp_path):
    model = build(name)
    report = export_model(model, tmp_path / "model.onnx")
    assert report.input == ("batch", 3, "height", "width")
    run = OnnxRunner(tmp_path / "model.onnx")
    for check in compare(model, run, SHAPES):
        assert check.difference < 1e-4
    # one file of ONNX's own operators, and one step of the scan for all sizes
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.json"]
    graph = onnx.load(tmp_path / "model.onnx")
    assert {node.domain for node in graph.graph.node} == {""}
    scans = [node for node in graph.graph.node if node.op_type == "Scan"]
    # with one state per channel there is another loop, over the chunks of the paths
    if name in KINDS:
        assert len(scans) == {"test_vmamba": 4, "test_vim": 1}[name]


class Scans(nn.Module):
    """The scan and the convolution with the arguments that our models do not use."""

    def forward(self, image):
        u = image.flatten(2).mT
        length = u.shape[1]
        # (K, T): one path skips tokens, one has a step without a token
        forward = torch.arange(length)
        paths = torch.stack([forward.flip(0), torch.where(forward % 3 == 1, -1, forward)])
        each = paths.expand(u.shape[0], -1, -1)  # (B, K, T)
        both = torch.stack([u, u.flip(2)], dim=1)
        grid = torch.linspace(-1, 1, 2 * 6 * 3).view(2, 6, 3)
        scan, conv = torch.ops.vimamba.selective_scan, torch.ops.vimamba.causal_conv_along_paths
        outputs = [conv(u, grid, None, p) for p in (paths, each)] + [conv(u, grid, grid[..., 0])]
        for states, groups in ((1, 2), (3, 2), (1, 1), (3, 1)):
            A = -grid[..., :states].exp()
            B, C = both[..., :states] + 1, both[..., 1 : 1 + states]
            table = paths if states == 1 else each
            if groups > 1:
                B, C = (torch.stack([t, t.cos()], dim=2) for t in (B, C))
            outputs += [
                scan(both, both.exp(), A, B, C, grid[..., 0], u, paths=table, merge=False),
                scan(u, both, A, B, C, grid[..., 1], None, grid[..., 2], grid @ grid.mT, True),
            ]
        return outputs


@torch.no_grad()
def test_every_argument_of_a_scan_is_written_in_onnx(tmp_path):
    export_model(Scans(), tmp_path / "model.onnx", image_size=(6, 8, 16))
    run = OnnxRunner(tmp_path / "model.onnx")
    for size in ((1, 6, 5, 7), (2, 6, 11, 9)):
        image = torch.randn(size)
        for found, expected in zip(run(image), Scans()(image), strict=True):
            # float32 sums in a different order
            assert (found - expected).abs().max() < 2e-6 * expected.abs().max()


@pytest.mark.parametrize("name", ["test_vmamba"])
def test_an_order_that_cannot_be_computed_fixes_the_size_and_says_so(name, tmp_path):
    model = build(name, scan_order="hilbert", depths=(1,), dims=(16,))
    report = export_model(model, tmp_path / "model.onnx", image_size=(3, 40, 56))
    assert report.input == ("batch", 3, 40, 56)
    assert report.notes[0].startswith("height and width are fixed at 40x56: the paths of scan_ord")
    assert [check.shape for check in report.checks] == [(1, 3, 40, 56), (3, 3, 40, 56)]


@pytest.mark.parametrize(
    ("order", "computed"),
    [
        ("cross", True),
        ("serpentine", True),
        ("raster + columns(reverse=True)", True),
        ("random", False),
    ],
)
def test_which_orders_are_computed_from_the_size(order, computed):
    assert computes_from_size(order) == computed


def test_an_order_that_is_right_for_some_sizes_only_is_not_trusted(monkeypatch):
    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))

    @vimamba.register_scan_order
    def odd_ones_out(height: int, width: int) -> torch.Tensor:
        path = torch.arange(height * width)
        return (path.flip(0) if height % 2 else path)[None]

    assert not computes_from_size("odd_ones_out")


class PaddedPools(nn.Module):
    """Pads to whole cells of eight and pools; a negative quotient gives their number."""

    def forward(self, x):
        cells = [-(-side // 8) for side in x.shape[2:]]
        x = F.pad(x, (0, 8 * cells[1] - x.shape[3], 0, 8 * cells[0] - x.shape[2]))
        return torch.stack([F.adaptive_avg_pool2d(x, size).sum((2, 3)) for size in (2, 3, 6)])


def test_quotients_and_pools_are_computed_from_the_size_in_an_onnx_file(tmp_path):
    export_model(PaddedPools(), tmp_path / "model.onnx", image_size=(3, 16, 24))
    shapes = [(1, 3, 16, 24), (2, 3, 17, 31), (3, 3, 50, 9)]
    for check in compare(PaddedPools(), OnnxRunner(tmp_path / "model.onnx"), shapes):
        assert check.relative < 1e-6


def test_a_model_of_one_size_is_exported_with_it(tmp_path):
    model = build("test_vim", dynamic_img_size=False, img_size=(48, 80))
    report = export_model(model, tmp_path / "model.pt2", target="torch-export")
    assert report.input == ("batch", 3, 48, 80)
    assert "dynamic_img_size=True" in report.notes[0]


LOAD = """
import sys, torch, vimamba
for name in sys.argv[2:]:
    image, expected = torch.load(f"{sys.argv[1]}/{name}.pt", weights_only=True)
    program = torch.export.load(f"{sys.argv[1]}/{name}.pt2").module()
    torch.testing.assert_close(program(image), expected, rtol=1e-5, atol=1e-5)
"""


def test_another_process_loads_exported_programs(tmp_path):
    names = ["test_vmamba"]
    for name in names:
        # an order that ONNX cannot compute
        model = build(name, scan_order="hilbert", depths=(1,), dims=(16,))
        export_model(model, tmp_path / f"{name}.pt2", target="torch-export")
        image = torch.randn(SHAPES[0])
        torch.save((image, model(image).detach()), tmp_path / f"{name}.pt")
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path), *names], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_compiled_package_gives_the_same(name, tmp_path):
    # export_model itself compares outputs, at other batches and sizes
    report = export_model(build(name), tmp_path / "model.aoti.pt2", target="aoti")
    assert len(report.checks) == 3
    again = torch._inductor.aoti_load_package(str(tmp_path / "model.aoti.pt2"))
    image = torch.randn(SHAPES[1])
    torch.testing.assert_close(again(image), build(name)(image), rtol=1e-4, atol=1e-5)


def test_a_file_of_other_numbers_is_refused():
    model = build("test_vmamba_m2")
    with pytest.raises(ExportError, match=r"differs from the model by .* at the input shape"):
        compare(model, lambda image: [model(image) * (1 + 3 * TOLERANCE)], SHAPES[:1])
    with pytest.raises(ExportError, match="differs from the model by nan"):
        compare(model, lambda image: [model(image) * float("nan")], SHAPES[:1])


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    def fail(*args):
        raise ExportError("other numbers")

    monkeypatch.setattr("vimamba.exporting.files.compare", fail)
    (tmp_path / "model.pt2").write_text("older")
    with pytest.raises(ExportError, match="other numbers"):
        export_model(build("test_vmamba_m2"), tmp_path / "model.pt2", target="torch-export")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "older"


def test_half_precision_is_refused_with_the_way_out(tmp_path):
    model = build("test_vmamba_m2").half()
    with pytest.raises(ExportError, match=r"torch\.float16 on cpu; export it in float32"):
        export_model(model, tmp_path / "model.onnx")


def test_a_size_too_small_to_be_free_is_fixed_and_said(tmp_path):
    model = timm.create_model("test_vmamba", num_classes=5, depths=(1,), dims=(16,))
    report = export_model(model, tmp_path / "model.onnx", image_size=(3, 4, 4))
    assert report.input == ("batch", 3, 4, 4)
    assert report.notes[0].startswith("height and width are fixed at 4x4: a file with dynamic")


def test_a_file_that_does_not_run_is_refused_in_one_line():
    def run(image):
        raise RuntimeError("\nMatMul: cannot broadcast\nand more")

    with pytest.raises(
        ExportError, match=r"does not run at .*: MatMul: cannot broadcast; fixed_si"
    ):
        compare(build("test_vmamba_m2"), run, SHAPES[:1])


def test_an_unknown_target_is_refused(tmp_path):
    with pytest.raises(ExportError, match="target='tflite' is unknown; choose from"):
        export_model(build("test_vmamba_m2"), tmp_path / "model", target="tflite")
