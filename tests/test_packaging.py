"""The published package: declared dependencies, and the contents of a wheel."""

import ast
import email
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import vimamba

tomllib = pytest.importorskip("tomllib", reason="of Python 3.11")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# packages whose modules have a different name
MODULES = {
    "grad-cam": "pytorch_grad_cam",
    "huggingface-hub": "huggingface_hub",
    "onnx-ir": "onnx_ir",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pytorch-lightning": "pytorch_lightning",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scikit-posthocs": "scikit_posthocs",
}
# declared because other packages import them for us
FOR_OTHERS = {
    "jsonargparse": "Lightning's command line",
    "onnx": "torch.onnx",
    "tensorboard": "Lightning's logger",
}
# imported, but not declared: lightning replaces pytorch-lightning, torch includes Triton
NOT_DECLARED = {"lightning", "triton"}
EXTRAS = ("train", "bench", "explain", "export", "geo", "medical", "nnunet")


def declared(*extras: str) -> set[str]:
    """Modules of the packages required by the project and some of its extras."""
    optional = PROJECT["optional-dependencies"]
    lines = PROJECT["dependencies"] + [line for extra in extras for line in optional[extra]]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in lines}
    return {MODULES.get(name, name) for name in names}


def imported() -> set[str]:
    found = set()
    for folder in ("vimamba", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    found.add((node.module or "").split(".")[0])
    return found - {
        *sys.stdlib_module_names,
        *("vimamba", "vimamba_command", "vimamba_kernels"),
    }


def test_what_is_imported_is_declared_and_what_is_declared_is_imported():
    known = declared(*EXTRAS)
    assert imported() - known == NOT_DECLARED
    assert known - imported() <= set(FOR_OTHERS)


def test_importing_the_package_needs_no_extra():
    needed = {MODULES.get(name, name) for name in ("torch", "timm", *declared())}
    script = "import sys, vimamba, vimamba.cli; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    extras = declared(*EXTRAS) - needed
    # torch and the Hub's client load some of them
    assert not extras & set(done.stdout.split()) - {"packaging", "PIL", "rich"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_is_pure_python_and_holds_both_packages(wheel):
    assert wheel.name.endswith("py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("vimamba/__init__.py", "vimamba/py.typed", "vimamba_kernels/__init__.py"):
        assert name in names
    assert not [n for n in names if n.startswith(("tests", "tools", "kernels/", "configs"))]


@pytest.mark.slow
def test_links_of_the_description_work_on_pypi(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    links = re.findall(r"\]\(([^)]+)\)", metadata.get_payload())
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", metadata.get_payload())
    assert all("raw.githubusercontent.com" in picture for picture in pictures)
    assert metadata["Author"] == "vimamba developers"


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    """A folder with the wheel installed, to be first in the path."""
    folder = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_what_releases_try_works_with_an_installed_package(site, tmp_path):
    run = [sys.executable, str(ROOT / "tools" / "try_install.py")]
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert f"{site / 'vimamba'} works" in done.stdout
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    done = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert "vimamba comes from the checkout" in done.stderr


@pytest.mark.slow
def test_an_installed_package_finds_its_recipes(site, tmp_path):
    script = (
        "import vimamba; from vimamba.cli.options import find_recipe\n"
        "for name in ('classification/digits_vim', 'configs/segmentation/nuclei_vm_unet.yaml'):\n"
        "    print(find_recipe(name))"
    )
    env = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.returncode == 0, done.stderr
    found = [Path(line) for line in done.stdout.split()]
    assert [path.name for path in found] == ["digits_vim.yaml", "nuclei_vm_unet.yaml"]
    assert all(path.is_relative_to(site / "vimamba" / "configs") for path in found)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "docs" / "CITATION.cff").read_text())
    assert citation["version"] == vimamba.__version__
    assert citation["license"] == PROJECT["license"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_what_runs_on_github_is_there(path):
    content = yaml.safe_load(path.read_text())
    text = path.read_text()
    assert content
    assert all((ROOT / name).exists() for name in re.findall(r"(?:tools|docs)/[\w./]+\w", text))
    targets = re.findall(r"run: make ([a-z ]+)", text)
    rules = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {target for line in targets for target in line.split()} <= set(rules)
    pins = re.findall(r"uses: [\w/-]+@(\S+)", text)
    assert [pin for pin in pins if not re.fullmatch(r"v\d+(\.\d+)*", pin)] == []


def test_a_release_is_tried_on_every_python_that_is_named():
    wheel, release = (
        yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text())["jobs"]
        for name in ("wheel.yml", "release.yml")
    )
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert wheel["use"]["strategy"]["matrix"]["python"] == named
    assert release["publish"]["needs"] == "wheel"
    assert release["wheel"]["uses"] == "./.github/workflows/wheel.yml"


def test_the_floors_that_are_tried_are_the_declared_ones():
    script = (ROOT / "tools" / "ci_floors.sh").read_text()
    body = script[script.index("floor() {") : script.index("pin() {")]
    for package in ("torch", "timm"):
        command = ["bash", "-c", f"{body}\nfloor {package}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert f"{package}>={done.stdout.strip()}" in PROJECT["dependencies"]
    assert all((ROOT / name).exists() for name in re.findall(r"tests/[\w/]+\.py", script))
