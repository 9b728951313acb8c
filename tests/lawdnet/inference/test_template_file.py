"""A template file renders what the video would, and is refused in one line when it cannot."""

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawdnet.inference.template import Template
from lawdnet.inference.template_file import VERSION, Header, is_template, opened_template, save_template
from lawdnet.storage import locate
from lawdnet.types import Float32
from lawdnet.video import write_video
from tests.support.s3_server import S3Server

SIZES = {"mouth_px": 32, "crop_width": 160}


@pytest.fixture
def video(tmp_path: Path) -> Path:
    path = tmp_path / "anna.mp4"
    write_video(path, (np.full((48, 64, 3), 10 * n, np.uint8) for n in range(6)))
    return path


def template_of(video: Path, jaw_T17x2: Float32 | None = None) -> Template:
    rng = np.random.default_rng(0)
    matrix_T33 = rng.standard_normal((6, 3, 3)).astype(np.float32)
    matrix_T33[2] = np.nan
    return Template(
        path=video,
        height=48,
        width=64,
        matrix_T33=matrix_T33,
        reference_5HW3=rng.integers(0, 256, (5, 52, 40, 3), np.uint8),
        reference_ticks=(0, 1, 3, 4, 5),
        jaw_T17x2=jaw_T17x2,
    )


@pytest.fixture
def saved(video: Path, tmp_path: Path) -> Path:
    save_template(tmp_path / "anna.template", template_of(video), video, **SIZES)
    return tmp_path / "anna.template"


def opened(path: Any) -> Template:
    with opened_template(path, **SIZES) as template:
        return template


def test_what_was_saved_comes_back(video: Path, tmp_path: Path) -> None:
    jaw_T17x2 = np.random.default_rng(1).standard_normal((6, 17, 2)).astype(np.float32)
    made = template_of(video, jaw_T17x2)
    save_template(tmp_path / "t", made, video, **SIZES)
    back = opened(tmp_path / "t")
    for field in dataclasses.fields(made):
        np.testing.assert_array_equal(getattr(back, field.name), getattr(made, field.name))
    assert back.usable_T.tolist() == [True, True, False, True, True, True]
    assert is_template(tmp_path / "t")
    assert not is_template(video)


def test_a_template_without_jaw_lines_has_no_limit(saved: Path) -> None:
    jaw_T17x2 = opened(saved).jaw_T17x2
    assert jaw_T17x2 is not None
    assert np.isnan(jaw_T17x2).all()


def test_a_video_that_was_copied_beside_the_template_is_found(saved: Path, video: Path, tmp_path: Path) -> None:
    other = tmp_path / "moved"
    other.mkdir()
    for path in (saved, video):
        (other / path.name).write_bytes(path.read_bytes())
    video.unlink()
    assert opened(other / saved.name).path == other / video.name
    (other / video.name).unlink()
    with pytest.raises(ValueError, match=r"its video .*anna.mp4 is gone; put it back, or beside the template"):
        opened(other / saved.name)


def test_a_new_time_stamp_is_no_other_video_and_new_content_is(saved: Path, video: Path) -> None:
    os.utime(video, (1, 1))
    assert opened(saved).path == video
    video.write_bytes(video.read_bytes() + b"\0")
    with pytest.raises(ValueError, match="has changed since; make it again"):
        opened(saved)


def test_another_network_is_refused(saved: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"made for mouths of 32 px and crops of 160 px.*this one has 64 and 160"),
        opened_template(saved, mouth_px=64, crop_width=160),
    ):
        pass


def test_another_version_is_refused(saved: Path) -> None:
    old = saved.read_bytes().replace(b'"version": %d' % VERSION, b'"version": 9')
    with zipfile.ZipFile(saved) as archive:  # without its checksum, which would be wrong now
        names = archive.namelist()
    content = {name: zipfile.ZipFile(saved).read(name) for name in names}
    content["header.npy"] = content["header.npy"].replace(b'"version": %d' % VERSION, b'"version": 9')
    assert old != saved.read_bytes()
    with zipfile.ZipFile(saved, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=r"version 9, this is version 1\); make it again"):
        opened(saved)


@pytest.mark.parametrize("cut", [0, 3, 100, 2000, -200])
def test_a_truncated_file_is_one_clear_line(saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a template that can be used") as caught:
        opened(saved)
    assert "\n" not in str(caught.value)


def test_flipped_bytes_are_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 0xFF
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="not a template that can be used"):
        opened(saved)


def test_no_code_is_run(tmp_path: Path, video: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "owned"),)

    header = Header(height=48, width=64, video=str(video), video_fingerprint="", video_sha256="", **SIZES)
    assert header.version == VERSION
    np.savez(tmp_path / "evil.npz", header=np.array([Evil()], object))
    with pytest.raises(ValueError, match="not a template that can be used"):
        opened(tmp_path / "evil.npz")
    assert not (tmp_path / "owned").exists()


def test_arrays_of_another_shape_are_refused(video: Path, tmp_path: Path) -> None:
    wrong = dataclasses.replace(template_of(video), matrix_T33=np.zeros((6, 2, 3), np.float32))
    save_template(tmp_path / "t", wrong, video, **SIZES)
    with pytest.raises(ValueError, match=r"matrix_T33: float32 \(6, 2, 3\), expected"):
        opened(tmp_path / "t")


def test_templates_and_videos_in_a_bucket(video: Path, s3: S3Server) -> None:
    assert s3.root is not None
    remote = s3.root / "anna.mp4"
    remote.write_bytes(video.read_bytes())
    save_template(s3.root / "anna.template", template_of(video), remote, **SIZES)
    video.unlink()
    with opened_template(locate(str(s3.root / "anna.template")), **SIZES) as template:
        assert template.path.read_bytes()[4:8] == b"ftyp"
    assert is_template(s3.root / "anna.template")
