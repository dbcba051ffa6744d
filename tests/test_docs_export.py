"""docs/export.md: its commands and snippets run, and its memory table matches the counts."""

import re

import pytest
import timm
import torch

from tests.documents import find_commands, find_snippets, read, shortened, write_photos
from tests.test_memory import saved_bytes
from vimamba.cli import main
from vimamba.exporting.portable import computes_from_size
from vimamba.scan_orders import list_scan_orders

DOCUMENT = read("docs/export.md")
# the same commands, with small models that need no download
SMALL = {
    "vmamba_tiny_s1l8": "test_vmamba --model-kwargs depths=[1] dims=[16]",
    "vim_tiny_patch16_224": "test_vim",
    "dynamic_img_size=true": "dynamic_img_size=true depth=1",
}


def small(command):
    """A command's arguments, for a small model."""
    for name, other in SMALL.items():
        command = command.replace(name, other)
    return [argument for argument in shortened(command) if argument != "--pretrained"]


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory):
    """The files that the page assumes: photos, and a run trained on them."""
    folder = tmp_path_factory.mktemp("export")
    write_photos(folder / "photos", [f"{i}.jpg" for i in range(10)])
    fit = [
        "fit",
        "--data",
        str(folder / "photos"),
        "--model",
        "test_vit",
        "--epochs",
        "1",
        "--img-size",
        "32",
    ]
    assert main([*fit, "--workers", "0", "--out", str(folder / "runs" / "photos")]) == 0
    return folder


@pytest.mark.slow
def test_the_commands_and_snippets_run(start_folder, monkeypatch):
    monkeypatch.chdir(start_folder)
    for command in find_commands(DOCUMENT):
        assert main(small(command)) == 0, command
    for snippet in find_snippets(DOCUMENT):
        exec(compile(snippet, "export.md", "exec"), {"__name__": "__main__"})
    assert timm.create_model("local-dir:photos-model", pretrained=True).num_classes == 2


@pytest.mark.slow
def test_the_named_orders_are_those_that_onnx_computes():
    (sentence,) = re.findall(r"With (hilbert.*?) and\s+registered tables", DOCUMENT, re.DOTALL)
    fixed = {order for order in list_scan_orders(dims=2) if not computes_from_size(order)}
    assert set(re.split(r",\s+", sentence)) == fixed


ROWS = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \|$", DOCUMENT, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "plain", "checkpointed"), ROWS, ids=[row[0] for row in ROWS])
def test_the_table_of_memory_holds(name, plain, checkpointed):
    model, image = timm.create_model(name), torch.randn(1, 3, 224, 224)
    assert saved_bytes(model, image) / 2**20 == pytest.approx(float(plain), abs=0.1)
    model.set_grad_checkpointing()
    assert saved_bytes(model, image) / 2**20 == pytest.approx(float(checkpointed), abs=0.1)
