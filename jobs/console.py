"""How every command reports errors, progress and results to a person, a log or a program.

Results go to stdout, progress and errors to stderr. A job has one log for both: there, two marker lines enclose the
result, and every other line begins with the time.
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
from typing import TYPE_CHECKING, Any, get_type_hints

import typer

from jobs import options

if TYPE_CHECKING:
    from rich.progress import Progress

    from lawdnet.storage import Location

PLAIN_SECONDS = 5.0
"""Shortest time between two progress lines when stderr is not a terminal."""

IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the processes of a submitted job."""

RESULT_BEGINS = "--- result"
RESULT_ENDS = "--- end of result"
"""Marker lines around the result in a job's log."""

CLOCK = "%Y-%m-%d %H:%M:%S "
"""Time format at the start of each line of a job's log."""

LOCATIONS = frozenset(
    {
        "audio",
        "checkpoint",
        "dataset",
        "datasets",
        "html",
        "init",
        "out",
        "pairs",
        "run",
        "source",
        "speeches",
        "video_location",
        "videos",
        "weights_dir",
    }
)
"""Text parameters that take a path or an s3:// or gs:// URI; parameters of type `Path` take local paths only."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class WrongUsage(ValueError):
    """A mistake in the command line: exit code 2 instead of 1."""


@contextmanager
def parsing_options() -> Iterator[None]:
    """Turn every ValueError inside the block into WrongUsage, except `Rejected`, which is about an input file.

    Raises:
        WrongUsage: an option has an invalid value.
    """
    from lawdnet.types import Rejected

    try:
        yield
    except Rejected:
        raise
    except ValueError as error:
        raise WrongUsage(str(error)) from error


def located(text: str | None) -> Location | None:
    """Return the location that an option names, if it is given."""
    from lawdnet.storage import locate

    return locate(text) if text else None


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function as a typer command with a `--debug` option; see `failures` for how it reports errors."""

    @functools.wraps(function)
    def guarded(*, debug: bool, **arguments: Any) -> None:
        with failures(debug):
            check = check_locations if IN_JOB in os.environ else check_local
            check(arguments)
            function(**arguments)

    hints = get_type_hints(function, include_extras=True) | {"debug": options.Debug}
    known = [p.replace(annotation=hints[p.name]) for p in inspect.signature(function).parameters.values()]
    added = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=options.Debug)
    guarded.__dict__["__signature__"] = inspect.Signature([*known, added])
    guarded.__annotations__ = hints
    return guarded


@contextmanager
def failures(debug: bool) -> Iterator[None]:
    """Turn an exception inside the block into one line on stderr and an exit code, or with `debug` into a traceback."""
    level = logging.INFO if debug else logging.WARNING
    clock = "%(asctime)s " if IN_JOB in os.environ else ""
    logging.basicConfig(level=level, format=f"{clock}%(levelname)s %(name)s: %(message)s", datefmt=CLOCK.strip())
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # Ray Train answers Ctrl-C with sys.exit(0)
        say("stopped; run the same command again to resume")
        raise typer.Exit(130) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        say(f"error: {one_line(error)}")
        raise typer.Exit(2 if isinstance(error, WrongUsage) else 1) from None


def check_locations(arguments: Mapping[str, Any]) -> None:
    """Check that a job can find its files: it runs on another machine, in a temporary copy of the code.

    Raises:
        WrongUsage: a path is relative to the current folder, or is a URI where `check_local` forbids one.
    """
    check_local(arguments)
    for name, value in arguments.items():
        for location in value if isinstance(value, list) else [value]:
            is_text = isinstance(location, str) and name in LOCATIONS and location != ""
            if (is_text or isinstance(location, Path)) and not (os.path.isabs(location) or "://" in str(location)):
                uri = ", or an s3://… or gs://… URI" if is_text else ""
                raise WrongUsage(
                    f"{location}: a job does not run in this folder; give an absolute path that all machines share{uri}"
                )


def check_local(arguments: Mapping[str, Any]) -> None:
    """Check that options for local paths are not given URIs.

    Raises:
        WrongUsage: an option of type `Path` is an s3:// or gs:// URI.
    """
    for path in arguments.values():
        if isinstance(path, Path) and (found := re.match(r"(s3|gs):/+", str(path))):
            uri = f"{found[1]}://{str(path)[found.end() :]}"
            raise WrongUsage(f"{uri}: this command takes local files only; copy it into a local folder first")


def run(function: Callable[..., None]) -> None:
    """Run one command as a program of its own, as `python -m jobs.NAME` does."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
    app.command()(command(function))
    app()


def one_line(error: BaseException) -> str:
    """Return the error as one line: the message of a ValueError or OSError, other errors with their type in front."""
    error = _cause(error)
    if isinstance(error, OSError) and error.filename:
        # filename2 is the target of a rename: the user knows that name, not the temporary one
        return f"{error.filename2 or error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | OSError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _cause(error: BaseException) -> BaseException:
    """Return the original error of a worker, unwrapped from Ray's exceptions."""
    for wrapper in ("cause", "controller_failure", "_base_exc"):
        inner = getattr(error, wrapper, None)
        if isinstance(inner, BaseException):
            return _cause(inner)
    failures = getattr(error, "worker_failures", None)
    return _cause(next(iter(failures.values()))) if failures else error


def say(text: str) -> None:
    """Print a line to stderr, unbuffered."""
    clock = time.strftime(CLOCK) if IN_JOB in os.environ else ""
    print(clock + printable(text), file=sys.stderr, flush=True)


def printable(line: str) -> str:
    """Escape control characters: file names may contain line breaks and terminal escape sequences."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


def result(content: Any, lines: Sequence[str], as_json: bool) -> None:
    """Print a command's result: `content` as JSON, or the lines of its summary."""
    shown = [json.dumps(content, indent=2, ensure_ascii=False, default=str)] if as_json else [*map(printable, lines)]
    if IN_JOB in os.environ:
        shown = [RESULT_BEGINS, *shown, RESULT_ENDS]
    print("\n".join(shown), flush=True)


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Format (name, value) rows as two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {value}".rstrip() for name, value in rows]


def count(number: int, noun: str) -> str:
    """Format a count with its noun: `1 segment`, `2 segments`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a duration: `8.3 s`, `2 min 5 s`, `3 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def existing(path: Location) -> Location:
    """Return the location if it exists.

    Raises:
        ValueError: there is no such file or folder.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    return path


class Meter:
    """Progress of a command: a bar with the time left on a terminal, plain lines elsewhere."""

    def __init__(self, title: str, unit: str) -> None:
        self.title = title
        self.unit = unit
        self.began = time.monotonic()
        self.spoke = self.began
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
        """Seconds since the meter was created, or restarted."""
        return time.monotonic() - self.began

    def restart(self, done: int) -> None:
        """Estimate from what comes after `done` units: they waited for something that happens once."""
        self.began = time.monotonic()
        self.skipped = done

    def skip(self, done: int) -> None:
        """Leave `done` units out of the estimate of the time left: an earlier command did them."""
        self.skipped = done
        if self.bar:
            self.bar.reset(self.task, completed=done)

    def update(self, done: int, total: int, note: str = "", event: str = "") -> None:
        """Show that `done` of `total` units are done.

        Args:
            note: a few words beside the bar, such as a rate.
            event: what just happened; without a terminal it is always printed.
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
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
    )
