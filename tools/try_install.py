"""Test an installed vimamba without optional packages: python tools/try_install.py.

Runs the command and a forward and backward pass of a model, and reads a recipe. Fails if vimamba is
imported from this checkout.
"""

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import timm
import torch

import vimamba
from vimamba.cli.options import find_recipe

CHECKOUT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> str:
    """The output of the installed command."""
    scripts = sysconfig.get_path("scripts")
    command = shutil.which("vimamba", path=scripts)
    if command is None:
        raise SystemExit(f"there is no command vimamba in {scripts}")
    done = subprocess.run([command, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    """Run all checks; an error names what does not work."""
    place = Path(vimamba.__file__).resolve().parent
    if place.parent == CHECKOUT:
        raise SystemExit(f"vimamba comes from the checkout, {place}, not from an installation")
    assert run("--version").split() == ["vimamba", version("vimamba")]
    assert "vim_tiny_patch16_224" in run("list-models", "vim_*")
    for name in ("test_vim", "test_vmamba"):
        model = timm.create_model(name, num_classes=3)
        logits = model(torch.rand(2, 3, 96, 96))
        assert logits.shape == (2, 3)
        logits.square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    recipe = Path(find_recipe("classification/digits_vim"))
    assert recipe.is_relative_to(place), f"the recipe comes from {recipe}"
    print(f"vimamba {version('vimamba')} in {place} works with Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
