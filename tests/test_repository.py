"""The files that describe the repository: licence, citation, and how to install extras."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
CITATION: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))

APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""Of https://www.apache.org/licenses/LICENSE-2.0.txt."""

NOT_ON_PYPI = "pip install 'lawdnet["
"""The package is not on PyPI, so an extra is installed from a checkout."""

TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "cluster.yaml"]
TEXTS += ["docs", "jobs", "lawdnet", "pipelines"]
SUFFIXES = {".md", ".py", ".yaml", ".json", ""}


def texts() -> list[Path]:
    """Every document, and every file of the commands."""
    roots = [ROOT / name for name in TEXTS]
    found = [path for root in roots for path in (root.rglob("*") if root.is_dir() else [root])]
    return [path for path in found if path.is_file() and path.suffix in SUFFIXES]


def test_the_licence_is_the_unmodified_apache_licence() -> None:
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_the_citation_has_the_fields_that_cff_requires() -> None:
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["version"] == PROJECT["version"]
    assert {"message", "title", "authors"} <= CITATION.keys()
    assert all("name" in author or {"given-names", "family-names"} <= author.keys() for author in CITATION["authors"])


def test_the_citation_prefers_the_paper() -> None:
    paper = CITATION["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
    assert paper["authors"][0] == {"given-names": "Junli", "family-names": "Deng"}
    assert "2409.09326" in paper["url"]


def test_the_changelog_has_the_current_version() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf8").splitlines()
    headings = [line for line in lines if line.startswith("## ")]
    assert headings[0] == "## [Unreleased]"
    assert headings[1].startswith(f"## [{PROJECT['version']}] - ")


def test_extras_are_installed_from_a_checkout() -> None:
    wrong = [str(path.relative_to(ROOT)) for path in texts() if NOT_ON_PYPI in path.read_text(encoding="utf8")]
    assert not wrong, "say: pip install -c constraints.txt -e '.[EXTRA]'"
