"""lawdnet.weights: where files are searched, and the errors about missing ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lawdnet import weights
from lawdnet.weights import find_weights, need_package, weights_folders


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    found = [tmp_path / name for name in ("given", "environment", "cache")]
    for folder in found:
        folder.mkdir()
    monkeypatch.setenv(weights.WEIGHTS_ENV, str(found[1]))
    monkeypatch.setattr(weights, "CACHE", found[2])
    return found


def test_folders_are_searched_in_order(folders: list[Path]) -> None:
    assert weights_folders(folders[0]) == folders
    for folder in reversed(folders):
        (folder / "net.pb").touch()
        assert find_weights("net.pb", folders[0], hint="") == folder / "net.pb"
    assert find_weights("net.pb", hint="") == folders[1] / "net.pb"
    assert find_weights(str(folders[2] / "net.pb"), folders[0], hint="") == folders[2] / "net.pb"


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(weights.WEIGHTS_ENV, raising=False)
    assert weights_folders() == [tmp_path / ".cache" / "lawdnet"]
    assert weights_folders(Path("~/x"))[0] == tmp_path / "x"


def test_a_missing_file_names_everything(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"net\.pb: not found") as caught:
        find_weights("net.pb", folders[0], hint="get it at example.org")
    message = str(caught.value)
    assert all(str(folder) in message for folder in folders)
    assert message.endswith("get it at example.org")
    assert "\n" not in message


def test_a_missing_package_names_its_extra() -> None:
    need_package("numpy", "any")
    with pytest.raises(
        ValueError, match=r"any: the package no_such_package .*pip install -c constraints\.txt -e '\.\[any\]'"
    ):
        need_package("no_such_package", "any")
