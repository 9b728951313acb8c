"""What every command shares: how errors, progress and results reach a person, a log or a program.

Results go to stdout; progress and errors go to stderr. A job has one log for both: there, a result stands between two
marks, and every other line begins with the time.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_SECONDS = 5.0
"""Without a terminal, lines that only tell how far the work is come no more often than this."""

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets this variable for what `ray job submit` runs."""

RESULT_BEGINS, RESULT_ENDS = "--- result", "--- end of result"
"""Lines of a job's log around what a command on this machine prints to stdout."""

CLOCK = "%Y-%m-%d %H:%M:%S "
"""How a line of a job's log begins."""

PLACES = frozenset(
    {"checkpoint", "dataset", "datasets", "html", "init", "out", "pairs", "run", "source", "speeches", "videos"}
)
"""Parameters that name a file or folder by text, so that it may be s3://… or gs://…; those of type `Path` are local."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where a failure happened, and what the library logs.")]
Settings = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.", show_default=False),
]


class WrongUsage(ValueError):
    """A command line that cannot mean anything: exit code 2 instead of 1."""


@contextmanager
def options() -> Iterator[None]:
    """Inside, a ValueError is about what the user typed, but for inputs that cannot be used.

    Raises:
        WrongUsage: in its place.
    """
    from lawdnet.types import Rejected

    try:
        yield
    except Rejected:
        raise
    except ValueError as error:
        raise WrongUsage(str(error)) from error


def command(function: Callable[..., None]) -> Callable[..., None]:
    """The function as a typer command; without `--debug` its failures are one line on stderr and an exit code."""

    @functools.wraps(function)
    def guarded(*, debug: bool, **arguments: Any) -> None:
        with failures(debug):
            (check_places if IN_JOB in os.environ else check_local)(arguments)
            function(**arguments)

    hints = get_type_hints(function, include_extras=True) | {"debug": Debug}
    known = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
    added = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Debug)
    guarded.__dict__["__signature__"] = inspect.Signature([*known, added])
    guarded.__annotations__ = hints
    return guarded


@contextmanager
def failures(debug: bool) -> Iterator[None]:
    """Inside, what goes wrong becomes one line on stderr and an exit code; with `debug`, a traceback."""
    level = logging.INFO if debug else logging.WARNING
    clock = "%(asctime)s " if IN_JOB in os.environ else ""
    logging.basicConfig(level=level, format=f"{clock}%(levelname)s %(name)s: %(message)s", datefmt=CLOCK.strip())
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray Train answers Ctrl-C with sys.exit(0)
        say("stopped; run the same command again to go on")
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        say(f"error: {one_line(error)}")
        raise typer.Exit(2 if isinstance(error, WrongUsage) else 1) from None


def check_places(arguments: Mapping[str, Any]) -> None:
    """Looks whether a job can find what a command names: it runs elsewhere, in a copy of the code that Ray deletes.

    Raises:
        WrongUsage: a place is relative to the folder that the command was typed in, or as in `check_local`.
    """
    check_local(arguments)
    for name, value in arguments.items():
        for place in value if isinstance(value, list) else [value]:
            is_text = isinstance(place, str) and name in PLACES and place != ""
            if (is_text or isinstance(place, Path)) and not (os.path.isabs(place) or "://" in str(place)):
                remote = ", s3://… or gs://…" if is_text else ""
                raise WrongUsage(
                    f"{place}: a job does not run in this folder; give an absolute path that all machines share{remote}"
                )


def check_local(arguments: Mapping[str, Any]) -> None:
    """Looks whether a command that reads and writes files is given files.

    Raises:
        WrongUsage: one is an address.
    """
    for place in arguments.values():
        if isinstance(place, Path) and (found := re.match(r"(s3|gs):/+", str(place))):
            address = f"{found[1]}://{str(place)[found.end() :]}"
            raise WrongUsage(f"{address}: this command reads and writes files; copy it into a folder first")


def run(function: Callable[..., None]) -> None:
    """One command as a program of its own: what `python -m jobs.NAME` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(command(function))
    app()


def one_line(error: BaseException) -> str:
    """What went wrong, for a person: users' errors as they are, others with their type."""
    error = _cause(error)
    if isinstance(error, OSError) and error.filename:
        # what a file was to become is what its reader knows, not the temporary name that it has until then
        return f"{error.filename2 or error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _cause(error: BaseException) -> BaseException:
    """The error that happened in a worker, out of what Ray wraps around it."""
    for wrapper in ("cause", "controller_failure", "_base_exc"):
        inner = getattr(error, wrapper, None)
        if isinstance(inner, BaseException):
            return _cause(inner)
    failures = getattr(error, "worker_failures", None)
    return _cause(next(iter(failures.values()))) if failures else error


def say(text: str) -> None:
    """A line to stderr, at once."""
    clock = time.strftime(CLOCK) if IN_JOB in os.environ else ""
    print(clock + printable(text), file=sys.stderr, flush=True)


def printable(line: str) -> str:
    """The line with control characters spelt out: a file's name may hold line ends, and what steers a terminal."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def result(content: Any, lines: Sequence[str], as_json: bool) -> None:
    """What a command found or made, as JSON or as the lines of its summary."""
    shown = [json.dumps(content, indent=2, ensure_ascii=False, default=str)] if as_json else [*map(printable, lines)]
    if IN_JOB in os.environ:
        shown = [RESULT_BEGINS, *shown, RESULT_ENDS]
    print("\n".join(shown), flush=True)


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Names and values, aligned."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}".rstrip() for name, value in rows]


def count(number: int, noun: str) -> str:
    """`1 segment`, `2 segments`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """`8.3 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def existing(path: Path) -> Path:
    """The path.

    Raises:
        ValueError: nothing is there.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return path


class Meter:
    """How far the work is: a bar with the time left on a terminal, a line per event elsewhere."""

    def __init__(self, title: str, unit: str) -> None:
        self.title, self.unit = title, unit
        self.began = self.spoke = time.monotonic()
        self.skipped = 0
        self.bar: Progress | None = _bar(unit) if sys.stderr.isatty() else None

    def __enter__(self) -> Meter:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=None, note="starting")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    @property
    def seconds(self) -> float:
        """Since the meter was made."""
        return time.monotonic() - self.began

    def skip(self, done: int) -> None:
        """`done` units were there before, and say nothing about the speed of this work."""
        self.skipped = done
        if self.bar:
            self.bar.reset(self.task, completed=done)

    def update(self, done: int, total: int, note: str = "", event: str = "") -> None:
        """`done` of `total` units.

        Args:
            note: a few words beside the bar, such as a rate.
            event: a line worth keeping in a log.
        """
        if self.bar:
            self.bar.update(self.task, completed=done, total=total, note=note)
            return
        now = time.monotonic()
        if event or done >= total or now - self.spoke >= PLAIN_SECONDS:
            self.spoke = now
            text = ", ".join(part for part in (event, note, self._left(done, total)) if part)
            say(f"{self.title} {done}/{total} {self.unit}: {text}".rstrip(": "))

    def _left(self, done: int, total: int) -> str:
        fresh = done - self.skipped
        return f"about {duration(self.seconds / fresh * (total - done))} left" if fresh > 0 and done < total else ""


def _bar(unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
        TimeRemainingColumn(compact=True), TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
