"""The files of templates, by content: a video, its landmarks, and what the network needs of it, prepared once.

All processes that see the folder share them: what one has prepared, another one reads.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from dataclasses import fields
from pathlib import Path
from shutil import copyfile
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lawdnet.inference.engine import Engine
from lawdnet.inference.template import Template, prepare
from lawdnet.landmarks import source_for
from lawdnet.storage import atomic, sha256
from lawdnet.types import Beat

VIDEO = "video.mp4"
"""Name of every template's video, whatever its format is."""
FIELDS = {field.name: str(field.type) for field in fields(Template) if field.name != "path"}
"""Fields of a template that are kept in a file, with their types."""
FORMAT = hashlib.sha256(repr(FIELDS).encode()).hexdigest()[:8]
"""Of the files; those of other versions of the code are left alone, and prepared again."""
IN_MEMORY = 8
"""Prepared templates that a process keeps."""


class TemplateFiles:
    """The folder of templates. Safe to use from several threads and processes.

    Args:
        folder: a subfolder per content hash.
        landmarks, weights_dir: see `lawdnet.landmarks.source_for`.
    """

    def __init__(self, folder: Path, *, landmarks: str = "auto", weights_dir: Path | None = None) -> None:
        self.folder = folder
        self.landmarks = landmarks
        self.weights_dir = weights_dir
        self._kept: OrderedDict[tuple[str, int, int], Template] = OrderedDict()
        self._lock = threading.Lock()
        self._preparing: dict[str, threading.Lock] = {}

    def video(self, content: str) -> Path:
        """The video of a template; a CSV with its landmarks may be beside it."""
        return self.folder / content / VIDEO

    def add(self, video: Path, face: str, *, move: bool) -> str:
        """Take a video, with the CSV beside it, and return its content hash; the same content is kept once.

        Args:
            video: an upload, or a file of the user's, which is copied and never changed.
            face: which of several faces is meant.
            move: whether the files may be moved instead.
        """
        csv, content = video.with_suffix(".csv"), self.content(video, face)
        target = self.folder / content
        target.mkdir(parents=True, exist_ok=True)
        for file in (csv, video):  # whoever sees the video has the landmarks too
            to = target / (VIDEO if file == video else Path(VIDEO).with_suffix(".csv"))
            if file.is_file() and not to.exists():
                with atomic(to) as temporary:
                    os.replace(file, temporary) if move else copyfile(file, temporary)
        return content

    @staticmethod
    def content(video: Path, face: str) -> str:
        """The hash of a video, of the CSV beside it, and of the choice of a face."""
        csv = video.with_suffix(".csv")
        parts = [sha256(video), sha256(csv) if csv.is_file() else "", face]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def is_prepared(self, content: str) -> bool:
        """Whether a network's crops of it are there."""
        return any((self.folder / content).glob("*.npz"))

    def load(self, content: str, engine: Engine, face: str, beat: Beat) -> Template:
        """Return a template prepared for a network: from memory, from its file, or prepared now.

        Raises:
            Rejected: see `lawdnet.inference.template.prepare`.
            FileNotFoundError: it has been deleted.
        """
        key = content, engine.mouth_px, engine.crop_width
        with self._lock:
            lock = self._preparing.setdefault(content, threading.Lock())
        with lock:
            template = self._kept.get(key) or self._read(*key) or self._prepare(*key, face, beat)
        with self._lock:
            self._kept[key] = template
            self._kept.move_to_end(key)
            while len(self._kept) > IN_MEMORY:
                self._kept.popitem(last=False)
        return template

    def _file(self, content: str, mouth_px: int, crop_width: int) -> Path:
        return self.folder / content / f"{mouth_px}-{crop_width}-{FORMAT}.npz"

    def _prepare(self, content: str, mouth_px: int, crop_width: int, face: str, beat: Beat) -> Template:
        video = self.video(content)
        source = source_for(video, self.landmarks, self.weights_dir)
        template = prepare(video, source, mouth_px=mouth_px, crop_width=crop_width, face=face, beat=beat)
        values: dict[str, Any] = {name: getattr(template, name) for name in FIELDS}
        with atomic(self._file(content, mouth_px, crop_width)) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: value for name, value in values.items() if value is not None})
        return template

    def _read(self, content: str, mouth_px: int, crop_width: int) -> Template | None:
        try:
            with np.load(self._file(content, mouth_px, crop_width), allow_pickle=False) as arrays:
                found = {name: _value(name, arrays[name]) for name in FIELDS if name in arrays}
            return Template(path=self.video(content), **found)
        except (OSError, ValueError, TypeError, EOFError, BadZipFile):  # missing, or damaged: prepared again
            return None


def _value(name: str, array: np.ndarray[Any, Any]) -> Any:
    """A field's value: arrays stay arrays."""
    if FIELDS[name] == "int":
        return int(array)
    return tuple(array.tolist()) if FIELDS[name].startswith("tuple") else array
