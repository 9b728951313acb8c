"""How to install an extra: lawdnet is not on PyPI, so it is installed from a checkout."""

from __future__ import annotations


def install_hint(extra: str) -> str:
    """Return the sentence that ends an error message about a package that is not installed.

    Args:
        extra: an extra of pyproject.toml, such as `s3`.
    """
    return f"in a checkout of lawdnet, run: pip install -c constraints.txt -e '.[{extra}]'"
