"""The import contracts of pyproject.toml hold and can fail; and what import-linter cannot see of the house rules."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lawdnet", "pipelines", "jobs")
HEAVY = {"tensorflow", "face_alignment", "ai_edge_litert", "huggingface_hub", "transformers", "wandb"}
HEAVY |= {"lpips", "pytorch_fid", "dlib"}


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def lint_imports(folder: Path) -> tuple[bool, str]:
    """Whether all contracts hold for the packages in a folder, and what import-linter says."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode == 0, " ".join(done.stdout.split()) + done.stderr


@pytest.fixture
def skeleton(tmp_path: Path) -> Path:
    """A tree with the modules of this repository, all of them empty, and its contracts."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in sources():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    return tmp_path


def test_imports_follow_the_contracts() -> None:
    kept, report = lint_imports(ROOT)
    assert kept, report


@pytest.mark.parametrize(
    ("importer", "code", "contract"),
    [
        ("lawdnet/video/shots.py", "def f():\n    import ray.data", "lawdnet never imports ray"),
        ("lawdnet/data/schema.py", "from pipelines import build", "never back"),
        ("pipelines/build/build.py", "from jobs import cli", "never back"),
        ("lawdnet/foo.py", "", "every part of lawdnet has a layer"),
        ("lawdnet/data/segments.py", "from lawdnet.synthetic import speech", "every part of lawdnet has a layer"),
        ("lawdnet/report/charts.py", "import lawdnet.synthetic.speech", "every part of lawdnet has a layer"),
        ("lawdnet/tasks/lock.py", "from lawdnet.data import manifest", "every part of lawdnet has a layer"),
        ("lawdnet/training/loop.py", "from lawdnet.inference import stream", "every part of lawdnet has a layer"),
        ("lawdnet/models/generator.py", "from ..audio import mel", "every part of lawdnet has a layer"),
        ("lawdnet/face/align.py", "from lawdnet.video import reading", "every part of lawdnet has a layer"),
        ("lawdnet/types.py", "import lawdnet.storage", "every part of lawdnet has a layer"),
        ("lawdnet/video/reading.py", "from lawdnet import storage", "video and face import neither"),
        ("lawdnet/face/align.py", "from lawdnet import weights", "video and face import neither"),
        ("lawdnet/models/generator.py", "from ..face.mask import keep_mask", "models import only"),
        ("lawdnet/tasks/inputs.py", "from lawdnet.video import probe", "tasks import only"),
        ("lawdnet/tasks/lock.py", "import lawdnet.models.layers", "tasks import only"),
        ("lawdnet/audio/mel.py", "from lawdnet.face import geometry", "audio does not import face"),
        ("lawdnet/landmarks/base.py", "from lawdnet.models import generator", "nothing of models but"),
        ("lawdnet/audio/hubert.py", "from lawdnet.models.saved import read_meta", "nothing of models but"),
        ("lawdnet/data/segments.py", "from lawdnet.models import syncnet", "data imports neither"),
        ("lawdnet/training/loop.py", "from lawdnet.audio import mel", "training imports data"),
        ("lawdnet/training/loop.py", "from lawdnet.face import align", "training imports data"),
        ("lawdnet/training/loop.py", "from lawdnet import landmarks", "training imports data"),
        (
            "lawdnet/inference/engine.py",
            "try:\n    import lawdnet.training.loop\nexcept ImportError:\n    pass",
            "inference imports neither",
        ),
        ("lawdnet/inference/engine.py", "from lawdnet.data.schema import SCORE", "inference imports neither"),
        ("lawdnet/evaluation/plan.py", "from lawdnet.training import gates", "evaluation imports neither"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(skeleton: Path, importer: str, code: str, contract: str) -> None:
    (skeleton / importer).write_text(code)
    kept, report = lint_imports(skeleton)
    assert not kept
    assert contract in report.partition("Broken contracts")[2], report


def test_allowed_imports_keep_all_contracts(skeleton: Path) -> None:
    allowed = {
        "lawdnet/training/loop.py": "from lawdnet.face.mask import keep_mask\nfrom lawdnet.tasks import lock",
        "lawdnet/training/gates.py": "from lawdnet.conditions import Condition",
        "lawdnet/models/generator.py": "from .layers import Block\nfrom ..types import FPS\nfrom .. import storage",
        "lawdnet/types.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray",
        "lawdnet/report/run.py": "from lawdnet.data.manifest import Dataset\nfrom lawdnet.training import gates",
        "lawdnet/data/settle.py": "from lawdnet.tasks import inputs\nfrom lawdnet.audio.base import windows",
        "lawdnet/evaluation/videos.py": "from lawdnet.inference import engine",
        "lawdnet/audio/hubert.py": "from lawdnet.models.device import pick_device\nfrom lawdnet import storage",
        "lawdnet/models/device.py": "from lawdnet.types import FPS",
        "lawdnet/install.py": "",
        "lawdnet/storage.py": "from lawdnet.install import install_hint",
        "jobs/train.py": "from pipelines.train import train\nimport ray\nimport lawdnet",
        "pipelines/train/train.py": "import ray.train\nfrom lawdnet.training import loop",
    }
    for importer, code in allowed.items():
        (skeleton / importer).write_text(code)
    kept, report = lint_imports(skeleton)
    assert kept, report


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, but for those under `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
            continue
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        for child in children:
            yield from statements(child.body if isinstance(child, ast.ExceptHandler) else [child])


def heavy_imports(tree: ast.Module) -> list[str]:
    """`LINE imports NAME` for every heavy package that importing the module would import."""
    found = []
    for node in statements(tree.body):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        found += [f"{node.lineno} imports {name}" for name in names if name.split(".")[0] in HEAVY]
    return found


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    found = [
        f"{module(path)}:{text}" for path in sources() for text in heavy_imports(ast.parse(path.read_text("utf8")))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    import transformers",
        "from transformers.utils import logging",
        "try:\n    import tensorflow as tf\nexcept ImportError:\n    tf = None",
        "try:\n    import numpy\nexcept ImportError:\n    import ai_edge_litert",
    ],
)
def test_a_heavy_import_at_module_level_is_found(code: str) -> None:
    assert heavy_imports(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    import transformers",
        "class A:\n    def f(self):\n        from face_alignment import api",
        "if TYPE_CHECKING:\n    import wandb",
        "from lawdnet.audio import transformers",
    ],
)
def test_a_heavy_import_in_a_function_is_allowed(code: str) -> None:
    assert not heavy_imports(ast.parse(code))


def test_files_are_short() -> None:
    lengths = {module(path): len(path.read_text(encoding="utf8").splitlines()) for path in sources()}
    too_long = [f"{name}: {length} lines, at most 399" for name, length in lengths.items() if length >= 400]
    assert not too_long, "\n" + "\n".join(too_long)


def test_the_library_does_not_print() -> None:
    found = []
    for path in sources():
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf8")))
        calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]
        if module(path).split(".")[0] != "jobs":
            found += [f"{module(path)}:{call.lineno} prints: use logging" for call in calls]
    assert not found, "\n" + "\n".join(found)


def test_a_build_does_without_torch() -> None:
    """It would cost every worker a second and 200 MB."""
    code = "import sys, pipelines.build.build, pipelines.build.task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
