"""The architecture: allowed imports, what is loaded when, and the sizes of files."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vimamba import timm_layers

ROOT = Path(__file__).parents[1]
OURS = ("vimamba", "vimamba_command", "vimamba_kernels")
# parts that every part of vimamba may import; they import nothing but themselves
BASE = {
    *("vimamba.console", "vimamba.errors", "vimamba.files", "vimamba.labels", "vimamba.lightning"),
    *("vimamba.names", "vimamba.reading", "vimamba.runs", "vimamba.sizes", "vimamba.timm_layers"),
}
# names imported from one module of ours, and the modules they must not be imported from directly:
# Lightning has two packages, and some layers differ between versions of timm
ONE_PLACE = {
    **dict.fromkeys(("lightning", "pytorch_lightning"), "vimamba.lightning"),
    **dict.fromkeys(timm_layers.__all__, "vimamba.timm_layers"),
}
# part -> other parts that it may import; None: all of ours
MAY_IMPORT: dict[str, set[str] | None] = {
    "vimamba_kernels": set(),
    "vimamba_command": {"vimamba.cli"},
    "vimamba.console": set(),
    "vimamba.progress": {"vimamba.console"},
    "vimamba.errors": set(),
    "vimamba.files": set(),
    "vimamba.lightning": set(),
    "vimamba.names": set(),
    "vimamba.labels": set(),
    "vimamba.reading": set(),
    "vimamba.runs": set(),
    "vimamba.sizes": set(),
    "vimamba.scan_orders": {"vimamba_kernels"},
    "vimamba.checkpoints": set(),
    "vimamba.data": set(),
    "vimamba.hub": {"vimamba.checkpoints", "vimamba.model_card", "vimamba.networks"},
    "vimamba.model_card": set(),
    "vimamba.plugins": {"vimamba_command"},
    "vimamba.timm_layers": set(),
    "vimamba.timm_names": set(),
    "vimamba.visualize": {"vimamba.scan_orders"},
    "vimamba.benchmark": {"vimamba_kernels", "vimamba.scan_orders", "vimamba"},
    "vimamba.layers": {"vimamba_kernels", "vimamba.scan_orders"},
    "vimamba.models": {"vimamba.layers", "vimamba.scan_orders", "vimamba.checkpoints"},
    "vimamba.heads": {"vimamba.layers", "vimamba.scan_orders"},
    "vimamba.networks": {
        "vimamba.layers",
        "vimamba.scan_orders",
        "vimamba.models",
        "vimamba.checkpoints",
        "vimamba.heads",
        "vimamba.timm_names",
    },
    "vimamba.tasks": {
        "vimamba.layers",
        "vimamba.data",
        "vimamba.progress",
        "vimamba.heads",
        "vimamba.networks",
        "vimamba.timm_names",
        "vimamba.hub",
        "vimamba.checkpoints",
    },
    "vimamba.integrations": {
        "vimamba.layers",
        "vimamba.networks",
        "vimamba.checkpoints",
        "vimamba.data",
        "vimamba.timm_names",
    },
    "vimamba.explain": {
        "vimamba.layers",
        "vimamba.models",
        "vimamba.networks",
        "vimamba.scan_orders",
        "vimamba.visualize",
    },
    "vimamba.scanbench": {"vimamba.benchmark", "vimamba.scan_orders", "vimamba.tasks"},
    "vimamba.exporting": {
        "vimamba_kernels",
        "vimamba.scan_orders",
        "vimamba.hub",
        "vimamba.networks",
        "vimamba.checkpoints",
    },
    "vimamba": None,
    "vimamba.cli": None,
    "vimamba.run": {"vimamba"},
    "vimamba.__main__": {"vimamba.cli"},
    "tools": None,
}
NEVER_IMPORTED = {"kernels", "tools", "configs", "tests"}
HEAVY = [
    "pytorch_lightning",
    "lightning",
    "albumentations",
    "numba",
    "matplotlib",
    "jsonargparse",
    "sklearn",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "transformers",
    "monai",
    "pydicom",
    "torchao",
    "nnunetv2",
    "rasterio",
    "pytorch_grad_cam",
    "scikit_posthocs",
    "statsmodels",
    "pandas",
    "ray",
]


def list_sources(*folders: str) -> list[Path]:
    folders = folders or ("vimamba", "kernels", "tools")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part not in ("kernels", "__init__"))


def find_part(module: str) -> str:
    """The row of the table for a module."""
    depth = 2 if module.startswith("vimamba.") else 1
    return ".".join(module.split(".")[:depth])


def list_imports(source: str, module: str, *, is_package: bool) -> Iterator[str]:
    """Full names of everything imported at any depth; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                keep = len(parents) - node.level + int(is_package)
                base = ".".join([*parents[:keep], *([base] if base else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            function = node.func.id if isinstance(node.func, ast.Name) else function
            target = node.args[0]
            loads = function in ("import_module", "__import__")
            if loads and isinstance(target, ast.Constant) and isinstance(target.value, str):
                yield target.value


def find_violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    here = find_part(module)
    if here not in MAY_IMPORT:
        return [f"{here} is not in the table of the architecture"]
    allowed = MAY_IMPORT[here]
    allowed = set(MAY_IMPORT) if allowed is None else {here, *allowed}
    allowed |= BASE if here.startswith("vimamba.") else set()
    violations = []
    for name in list_imports(source, module, is_package=is_package):
        top = name.split(".")[0]
        part = find_part(name)
        # `from vimamba import __version__` imports from the root itself
        part = part if part in MAY_IMPORT or top != "vimamba" else "vimamba"
        if top in NEVER_IMPORTED or (top in OURS and part not in allowed):
            violations.append(f"{module} must not import {name}")
    return violations


def find_detours(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports that bypass the module from which a name must be imported."""
    found = []
    for name in list_imports(source, module, is_package=is_package):
        top, last = name.split(".")[0], name.rpartition(".")[2]
        place = ONE_PLACE.get(last if top == "timm" else top)
        if place not in (None, module):
            found.append(f"{module} must import {last} from {place}, not {name}")
    return found


def test_imports_respect_the_layers():
    violations = []
    for path in list_sources():
        package = path.name == "__init__.py"
        violations += find_violations(path.read_text(), name_module(path), is_package=package)
    assert violations == []


def test_lightning_and_changing_layers_of_timm_have_one_place():
    detours = []
    for path in list_sources("vimamba", "kernels", "tools", "tests"):
        # the test of that module itself
        if path != ROOT / "tests" / "test_lightning.py":
            package = path.name == "__init__.py"
            detours += find_detours(path.read_text(), name_module(path), is_package=package)
    assert detours == []


@pytest.mark.parametrize(
    ("source", "fine"),
    [
        ("from timm.layers import ConvNormAct as ConvNorm", False),
        ("from timm.layers.mlp import DropPath, Mlp", False),
        ("from timm.models._input import update_model_input_size", False),
        ("import lightning.pytorch as pl", False),
        ("def f():\n    from pytorch_lightning.callbacks import Timer", False),
        ("from timm.layers import DropPath", True),
        ("from vimamba.timm_layers import ConvNormAct, Mlp", True),
        ("from vimamba.lightning import Trainer", True),
        ("from torchvision.ops import SqueezeExcite", True),
    ],
)
def test_the_rule_of_one_place_tells_detours(source, fine):
    assert (find_detours(source, "vimamba.models.vim") == []) is fine


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vimamba.heads.upernet", "from vimamba.models import vim"),
        ("vimamba.models.vim", "from vimamba.networks import create_segmenter"),
        ("vimamba.heads.upernet", "from vimamba import models"),
        ("vimamba.heads.upernet", "from ..models.vim import Vim"),
        ("vimamba.heads.upernet", "def f():\n    import vimamba.models.vim"),
        ("vimamba.heads.upernet", "importlib.import_module('vimamba.models')"),
        ("vimamba.tasks.classification.task", "from vimamba.models import vim"),
        ("vimamba.layers.ss2d", "import vimamba"),
        ("vimamba.data.folder", "import vimamba.tasks"),
        ("vimamba_kernels.ssd", "import vimamba.scan_orders"),
        ("vimamba.scan_orders", "import vimamba.layers"),
        ("vimamba.cli", "from tools import gallery"),
        ("vimamba.cli", "import kernels.vimamba_kernels"),
        ("vimamba.surprise", ""),
    ],
)
def test_the_rule_finds_what_it_forbids(module, source):
    assert find_violations(source, module) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vimamba.models.vim", "from vimamba.layers.ss2d import SS2D\nimport timm, torch"),
        ("vimamba.models.vim", "from .vmamba import VMamba"),
        ("vimamba.layers.ss2d", "from vimamba_kernels import selective_scan"),
        (
            "vimamba.cli",
            "from vimamba import __version__\nimport vimamba.tasks.classification.task",
        ),
    ],
)
def test_the_rule_lets_through_what_it_allows(module, source):
    assert find_violations(source, module) == []


def test_kernels_folder_is_no_package():
    # a top-level package of this name would overwrite Hugging Face's `kernels`
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_files_stay_short():
    lines = {name_module(path): path.read_text().count("\n") for path in list_sources()}
    assert {name: count for name, count in lines.items() if count > 600} == {}


def test_import_loads_torch_and_timm_only():
    # Triton counts only if torch and timm do not load it themselves
    script = (
        "import sys, torch, timm\n"
        "before = 'triton' in sys.modules\n"
        "import vimamba\n"
        f"heavy = [name for name in {HEAVY} if name in sys.modules]\n"
        "print(heavy + ['triton'] * ('triton' in sys.modules and not before))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
