"""Every command and snippet of docs/segmentation.md and docs/medical.md runs."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from tests.documents import (
    ROOT,
    SETUP,
    find_commands,
    find_missing_links,
    find_snippets,
    read,
    shortened,
)
from vimamba.cli import main

PAGES = ("docs/segmentation.md", "docs/medical.md")
# the smallest networks
KWARGS = "--model.model_kwargs"
SMALL = {
    "vm_unet": [KWARGS, "{depths: [1, 1], decoder_depths: [1, 1], dims: [8, 16]}"],
    "vmamba_tiny_s1l8": [
        *(KWARGS, "{depths: [1, 1, 1, 1], dims: [8, 16, 24, 32]}"),
        *("--model.head", "unet"),  # the page's network has different widths
    ],
    "resnet18": [KWARGS, "{layers: [1, 1, 1, 1], channels: [8, 16, 24, 32]}"],
}


def write_pair(folder, name, mask, rng):
    pixels = rng.integers(0, 90, (*mask.shape, 3)) + mask[..., None] // 2 % 128
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{name}.png")
    Image.fromarray(mask).save(folder / "masks" / f"{name}.png")


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory):
    """A folder with what the pages assume."""
    folder, rng = tmp_path_factory.mktemp("docs"), np.random.default_rng(0)
    lines = ["image,mask,patient"]
    for number in range(12):
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[8 : 20 + number, 10:30] = 255
        write_pair(folder / "tiles", f"{number}", mask, rng)
        land = np.repeat(np.arange(4, dtype=np.uint8), 10)[:, None].repeat(48, 1)
        write_pair(folder / "land", f"{number}", land, rng)
        lines.append(f"tiles/images/{number}.png,tiles/masks/{number}.png,p{number // 2}")
    (folder / "list.csv").write_text("\n".join(lines))
    for kind in ("images", "masks"):
        (folder / "ct" / kind).mkdir(parents=True)
    for name in "abcd":
        organ = np.zeros((24, 20, 5), dtype=np.uint8)
        organ[5:15, 4:12, 1:4] = 1
        values = rng.normal(-50, 30, organ.shape) + 200.0 * organ
        for kind, array in (("images", values.astype(np.int16)), ("masks", organ)):
            volume = nibabel.Nifti1Image(array, np.diag([-0.8, -0.8, 3, 1]))
            nibabel.save(volume, folder / "ct" / kind / f"{name}.nii.gz")
    return folder


def made_small(command):
    argv = shortened(command)
    if argv[0] != "fit":
        return argv
    model = argv[argv.index("--model") + 1]
    argv += ["--img-size", "32", "--workers", "0"]
    return argv + SMALL[model]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_page_run(page, start_folder, monkeypatch):
    monkeypatch.chdir(start_folder)
    commands = [c for c in find_commands(read(page)) if not c.startswith(SETUP)]
    assert len(commands) >= 4
    for command in commands:
        assert main(made_small(command)) == 0, command
    if "medical" in page:
        found = nibabel.load("organs/a.nii.gz")
        np.testing.assert_array_equal(found.affine, nibabel.load("ct/images/a.nii.gz").affine)
    else:
        assert (start_folder / "found" / "cases.csv").exists()
        for snippet in find_snippets(read(page)):
            exec(compile(snippet, page, "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES)
def test_the_page_links_to_files_that_exist(page):
    assert find_missing_links(read(page), (ROOT / page).parent) == []
