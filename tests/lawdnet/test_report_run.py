"""The report of a run: of whole ones, of those at work, and of what a crash left."""

import json
import math
import re
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lawdnet.models.saved import META, RUN, STATE
from lawdnet.report import run_report
from lawdnet.report.advice import advise
from lawdnet.report.charts import chart
from lawdnet.report.run_charts import losses, measured, resources, shares
from lawdnet.report.stage_log import StageLog, epoch_positions, read_run
from lawdnet.storage import locate, write_json
from lawdnet.training.config import make_config
from lawdnet.training.loggers import METRICS, SAMPLES, write_grid
from tests.lawdnet.test_report import Page, points

Rows = list[dict[str, Any]]
START = {"kind": "start", "device": "NVIDIA <H200>", "is_gpu": True, "workers": 2, "cores": 16, "torch": "2.13"}
EPOCH_SECONDS, STEPS = 100.0, 20


def epoch_rows(epoch: int, begun: float, **validation: float) -> Rows:
    """What one epoch (from 0) of twenty steps logs."""
    steps = [
        {"kind": "step", "epoch": epoch, "step": s, "lr": 1e-3, "total": 2.0 / (1 + epoch + s / STEPS), "gan": 0.5,
         "share_pixel": 3.0, "share_gan": 1.0}
        for s in (0, 10, STEPS - 1)
    ]  # fmt: skip
    rows: Rows = [*steps, {"kind": "epoch", "epoch": epoch + 1, "total": 1.0, "seconds": EPOCH_SECONDS,
                           "steps_per_second": 0.2, "data_wait": 0.2, "memory_gb": 2.5}]  # fmt: skip
    rows += [{"kind": "validation", "epoch": epoch + 1, **validation}] if validation else []
    places = np.linspace(begun, begun + EPOCH_SECONDS, len(rows) + 1)[1:]
    return [{"time": float(at), **row} for at, row in zip(places, rows, strict=True)]


def stage_rows(epochs: Iterable[int], begun: float = 1.8e9, **validation: list[float]) -> Rows:
    found: Rows = [{"time": begun, **START}]
    for place, epoch in enumerate(epochs):
        figures = {name: values[epoch] for name, values in validation.items()}
        found += epoch_rows(epoch, begun + place * EPOCH_SECONDS, **figures)
    return found


def write_stage(run: Path, name: str, rows: Rows, *, saved: int | None = None, epochs: int = 3, **meta: Any) -> Path:
    """A stage's folder as training leaves it; `saved` complete epochs are in its newest checkpoint."""
    folder = run / name
    folder.mkdir(parents=True)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if saved:
        checkpoint = folder / f"epoch_{saved:04d}"
        checkpoint.mkdir()
        (checkpoint / STATE).write_bytes(b"1234")
        write_json(
            checkpoint / META, {"epoch": saved, "epochs": epochs, "state_bytes": 4, "code_version": "9.9", **meta}
        )
    return folder


def write_run(run: Path, *settings: str) -> None:
    config = make_config("small", ["syncnet", "frame_32", "frame_64"], [
        "stages.epochs_constant=2", "stages.epochs_decay=1", *settings])  # fmt: skip
    gates = ["accuracy>=0.75", "accuracy>=0.85", "mouth_correlation>=0.5 and psnr>=30"]
    content = {"dataset": "/gone/people", "dataset_hash": "d" * 16, "config": config.to_dict(), "gates": gates}
    write_json(run / RUN, content)


def page_of(run: Path) -> tuple[Page, dict[str, Any]]:
    out = run.parent / "report.html"
    content = asdict(run_report(run, out))
    html = out.read_text(encoding="utf8")
    assert not re.search(r"https?://|@import|<link|nan[ ,\"]", html)
    return Page(html), content


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two finished stages of three, the second resumed once after its second epoch."""
    folder = tmp_path / "run"
    write_run(folder)
    write_stage(
        folder,
        "syncnet",
        stage_rows(range(3), accuracy=[0.6, 0.9, 0.8], **{"offset_at_+0": [4, 4, 1], "offset_at_+1": [0, 0, 3]}),
        saved=3,
        kind="syncnet",
    )
    rows = stage_rows(range(2), 1.8e9 + 1000, mouth_correlation=[0.1, 0.8, 0.7], truth_mouth_correlation=[0.99] * 3,
                      psnr=[20.0, 21.0, 22.0], baseline_psnr=[19.0] * 3)  # fmt: skip
    rows += [{"time": 1.8e9 + 1200, "kind": "alarm", "epoch": 1, "step": 19, "text": "not finite: gan & <pixel>"}]
    rows += [{"time": 1.8e9 + 5000, **START, "workers": 1}]
    rows += [{"time": 1.8e9 + 5000, "kind": "resume", "epoch": 1, "step": 4, "text": "goes on; repeats 6 steps"}]
    again = stage_rows(range(1, 3), 1.8e9 + 5000, mouth_correlation=[0.1, 0.85, 0.7], psnr=[20.0, 21.0, 22.0])[1:]
    stage = write_stage(folder, "frame_32", rows + again, saved=3, kind="gan", parent="other/epoch_0007",
                        parent_hash="0123456789abcdef", syncnet_hash="fedcba98", dataset_hash="d" * 16)  # fmt: skip
    for epoch in range(1, 6):
        rows_13HW = torch.full((1, 3, 6, 40), epoch / 10)
        write_grid(stage / SAMPLES / f"epoch_{epoch:04d}.png", rows_13HW, ("masked", "generated"))
    return folder


def test_a_run_is_one_page_with_all_of_it(run: Path) -> None:
    page, content = page_of(run)
    for text in (
        "small preset", "/gone/people (dddddddddddddddd)", "2 of 3", "stages finished", "not begun", "0 of 3 epochs",
        "from other/epoch_0007 01234567", "sync network fedcba98", "best mouth_correlation of frame_32, epoch 2",
        "Alarm epoch 1, step 19: not finite: gan & <pixel>", "epoch 1, step 4: goes on; repeats 6 steps",
        "2 × NVIDIA <H200> (16 cores, torch 2.13); NVIDIA <H200>", "best 0.85 after epoch 2, last 0.7; truth 0.99",
        "Gate accuracy>=0.75: passedGate accuracy>=0.85: not passed: accuracy>=0.85: it is 0.8",
        "Gate mouth_correlation>=0.5 and psnr>=30: not passed: psnr>=30: it is 22", "ignoring the audio 19",
        "0.5 … 1.5: 3 kept, 0 dropped", "-0.5 … 0.5: 1 kept, 0 dropped",
        "waited for data 20% of its time", "after epoch 1", "after epoch 3", "after epoch 5",
    ):  # fmt: skip
        assert text in " ".join(page.text.split()), text
    assert "after epoch 2" not in [line.strip() for line in page.text.splitlines()], "three sheets are enough"
    assert len(page.addresses) == 3
    assert all(address.startswith("data:image/png") for address in page.addresses)
    found = content["stages"]["frame_32"]
    assert (found["state"], found["epochs"], found["alarms"]) == ("finished", 3, ["not finite: gan & <pixel>"])
    assert found["best"]["mouth_correlation"] == {"epoch": 2, "value": 0.85}
    assert found["best"]["psnr"] == {"epoch": 3, "value": 22.0}
    json.dumps(content, allow_nan=False)


def test_time_counts_only_while_somebody_worked(run: Path) -> None:
    found = page_of(run)[1]["stages"]["frame_32"]
    # 200 s of two workers, an hour of nobody, and after the restart 200 s of one
    assert found["seconds"] == pytest.approx(200 + 200)
    assert found["device_seconds"] == pytest.approx(2 * 200 + 200)


def test_a_run_at_work_and_one_interrupted(tmp_path: Path) -> None:
    for quiet, state, advice in ((5, "at work", "frame_32 is training, 1 of 3 epochs are done"),
                                 (5000, "interrupted", "frame_32 was interrupted after 1 of 3 epochs")):  # fmt: skip
        folder = tmp_path / state
        write_run(folder)
        rows = stage_rows(range(2), time.time() - quiet - 2 * EPOCH_SECONDS)[:-1]
        stage = write_stage(folder, "frame_32", rows, saved=1)
        with (stage / METRICS).open("a") as file:
            file.write('{"time": 1, "ki')  # being written at this moment
        page, content = page_of(folder)
        assert content["stages"]["frame_32"]["state"] == state
        assert any(text.startswith(advice) for text in content["advice"])
        assert "cannot be read" not in page.text


def test_a_run_in_its_first_epoch_counts_steps(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    write_stage(tmp_path / "run", "frame_32", [{"time": time.time(), **START}, *epoch_rows(0, time.time())[:2]])
    page, content = page_of(tmp_path / "run")
    assert content["stages"]["frame_32"]["state"] == "at work"
    assert page.curves
    (log,) = [log for log in read_run(tmp_path / "run")[1] if log.rows]
    drawn = dict(losses(log))["total"]
    assert drawn.x_label == "steps"
    assert drawn.x_ticks[-1].text == "10"


def test_damage_is_said_and_survived(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = write_stage(run, "frame_32", [])
    lines = [b'{"kind": "step"', b"3", b"\xff\xfe", b'{"kind": "step", "epoch": "x", "step": 1, "total": 1}',
             b'{"kind": "step", "epoch": 0, "step": 0, "total": NaN, "share_pixel": null}',
             b'{"kind": "step", "epoch": 0, "step": 10, "total": Infinity, "time": "now"}',
             b'{"kind": "validation", "epoch": 1, "psnr": NaN}', b'{"kind": "alarm"}', b'{"kind": "epoch"}',
             b"{}"]  # fmt: skip
    (stage / METRICS).write_bytes(b"\n".join(lines) + b"\n")
    page, content = page_of(run)
    assert "run.json is missing" in page.text
    assert "3 lines of metrics.jsonl cannot be read" in page.text
    assert "no reason given" in page.text
    json.dumps(content, allow_nan=False)
    (run / RUN).write_text("{")
    assert "run.json is damaged" in page_of(run)[0].text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run here .* give the folder that `lawdnet train --out` wrote"):
        run_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_a_run_may_lie_in_an_object_store(run: Path) -> None:
    pytest.importorskip("upath", reason="needs universal-pathlib: pip install -e '.[s3]'")
    remote = locate("memory://reports/run")
    for path in run.rglob("*"):
        if path.is_file():
            remote.fs.pipe_file((remote / path.relative_to(run).as_posix()).path, path.read_bytes())
    assert run_report(remote, remote / "report.html").stages == run_report(run, run / "report.html").stages
    assert b"after epoch 5" in (remote / "report.html").read_bytes()


def log_of(rows: Rows, **fields: Any) -> StageLog:
    row = {"kind": "gan", "epochs_constant": 3, "epochs_decay": 0}
    return StageLog(
        **{"name": "frame_32", "row": row, "rows": rows, "checkpoint": "epoch_0003", "meta": {"epoch": 3}} | fields
    )


def test_what_was_done_again_replaces_what_was_lost() -> None:
    rows = [
        {"kind": "step", "epoch": e, "step": s, "total": t}
        for e, s, t in ((0, 0, 9), (0, 10, 8), (0, 10, 7), (1, 0, 6))
    ]
    log = log_of(rows)
    assert [row["total"] for row in log.of_kind("step")] == [9, 7, 6]
    x, unit = epoch_positions(log.of_kind("step"), 1)
    assert unit == "epochs"
    assert x == pytest.approx([0, 10 / 11, 1])
    assert log.steps == 12


def test_shares_are_stacked_to_the_whole() -> None:
    drawn = shares(log_of(stage_rows(range(3))))
    assert drawn is not None
    assert list(drawn.paths) == ["pixel", "gan"]
    ticks = {tick.text: tick.position for tick in drawn.y_ticks}
    edges = {label: [y for _, y in points(path)] for label, path in drawn.paths.items()}
    half = len(edges["pixel"]) // 2
    between = ticks["0"] + 0.75 * (ticks["100"] - ticks["0"])
    assert edges["pixel"] == pytest.approx([between] * half + [ticks["0"]] * half, abs=0.1)
    assert edges["gan"] == pytest.approx([ticks["100"]] * half + [between] * half, abs=0.1)
    assert shares(log_of([])) is None


def test_a_wide_range_gets_a_logarithmic_axis() -> None:
    rows = [{"kind": "step", "epoch": 0, "step": s, "wide": 10.0 ** -(s / 10), "narrow": 1 + s, "signed": s - 9.0}
            for s in range(20)]  # fmt: skip
    drawn = dict(losses(log_of(rows)))
    assert [tick.text for tick in drawn["wide"].y_ticks][:2] == ["0.01", "0.02"]
    assert drawn["wide"].y_ticks[-1].text == "1"
    ends = points(drawn["wide"].paths["step"])
    assert ends[0][1] == pytest.approx(drawn["wide"].y_ticks[-1].position, abs=0.1)
    assert drawn["signed"].y_ticks[0].text == "-10"


@pytest.mark.parametrize("values", [[1.0], [3.0, 3.0], [0.0, -1.0], [math.nan, math.inf], [1e-9, 1e9], []])
def test_a_logarithmic_chart_of_odd_values_is_finite(values: list[float]) -> None:
    drawn = chart({"a": values}, range(len(values)), x_label="s", logarithmic=True)
    assert all(math.isfinite(tick.position) for tick in [*drawn.x_ticks, *drawn.y_ticks])
    assert "nan" not in drawn.paths["a"]
    assert len(drawn.y_ticks) >= 2


def test_the_total_comes_first_and_each_metric_has_a_curve() -> None:
    rows = [{"kind": "step", "epoch": 0, "step": s, "pixel": 1.0, "lr": 0.1, "total": 2.0} for s in range(3)]
    rows[1]["sync_true"] = 0.5  # measured now and then
    drawn = losses(log_of(rows))
    assert [name for name, _ in drawn] == ["total", "pixel", "sync_true"]
    assert drawn[2][1].paths["step"].endswith("Z"), "a lone point is a dot"
    assert [text for text, _ in resources(log_of(rows))] == ["learning rate"]


def test_chance_stands_beside_the_total() -> None:
    rows = [{"kind": "step", "epoch": 0, "step": s, "accuracy": 0.5, "total": 3.0, "chance": 2.5} for s in range(3)]
    drawn = losses(log_of(rows))
    assert [(name, list(curves.paths)) for name, curves in drawn] == [
        ("total", ["step", "running mean", "chance"]), ("accuracy", ["step", "running mean"])]  # fmt: skip


def test_workers_are_a_curve_only_where_they_change() -> None:
    for last, names in ((2, []), (4, ["workers"])):
        rows = [{"kind": "epoch", "epoch": e + 1, "workers": w} for e, w in enumerate((2, 2, last))]
        assert [text for text, _ in resources(log_of(rows))] == names


def test_the_best_epoch_is_that_of_the_right_direction() -> None:
    rows = [{"kind": "validation", "epoch": e, "sync_distance": d, "psnr": p, "segments": 4}
            for e, d, p in ((1, 0.9, 20.0), (2, 0.5, math.nan), (3, 0.7, 22.0))]  # fmt: skip
    found = {figure.name: figure for figure in measured(log_of(rows))}
    assert {name: (figure.best_epoch, figure.last) for name, figure in found.items()} == {
        "psnr": (3, 22.0), "sync_distance": (2, 0.7)}  # fmt: skip
    (mark,) = found["sync_distance"].curve.marks
    assert mark.text == "best: epoch 2"
    assert mark.position == pytest.approx(points(found["sync_distance"].curve.paths["this stage"])[1][0], abs=0.1)


def validated(*correlation: float) -> StageLog:
    rows = [{"kind": "validation", "epoch": e + 1, "mouth_correlation": v} for e, v in enumerate(correlation)]
    return log_of(rows, meta={"epoch": len(correlation)}, row={"kind": "gan", "epochs_constant": len(correlation),
                                                              "epochs_decay": 0})  # fmt: skip


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (validated(0.1, 0.5, 0.9), "may still improve"),
        (validated(0.1, 0.9, 0.5, 0.5), "best after epoch 2 of 4 and has become worse since"),
        (validated(0.5, 0.9, 0.901), ""),
        (validated(0.21, 0.2, 0.21), "hardly follows the audio (mouth_correlation 0.21"),
        (
            log_of(
                [{"kind": "validation", "epoch": e, "accuracy": 0.55 - 0.01 * e} for e in range(1, 4)],
                row={"kind": "syncnet"},
            ),
            "near chance (52%",
        ),
        (
            log_of([{"kind": "step", "epoch": 0, "step": 0, "share_gan": 99.0, "share_pixel": 1.0}]),
            "99% of the gradient",
        ),
        (log_of([{"kind": "epoch", "epoch": 3, "data_wait": 0.01}]), "Never validated: frame_32"),
        (log_of([], stopped="not finite: gan", meta={"epoch": 1}), "stopped by itself: not finite: gan. A smaller"),
    ],
)
def test_advice_fits_the_run(log: StageLog, expected: str) -> None:
    best = {figure.name: figure.best_epoch for figure in measured(log)}
    said = " ".join(advise(Path("run"), [log], {log.name: best}))
    assert expected in said
    for other in (
        "may still",
        "become worse",
        "near chance",
        "of the gradient",
        "Never validated",
        "stopped by",
        "waited",
    ):
        assert other in expected or other not in said


def test_stages_come_in_their_order(run: Path) -> None:
    assert [stage.name for stage in read_run(run)[1]] == ["syncnet", "frame_32", "frame_64"]
