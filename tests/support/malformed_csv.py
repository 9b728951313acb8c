"""Landmark files that something is wrong with, or odd: name → (expected outcome, what becomes of the good file).

A change gets the cells of the good file, header first, and returns the new file's cells, text or bytes.
"""

from __future__ import annotations

from collections.abc import Callable

Cells = list[list[str]]
Change = Callable[[Cells], Cells | str | bytes]


def join(cells: Cells, separator: str = ", ") -> str:
    return "\n".join(separator.join(row) for row in [*cells, []])


def column(name: str, value: Callable[[int, str], str]) -> Change:
    """Other cells in a column, from the row's number and the cell."""

    def change(cells: Cells) -> Cells:
        place = cells[0].index(name)
        return [cells[0], *(_with(row, place, value(n, row[place])) for n, row in enumerate(cells[1:]))]

    return change


def moved(move: Callable[[str, float], float]) -> Change:
    """Other coordinates, from the column's name and the number."""

    def change(cells: Cells) -> Cells:
        head = cells[0]
        points = {place for place, name in enumerate(head) if name[:2] in ("x_", "y_")}
        rows = [[f"{move(head[p], float(c))}" if p in points else c for p, c in enumerate(r)] for r in cells[1:]]
        return [head, *rows]

    return change


def _with(row: list[str], place: int, cell: str) -> list[str]:
    return [*row[:place], cell, *row[place + 1 :]]


def without(name: str) -> Change:
    return lambda cells: [[c for place, c in enumerate(row) if cells[0][place] != name] for row in cells]


def two_faces(cells: Cells) -> Cells:
    """A second, smaller and less sure face in a corner."""
    second = moved(lambda name, value: value / 4)(cells)
    second = column("face_id", lambda n, cell: "1")(column("confidence", lambda n, cell: "0.5")(second))
    return [cells[0], *(row for pair in zip(cells[1:], second[1:], strict=True) for row in pair)]


CSVS: dict[str, tuple[str, Change]] = {
    "no y_67": ("bad_landmarks", without("y_67")),
    "no frame": ("bad_landmarks", without("frame")),
    "no success": ("accepted", without("success")),
    "no header": ("bad_landmarks", lambda cells: cells[1:]),
    "header only": ("bad_landmarks", lambda cells: cells[:1]),
    "empty csv": ("bad_landmarks", lambda cells: b""),
    "binary csv": ("bad_landmarks", lambda cells: bytes(range(256)) * 40),
    "too many rows": ("landmark_count", lambda cells: cells + [_with(cells[-1], 0, str(n)) for n in range(76, 120)]),
    "too few rows": ("landmark_count", lambda cells: cells[:40]),
    "one row less": ("accepted", lambda cells: cells[:-1]),
    "frames twice": ("bad_landmarks", lambda cells: cells + cells[5:9]),
    "shuffled": ("accepted", lambda cells: cells[:1] + cells[:0:-1]),
    "from zero": ("bad_landmarks", column("frame", lambda n, cell: str(n))),
    "frame a million": ("bad_landmarks", column("frame", lambda n, cell: "1000000" if n == 74 else cell)),
    "frame 1e300": ("bad_landmarks", column("frame", lambda n, cell: "1e300" if n == 74 else cell)),
    "frame nan": ("bad_landmarks", column("frame", lambda n, cell: "nan" if n == 3 else cell)),
    "frame negative": ("bad_landmarks", column("frame", lambda n, cell: f"-{cell}")),
    "frame of halves": ("bad_landmarks", column("frame", lambda n, cell: f"{n + 1.5}")),
    "some nan": ("accepted", column("x_3", lambda n, cell: "nan" if n == 30 else cell)),
    "all nan": ("no_face", column("x_3", lambda n, cell: "nan")),
    "inf": ("no_face", column("y_3", lambda n, cell: "inf")),
    "words": ("bad_landmarks", column("x_3", lambda n, cell: "left" if n == 30 else cell)),
    "huge numbers": ("no_face|face_leaves_picture", moved(lambda name, value: value * 1e30)),
    "beyond float32": ("no_face", moved(lambda name, value: value * 1e300)),
    "negative": ("no_face|face_leaves_picture", moved(lambda name, value: -value)),
    "outside": ("no_face|face_leaves_picture", moved(lambda name, value: value + 5000)),
    "one point": ("no_face", moved(lambda name, value: 80.0)),
    "a flat face": ("any", moved(lambda name, v: v if name[0] == "x" else 80.0)),
    "one wild point": ("any", column("x_30", lambda n, cell: "1e9" if n % 9 == 0 else cell)),
    "never a success": ("no_face", column("success", lambda n, cell: "0")),
    "every second a success": ("any", column("success", lambda n, cell: str(n % 2))),
    "semicolons": ("bad_landmarks", lambda cells: join(cells, "; ")),
    "tabs": ("bad_landmarks", lambda cells: join(cells, "\t")),
    "utf16": ("bad_landmarks", lambda cells: join(cells).encode("utf16")),
    "bom": ("accepted", lambda cells: b"\xef\xbb\xbf" + join(cells).encode()),
    "crlf": ("accepted", lambda cells: join(cells).replace("\n", "\r\n")),
    "latin1": ("bad_landmarks", lambda cells: b"\xe9\xff\n" + join(cells).encode()),
    "a short row": ("bad_landmarks", lambda cells: [*cells[:9], cells[9][:50], *cells[10:]]),
    "a long row": ("bad_landmarks", lambda cells: [*cells[:9], [*cells[9], "1"], *cells[10:]]),
    "cut off": ("bad_landmarks", lambda cells: join(cells)[:-3000]),
    "quotes": ("any", column("x_3", lambda n, cell: f'"{cell}' if n == 3 else cell)),
    "no confidence is a number": ("accepted", column("confidence", lambda n, cell: "nan")),
    "two faces": ("accepted", two_faces),
    "a line of a megabyte": ("bad_landmarks", lambda cells: "x" * (1 << 21) + "\n" + join(cells)),
}


def change_csv(good: str, change: Change) -> bytes:
    """The bytes of the changed file."""
    changed = change([[cell.strip() for cell in line.split(",")] for line in good.splitlines() if line])
    changed = join(changed) if isinstance(changed, list) else changed
    return changed.encode() if isinstance(changed, str) else changed
