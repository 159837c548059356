"""``ssim-fused``: compare pictures, see what is in use, measure. Needs the extra ``command``."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ._checks import PADDINGS
from ._extra import require
from ._luma import LUMAS
from ._version import __version__

if TYPE_CHECKING:
    from .evaluation.compare import Settings
    from .evaluation.run import Outcome
    from .evaluation.video import Course

# exit codes
BELOW, USAGE, INCOMPLETE, INTERRUPTED = 1, 2, 3, 130


def _stop(missing: ImportError) -> NoReturn:
    with contextlib.suppress(OSError):
        print(f"ssim-fused: {missing}", file=sys.stderr)
    sys.exit(USAGE)


try:
    require("command", "click", "rich")
    import click
    from rich.console import Console
    from rich.table import Table
except ImportError as missing:
    _stop(missing)

_NAMED = 5  # of the least similar pairs
_MOST_BELOW = 20  # that are named
_FILE = click.Path(dir_okay=False, path_type=Path)
_ANY = click.Path(path_type=Path)


class _Group(click.Group):
    """Ends with a code of its own where click's, or Python's, is that of ``BELOW``."""

    def invoke(self, context: click.Context) -> Any:
        """A command: Ctrl-C and errors that nobody expects are told from its results."""
        try:
            return super().invoke(context)
        except (KeyboardInterrupt, click.Abort):
            print("interrupted", file=sys.stderr)
            context.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, ImportError):
            raise
        except Exception as error:
            traceback.print_exc()
            print(f"ssim-fused: ended by {type(error).__name__}: {error}", file=sys.stderr)
            context.exit(INCOMPLETE)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def group() -> None:
    """Structural similarity of pictures."""


def _number(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A value that is not NaN, with which nothing compares."""
    if value is not None and math.isnan(value):
        raise click.BadParameter("nan is not a number")
    return value


_COMPARE_OPTIONS = (
    click.option(
        "--fail-under",
        type=click.FloatRange(max=1),
        callback=_number,
        help="Exit with 1 if the least SSIM is below this.",
    ),
    click.option("--data-range", type=float, help="Range of the values; default: by their type."),
    click.option(
        "--padding",
        type=click.Choice(PADDINGS),
        default="same",
        show_default=True,
        help="Border of the SSIM map.",
    ),
    click.option("--ms-ssim", is_flag=True, help="MS-SSIM, too, which takes longer than the rest."),
    click.option(
        "--luma",
        type=click.Choice(LUMAS),
        help="Of RGB, compare luma alone; papers on super-resolution: matlab.",
    ),
    click.option(
        "--crop-border",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Pixels left out at each side.",
    ),
    click.option("--max-pixels", type=click.IntRange(1), help="Refuse larger pictures."),
    click.option("--threads", type=click.IntRange(1), help="Default: one for each core."),
    click.option("--quiet", is_flag=True, help="No progress and no summary."),
)


def _compare_options(command: Callable) -> Callable:
    """Options of all that compares."""
    for option in reversed(_COMPARE_OPTIONS):
        command = option(command)
    return command


# ---- compare ----


@group.command()
@click.argument("input", type=_ANY)
@click.argument("target", type=_ANY, required=False)
@click.option("--csv", type=_FILE, help="Write a result a line, as they come.")
@click.option("--json", type=_FILE, help="Write JSON Lines: an object a line, as they come.")
@click.option("--parquet", type=_FILE, help="Write a Parquet table.")
@click.option("--html", type=_FILE, help="Write a page to look at: worst pairs, maps, histogram.")
@click.option(
    "--html-pairs",
    type=click.IntRange(0),
    default=50,
    show_default=True,
    help="How many of the worst pairs it shows with pictures.",
)
@click.option("--resume", is_flag=True, help="Go on from what these files hold; retry errors.")
@_compare_options
def compare(
    input: Path,
    target: Path | None,
    csv: Path | None,
    json: Path | None,
    parquet: Path | None,
    html: Path | None,
    html_pairs: int,
    resume: bool,
    fail_under: float | None,
    data_range: float | None,
    padding: str,
    ms_ssim: bool,
    luma: str | None,
    crop_border: int,
    max_pixels: int | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Compare two pictures, two folders (by name), or the pairs of a CSV or Parquet list.

    A list has the columns input and target; paths are relative to its folder. Under torchrun each
    process takes its share.

    Exit code: 0; 1 if a pair is below --fail-under; 2 for wrong usage; 3 if a picture could not be
    compared or has no partner, a file could not be written, or anything else went wrong, also where
    a pair is below; 130 after Ctrl-C. What is finished by then is in the files.
    """
    from .evaluation.outputs import OutputsError, check_apart, check_folders, check_no_pictures
    from .evaluation.pairs import PairsError, find_pairs
    from .evaluation.ranks import Ranks, RanksError
    from .evaluation.report import MOST_ROWS
    from .evaluation.run import Outcome
    from .evaluation.session import run_session
    from .evaluation.writers import NotWritten, ResultsError

    given = {"csv": csv, "json": json, "parquet": parquet}
    outputs = {kind: path for kind, path in given.items() if path is not None}
    if resume and not outputs:
        raise click.UsageError("--resume goes with --csv, --json or --parquet")
    settings = _settings(data_range, padding, ms_ssim, max_pixels, luma, crop_border)
    try:
        pairs = find_pairs(input, target)
        check_apart(_given(csv, json, parquet, html), _given(input, target))
        check_no_pictures(_given(csv, json, parquet, html))
        check_folders(_given(html))
    except (PairsError, OutputsError) as error:
        raise click.UsageError(str(error)) from None
    outcome = Outcome(MOST_ROWS if html else _MOST_BELOW)
    try:
        ranks = Ranks()
    except RanksError as error:
        raise click.UsageError(str(error)) from None
    _stop_gently(outcome)
    _hush_decoders()
    threads = threads or max(1, _cores() // ranks.local_size)
    try:
        with _progress(quiet or ranks.rank > 0) as show:
            run_session(
                pairs, settings, outputs, ranks,
                resuming=resume, threads=threads, outcome=outcome, show=show,
            )  # fmt: skip
        if ranks.rank == 0:
            summary = outcome.summary
            if not (summary.compared or summary.failed or outcome.failures or outcome.interrupted):
                outcome.failures.append(f"{input}: no pair was compared")
            if html is not None:
                _write_page(html, outcome, settings, html_pairs)
            _report(outcome, settings, quiet)
            worst = outcome.summary.worst_first()
            names = [(pair["ssim"], f"{pair['input']} and {pair['target']}") for pair in worst]
            _report_below(outcome.summary.similarities, fail_under, names)
        ranks.wait()
    except NotWritten as error:
        print(error, file=sys.stderr)
        sys.exit(INCOMPLETE)
    except ResultsError as error:
        raise click.UsageError(str(error)) from None
    finally:
        ranks.close()
    # torchrun ends all ranks where one fails: the first one does, which has written everything
    sys.exit(_exit_code(outcome, fail_under) if ranks.rank == 0 else 0)


def _given(*paths: Path | None) -> list[Path]:
    return [path for path in paths if path is not None]


def _settings(
    data_range: float | None,
    padding: str,
    ms_ssim: bool,
    max_pixels: int | None,
    luma: str | None,
    crop_border: int,
) -> Settings:
    """Settings of the options, or a usage error."""
    from .evaluation.compare import Settings
    from .evaluation.pictures import MAX_PIXELS

    try:
        most = max_pixels or MAX_PIXELS
        return Settings(data_range, padding, ms_ssim, most, luma, crop_border).checked()
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _stop_gently(outcome: Outcome | Course) -> None:
    """Ctrl-C, and SIGTERM of torchrun, end a run after the pair at hand; twice, at once."""

    def stop(number: int, frame: object) -> None:
        if outcome.interrupted:
            raise KeyboardInterrupt
        outcome.interrupted = True

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _hush_decoders() -> None:
    """Their warnings, which name no file and change no value, are not for the terminal."""
    for name in ("imagecodecs", "tifffile"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    warnings.filterwarnings("ignore", module="PIL")


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Console(Console):
    """Prints text as it is: a name may look like rich's markup or emoji."""

    def __init__(self, **how: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **how)


@contextlib.contextmanager
def _progress(hidden: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with the time left, on stderr; it is told how many are done, and of how many."""
    from rich import progress

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
    )
    console = _Console(stderr=True)
    with progress.Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task("comparing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(outcome: Outcome, settings: Settings, quiet: bool) -> None:
    """The summary on stdout; what went wrong on stderr."""
    summary, errors = outcome.summary, _Console(stderr=True, soft_wrap=True)
    if not quiet and summary.compared:
        _print_summary(outcome, settings)
    for error in summary.errors:
        errors.print(error)
    if summary.failed > len(summary.errors):
        errors.print(f"... and {summary.failed - len(summary.errors)} more")
    if summary.failed:
        errors.print(f"{summary.failed} of {summary.failed + summary.compared} not compared")
    for failure in outcome.failures:
        errors.print(failure)
    if outcome.interrupted:
        errors.print("interrupted: what is finished is in the files")


def _report_below(
    similarities: Sequence[float], fail_under: float | None, names: list[tuple[float, str]]
) -> None:
    """Which are below --fail-under, of those that have names, and how many; whatever is quiet."""
    if fail_under is None:
        return
    below = sum(not value >= fail_under for value in similarities)
    named = [f"{value:.6f}: {name}" for value, name in names if not value >= fail_under]
    named = named[:_MOST_BELOW]
    for line in named:
        print(line, file=sys.stderr)
    if below > len(named) > 0:
        print(f"... and {below - len(named)} more", file=sys.stderr)
    if below:
        print(f"{below} of {len(similarities)} below {fail_under}", file=sys.stderr)


def _print_summary(outcome: Outcome, settings: Settings) -> None:
    from .evaluation.compare import MS_SSIM_LEAST

    summary = outcome.summary
    console = _Console()
    least, median = summary.quantiles(0, 0.5)
    titles = {"ssim": "SSIM", "ms_ssim": "MS-SSIM", "psnr": "PSNR, dB", "mse": "MSE", "l1": "L1"}
    values = Table("", *titles.values(), title=f"{summary.compared} compared")
    means = summary.means()
    shown = (f"{means[name]:.6g}" if name in means else "" for name in titles)
    values.add_row("mean" if summary.compared > 1 else "", *shown)
    console.print(values)
    if settings.ms_ssim and summary.without_ms_ssim:
        counts = f"{summary.without_ms_ssim} of {summary.compared}"
        console.print(f"MS-SSIM: {counts} too small, with a side below {MS_SSIM_LEAST} pixels")
    if summary.compared == 1:
        return
    console.print(f"SSIM: least {least:.6g}, median {median:.6g}")
    worst = Table("SSIM", title="the least similar")
    for side in ("input", "target"):
        worst.add_column(side, overflow="fold")  # the ends of paths are what tells them apart
    for result in summary.worst_first()[:_NAMED]:
        worst.add_row(f"{result['ssim']:.6f}", result["input"], result["target"])
    console.print(worst)


def _write_page(path: Path, outcome: Outcome, settings: Settings, pictures: int) -> None:
    from .evaluation.outputs import cannot_write
    from .evaluation.report import write_report

    try:
        write_report(path, outcome.summary, settings, pictures)
    except OSError as error:
        outcome.failures.append(cannot_write(path, error))


# ---- video ----


@group.command()
@click.argument("input", type=_ANY)
@click.argument("target", type=_ANY)
@click.option("--csv", type=_FILE, help="Write a frame a line, as they come.")
@click.option("--json", type=_FILE, help="Write JSON Lines: an object a frame, as they come.")
@click.option("--plot", type=_FILE, help="Draw SSIM against time: .png, .svg, .pdf.")
@click.option("--worst", type=click.IntRange(0), default=3, show_default=True, help="Frames named.")
@click.option("--worst-frames", type=_ANY, help="Folder for their pictures and SSIM maps.")
@_compare_options
def video(
    input: Path,
    target: Path,
    csv: Path | None,
    json: Path | None,
    plot: Path | None,
    worst: int,
    worst_frames: Path | None,
    fail_under: float | None,
    data_range: float | None,
    padding: str,
    ms_ssim: bool,
    luma: str | None,
    crop_border: int,
    max_pixels: int | None,
    threads: int | None,
    quiet: bool,
) -> None:
    """Compare two videos frame by frame, as RGB. Exit codes as those of compare.

    --fail-under is for the worst frame. Needs the extra video.
    """
    require("video", "av", "matplotlib")
    from .evaluation.outputs import (
        Files,
        OutputsError,
        cannot_write,
        check_apart,
        check_folders,
        check_no_pictures,
    )
    from .evaluation.plot import check_plot, plot_course
    from .evaluation.video import FRAME_FIELDS, Course, Video, VideoError, compare_videos
    from .evaluation.writers import CsvWriter, JsonWriter

    settings = _settings(data_range, padding, ms_ssim, max_pixels, luma, crop_border)
    try:
        check_apart(_given(csv, json, plot), (input, target))
        check_no_pictures(_given(csv, json))
        check_folders(_given(plot))
        for path in _given(plot):
            check_plot(path)
    except OutputsError as error:
        raise click.UsageError(str(error)) from None
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    course = Course(worst)
    _stop_gently(course)
    given = {"csv": csv, "json": json}
    outputs = {kind: path for kind, path in given.items() if path is not None}
    kinds = {"csv": CsvWriter, "json": JsonWriter}
    with contextlib.ExitStack() as stack:
        try:
            first = stack.enter_context(contextlib.closing(Video(input, settings.max_pixels)))
            second = stack.enter_context(contextlib.closing(Video(target, settings.max_pixels)))
        except VideoError as error:
            print(error, file=sys.stderr)
            sys.exit(INCOMPLETE)
        show = stack.enter_context(_progress(quiet))
        lengths = [length for length in (first.length(), second.length()) if length]
        compare_videos(
            first, second, settings,
            Files(outputs, lambda kind, path: kinds[kind](path, False, FRAME_FIELDS)),
            course, lambda done: show(done, min(lengths, default=None)),
        )  # fmt: skip
    if plot is not None and course.times:
        try:
            plot_course(plot, course, f"{input.name} and {target.name}")
        except OSError as error:
            course.errors.append(cannot_write(plot, error))
    if worst_frames is not None:
        _save_worst(worst_frames, course, settings)
    _report_video(course, quiet)
    names = [(course.similarities[number], f"frame {number}") for number, _ in course.worst()]
    _report_below(course.similarities, fail_under, names)
    if course.interrupted:
        sys.exit(INTERRUPTED)
    if course.errors:
        sys.exit(INCOMPLETE)
    sys.exit(BELOW if fail_under is not None and min(course.similarities) < fail_under else 0)


def _save_worst(folder: Path, course: Course, settings: Settings) -> None:
    from .evaluation.compare import compared_part
    from .evaluation.drawing import save_difference
    from .evaluation.outputs import cannot_write
    from .evaluation.pictures import data_range

    for number, pictures in course.worst():
        path = folder / f"frame-{number:06}.png"
        span = settings.data_range or data_range(pictures[0])
        first, second = (compared_part(picture, settings) for picture in pictures)
        try:
            save_difference(path, first, second, span, settings.padding)
        except OSError as error:
            course.errors.append(cannot_write(path, error))
            return


def _report_video(course: Course, quiet: bool) -> None:
    count = len(course.similarities)
    if not quiet and count:
        mean = sum(course.similarities) / count
        table = Table("frame", "seconds", "SSIM", title=f"{count} frames, mean SSIM {mean:.6g}")
        for number, _ in course.worst():
            values = f"{course.times[number]:.3f}", f"{course.similarities[number]:.6f}"
            table.add_row(str(number), *values)
        _Console().print(table)
    for error in course.errors:
        print(error, file=sys.stderr)
    if course.interrupted:
        print("interrupted: what is finished is in the files", file=sys.stderr)


def _exit_code(outcome: Outcome, fail_under: float | None) -> int:
    if outcome.interrupted:
        return INTERRUPTED
    if outcome.summary.failed or outcome.failures:
        return INCOMPLETE
    below = fail_under is not None and not outcome.summary.least() >= fail_under
    return BELOW if below else 0


# ---- info, bench ----


@group.command()
def info() -> None:
    """Which paths are available and in use, and why."""
    from .__main__ import report

    print(report())


@group.command()
@click.option("--threads", type=click.IntRange(1), help="Default: torch's.")
def bench(threads: int | None) -> None:
    """Time SSIM and its gradient here, against five conv2d: some seconds."""
    from ._bench import measure

    table = Table("images", "", *("ssim_fused", "five conv2d", "gain"))
    for row in measure(threads):
        gain = f"{row.usual / row.ours:.3g}x"
        table.add_row(row.images, row.what, f"{row.ours:.3g} ms", f"{row.usual:.3g} ms", gain)
    _Console().print(table)


class _Stream(io.RawIOBase):
    """Standard output or error: what it does not take is lost, and raises nothing.

    Attributes:
        failed: whether that was for another reason than a reader who has left.
    """

    def __init__(self, stream: Any) -> None:
        self._owner = stream  # without it, the raw stream is closed
        self._raw = getattr(stream.buffer, "raw", stream.buffer)
        self.failed = False

    def writable(self) -> bool:
        """It is for writing."""
        return True

    def fileno(self) -> int:
        """As rich and click ask for it."""
        return self._raw.fileno()

    def isatty(self) -> bool:
        """As rich and click ask for it."""
        return self._raw.isatty()

    def write(self, data: Any) -> int:
        """Write, or lose it."""
        try:
            return self._raw.write(data)
        except BrokenPipeError:
            return len(data)
        except OSError:
            self.failed = True
            return len(data)


def _lenient(stream: Any) -> Any:
    """A standard stream that raises nothing, also where there is none."""
    if stream is None:
        stream = open(os.devnull, "w")  # noqa: SIM115
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(stream)),
        stream.encoding,
        errors="backslashreplace",  # names may hold what the terminal does not have
        line_buffering=stream.line_buffering,
    )


def _has_failed(stream: Any) -> bool:
    stream.flush()
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return isinstance(raw, _Stream) and raw.failed


def main() -> None:
    """The entry point. No stream that fails, or is not there, changes what the exit code says."""
    sys.stdout, sys.stderr = _lenient(sys.stdout), _lenient(sys.stderr)
    try:
        group(prog_name="ssim-fused")
    except ImportError as missing:
        _stop(missing)
    except SystemExit as end:
        lost = _has_failed(sys.stdout) and end.code in (0, BELOW)
        sys.exit(INCOMPLETE if lost else end.code)


if __name__ == "__main__":
    main()
