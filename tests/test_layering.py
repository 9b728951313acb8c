"""Which part may import which: the rules of the design, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lawdnet", "pipelines", "jobs")
HEAVY = {"tensorflow", "face_alignment", "ai_edge_litert", "huggingface_hub", "transformers", "wandb"}
LEAVES = {"lawdnet.report", "lawdnet.synthetic"}
"""Nothing else in the library imports these; they may import all of it."""

ALLOWED = {
    "install": set(),
    "types": set(),
    "storage": {"install", "types"},
    "fetch": {"storage"},
    "weights": {"install", "storage", "fetch"},
    "video": {"types"},
    "audio": {"types", "storage", "weights", "video", "models.device"},
    "face": {"types"},
    "landmarks": {"types", "storage", "weights", "video", "face", "models.device"},
    "tasks": {"types", "storage", "data"},
    "data": {"types", "storage", "video", "audio", "landmarks", "face", "tasks"},
    "models": {"types", "storage"},
    "training": {"install", "types", "storage", "data", "models", "face.geometry", "face.mask"},
    "inference": {"types", "video", "audio", "landmarks", "face", "models"},
    "evaluation": {"types", "storage", "weights", "video", "audio", "landmarks", "face", "models", "inference", "data"},
}
"""Part of lawdnet → the parts it may import beside itself and the package's own `__version__`."""


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def statements(body: list[ast.stmt], *, deep: bool) -> Iterator[ast.stmt]:
    """Statements outside `if TYPE_CHECKING`; those inside functions only where `deep`."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse, deep=deep)
            continue
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not deep:
            continue
        children = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.ExceptHandler)]
        for child in children:
            yield from statements(child.body if isinstance(child, ast.ExceptHandler) else [child], deep=deep)


def imports(tree: ast.Module, name: str, *, is_package: bool = False, deep: bool = True) -> list[tuple[int, str]]:
    """(line, dotted name) of everything imported; `from a import b` counts as a.b."""
    found = []
    for node in statements(tree.body, deep=deep):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            keep = len(name.split(".")) - node.level + is_package
            base = ".".join(name.split(".")[:keep]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            found += [(node.lineno, f"{origin}.{alias.name}") for alias in node.names]
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violation(importer: str, imported: str) -> str | None:
    """The rule that an import breaks."""
    top, target = importer.split(".")[0], imported.split(".")[0]
    if target == "ray" and top == "lawdnet":
        return "lawdnet never imports ray"
    if target in PACKAGES and PACKAGES.index(target) > PACKAGES.index(top):
        return "jobs → pipelines → lawdnet, never back"
    if top != "lawdnet" or target != "lawdnet" or importer == "lawdnet":
        return None
    if any(within(importer, leaf) for leaf in LEAVES):
        return None
    if any(within(imported, leaf) for leaf in LEAVES):
        return "nothing in lawdnet imports report or synthetic"
    part = importer.split(".")[1]
    own = imported.removeprefix("lawdnet.")
    if own == "__version__" or any(within(own, allowed) for allowed in ALLOWED[part] | {part}):
        return None
    return f"lawdnet.{part} may import {', '.join(sorted(ALLOWED[part])) or 'nothing'} of lawdnet"


def broken(tree: ast.Module, name: str, is_package: bool = False) -> list[str]:
    rules = [(line, what, violation(name, what)) for line, what in imports(tree, name, is_package=is_package)]
    found = [f"{name}:{line} imports {what}: {rule}" for line, what, rule in rules if rule]
    shallow = imports(tree, name, is_package=is_package, deep=False)
    heavy = [(line, what) for line, what in shallow if what.split(".")[0] in HEAVY]
    return found + [f"{name}:{line} imports {what} at module level: do it where it is used" for line, what in heavy]


def test_imports_follow_the_layers() -> None:
    found = []
    for path in sources():
        found += broken(ast.parse(path.read_text(encoding="utf8")), module(path), path.name == "__init__.py")
    assert not found, "\n" + "\n".join(found)


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


def test_every_part_has_a_rule() -> None:
    parts = {name.split(".")[1] for path in sources() if (name := module(path)).count(".") and within(name, "lawdnet")}
    known = ALLOWED.keys() | {leaf.split(".")[1] for leaf in LEAVES}
    assert parts <= known, f"add to ALLOWED: {', '.join(sorted(parts - known))}"


@pytest.mark.parametrize(
    ("importer", "code"),
    [
        ("lawdnet.video", "def f():\n    import ray.data"),
        ("lawdnet.data.schema", "from pipelines import build"),
        ("pipelines.build.build", "from jobs import cli"),
        ("lawdnet.training.loop", "from lawdnet.audio import mel"),
        ("lawdnet.training.loop", "from lawdnet.face import align"),
        ("lawdnet.training.loop", "from lawdnet import landmarks"),
        ("lawdnet.inference.engine", "try:\n    import lawdnet.training.loop\nexcept ImportError:\n    pass"),
        ("lawdnet.inference.engine", "from lawdnet.data.schema import SCORE"),
        ("lawdnet.models.generator", "from ..face.mask import keep_mask"),
        ("lawdnet.face.align", "from lawdnet.video import decode"),
        ("lawdnet.data.segments", "from lawdnet.synthetic import make_speech"),
        ("lawdnet.audio.hubert", "class A:\n    import transformers"),
        ("lawdnet.audio.hubert", "try:\n    import tensorflow as tf\nexcept ImportError:\n    tf = None"),
    ],
)
def test_a_forbidden_import_is_found(importer: str, code: str) -> None:
    assert broken(ast.parse(code), importer)


@pytest.mark.parametrize(
    ("importer", "code"),
    [
        ("lawdnet.training.loop", "from lawdnet.face.mask import keep_mask"),
        ("lawdnet.models.generator", "from .layers import Block\nfrom ..types import FPS"),
        ("lawdnet.types", "if TYPE_CHECKING:\n    import ray"),
        ("lawdnet.audio.hubert", "def f():\n    import transformers"),
        ("lawdnet.report", "from lawdnet.data.manifest import Dataset"),
        ("jobs.train", "from pipelines import training\nimport ray"),
    ],
)
def test_an_allowed_import_is_not(importer: str, code: str) -> None:
    assert not broken(ast.parse(code), importer)
