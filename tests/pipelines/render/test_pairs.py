"""Which video says what, and what the result is called: never outside its folder, never somebody else's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.render.pairs import all_pairs, check_outs, listed_pairs


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def outs(pairs: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    return {(pair["video"], pair["speech"]): pair["out"] for pair in pairs}


def product_of(tmp_path: Path) -> dict[tuple[str, str], str]:
    return outs(all_pairs(tmp_path / "v", tmp_path / "s", tmp_path / "out"))


def test_every_video_with_every_speech(tmp_path: Path) -> None:
    touch(tmp_path / "v", "a.mp4", "deep/b.MOV", "a.csv", "notes.txt", ".hidden.mp4")
    touch(tmp_path / "s", "x.wav", "film.mp4", "y.mp3", "x.csv")
    assert product_of(tmp_path) == {
        ("a.mp4", "film.mp4"): "a--film.mp4", ("a.mp4", "x.wav"): "a--x.mp4", ("a.mp4", "y.mp3"): "a--y.mp4",
        ("deep/b.MOV", "film.mp4"): "b--film.mp4", ("deep/b.MOV", "x.wav"): "b--x.mp4",
        ("deep/b.MOV", "y.mp3"): "b--y.mp4",
    }  # fmt: skip


def test_a_name_belongs_to_one_pair(tmp_path: Path) -> None:
    touch(tmp_path / "v", "one/a.mp4", "two/a.mp4", "a.mkv", "b.mp4", "c--d.mp4", "c.mp4")
    touch(tmp_path / "s", "x.wav", "d--x.wav")
    found = product_of(tmp_path)
    assert len(set(found.values())) == len(found) == 12
    assert found["b.mp4", "x.wav"] == "b--x.mp4"
    twins = [found[name, "x.wav"] for name in ("one/a.mp4", "two/a.mp4", "a.mkv")]
    assert all(out.startswith("a--x--") and len(out) == len("a--x--.mp4") + 16 for out in twins)
    assert found["c--d.mp4", "x.wav"].startswith("c--d--x--"), "c--d and x, c and d--x"
    # a name never moves from one pair to another when inputs come
    touch(tmp_path / "v", "0/b.mp4", "0/a.mp4")
    more = product_of(tmp_path)
    assert not {(pair, out) for out, pair in _turned(found).items() if _turned(more).get(out, pair) != pair}
    assert [more[name, "x.wav"] for name in ("one/a.mp4", "two/a.mp4", "a.mkv")] == twins


def _turned(found: dict[tuple[str, str], str]) -> dict[str, tuple[str, str]]:
    return {out: pair for pair, out in found.items()}


def test_long_and_strange_names_become_files(tmp_path: Path) -> None:
    touch(tmp_path / "v", f"{'ü' * 120}.mp4", "new\nline.mp4", "..mp4", "100%d.mp4")
    touch(tmp_path / "s", f"{'語' * 80}.wav", "-rf.wav")
    (tmp_path / "v" / b"\xff\xfe.mp4".decode("utf8", "surrogateescape")).touch()
    found = product_of(tmp_path)
    assert len(found) == 2 * 4  # "..mp4" is hidden
    for out in found.values():
        touch(tmp_path / "out", out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(found.values())


def test_a_list_of_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.mp4", "v/b, c.mp4", "x.wav")
    lines = ["# who says what", "", "v/a.mp4,x.wav", '"v/b, c.mp4", x.wav ,sub/named.mp4', "v/a.mp4,x.wav\r",
             f"{tmp_path}/v/a.mp4,x.wav,again.MP4", "gone.mp4,x.wav"]  # fmt: skip
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    pairs = listed_pairs(tmp_path / "pairs.csv")
    assert [pair["out"] for pair in pairs] == ["a--x.mp4", "sub/named.mp4", "again.MP4", "gone--x.mp4"]
    assert [Path(pair["video_source"].decode()) for pair in pairs] == [
        tmp_path / "v" / "a.mp4", tmp_path / "v" / "b, c.mp4", tmp_path / "v" / "a.mp4", tmp_path / "gone.mp4",
    ]  # fmt: skip
    assert len({pair["key"] for pair in pairs}) == 4
    assert pairs[0]["inputs"][0]
    assert not pairs[3]["inputs"][0]
    (tmp_path / "pairs.tsv").write_text("v/b, c.mp4\tx.wav\n")
    assert [pair["out"] for pair in listed_pairs(tmp_path / "pairs.tsv")] == ["b, c--x.mp4"]


def test_a_given_name_is_kept_from_others(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a.mp4,x.wav\nb.mp4,x.wav,a--x.mp4\n")
    first, second = listed_pairs(tmp_path / "pairs.csv")
    assert second["out"] == "a--x.mp4"
    assert first["out"] == f"a--x--{first['key']}.mp4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4", "line 2: write video,speech"),
        ("a.mp4,,b.mp4", "line 2: write video,speech"),
        ("a.mp4,x.wav,b.mp4,c", "line 2: write video,speech"),
        ("a.mp4,x.wav,../b.mp4", "line 2: ../b.mp4: name a file below"),
        ("a.mp4,x.wav,c/../../b.mp4", "name a file below"),
        ("a.mp4,x.wav,/tmp/b.mp4", "name a file below"),
        ("a.mp4,x.wav,.render/b.mp4", "name a file below"),
        ("a.mp4,x.wav,b.avi", "line 2: 'b.avi': the result is an MP4"),
        ("a.mp4,x.wav,b\x1b.mp4", "the result is an MP4"),
        ("ftp://a.mp4,x.wav", "line 2: ftp://a.mp4: ftp:// is not supported"),
        ("a.mp4,x.wav,b.mp4\nc.mp4,x.wav,b.mp4", "line 3: b.mp4 is the result of line 2 already"),
        ('a.mp4,"x.wav\nb.mp4,x.wav', "close the quotes"),
    ],
)
def test_lines_that_cannot_be_meant(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(f"# who says what\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        listed_pairs(tmp_path / "pairs.csv")
    assert "pairs.csv" in str(caught.value)


def test_an_address_as_a_name_stays_below(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a.mp4,x.wav,s3://bucket/b.mp4\n")
    (pair,) = listed_pairs(tmp_path / "pairs.csv")
    assert pair["out"] == "s3:/bucket/b.mp4"


def test_empty_lists_and_folders(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("# none yet\n")
    with pytest.raises(ValueError, match="no pair here; write video,speech"):
        listed_pairs(tmp_path / "pairs.csv")
    touch(tmp_path, "v/a.mp4", "s/notes.txt")
    with pytest.raises(ValueError, match=r"s: no sound here .*\.wav"):
        product_of(tmp_path)


def test_inputs_are_never_replaced(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.mp4", "s/x.wav")
    with pytest.raises(ValueError, match=r"lies inside .*v, which is never changed"):
        all_pairs(tmp_path / "v", tmp_path / "s", tmp_path / "v" / "out")
    (tmp_path / "pairs.csv").write_text("v/a.mp4,s/x.wav,a.mp4\n")
    pairs = listed_pairs(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match=r"v/a\.mp4: is an input"):
        check_outs(pairs, tmp_path / "v")
    check_outs(pairs, tmp_path / "out")
