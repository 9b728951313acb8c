from pathlib import Path

import cv2
import torch

from lawdnet.training.loggers import JsonlLogger, JsonlTail, read_jsonl, write_pictures


def test_a_line_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    JsonlLogger(path).log({"a": 1})
    with path.open("a") as file:
        file.write('{"a": ')
    JsonlLogger(path).log({"a": 2})
    assert [row["a"] for row in read_jsonl(path)] == [1, 2]


def test_a_tail_gives_each_new_line_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    early = JsonlTail(path)
    assert early.rows() == []
    JsonlLogger(path).log({"a": 1})
    late = JsonlTail(path)
    JsonlLogger(path).log({"a": 2})
    with path.open("a") as file:
        file.write('{"a": 3')
    assert [row["a"] for row in early.rows()] == [1, 2]
    assert [row["a"] for row in late.rows()] == [2]
    with path.open("a") as file:
        file.write("}\n")
    assert [row["a"] for row in early.rows()] == [3]
    assert early.rows() == []


def test_pictures_come_out_in_their_colours(tmp_path: Path) -> None:
    rows = torch.zeros(2, 3, 4, 6)
    rows[0, 0], rows[1, 2] = 1, 0.5
    write_pictures(tmp_path / "new" / "sheet.png", rows)
    sheet = cv2.cvtColor(cv2.imread(str(tmp_path / "new" / "sheet.png")), cv2.COLOR_BGR2RGB)
    assert sheet.shape == (8, 6, 3)
    assert sheet[0, 0].tolist() == [255, 0, 0]
    assert sheet[7, 5].tolist() == [0, 0, 128]
