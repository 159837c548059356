"""``python -m benchmarks``: time and accuracy of ssim_fused beside other libraries.

python -m benchmarks --quick           the usual code and pytorch-msssim, two minutes
python -m benchmarks                   every library that is installed (benchmarks/requirements.txt)
python -m benchmarks --full            more shapes and dtypes, memory as well; an hour
python -m benchmarks accuracy          relative errors against float64
python -m benchmarks ceilings          what this machine can do at most
python -m benchmarks readme            README's tables and pictures from the saved results
python -m benchmarks table FILE.csv    a saved run as a Markdown table
python -m benchmarks plot FILE.csv     and as a picture beside it

A run that is cut short, lacks a library or has other options does not replace the results of a
whole one: it is saved as NAME-partial, where --name or --out do not say otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from examples.common.options import at_least, usable_device

from . import accuracy, ceilings, results
from .engine import OURS, Measurement, Workload, measure
from .providers import BY_NAME, FAST, QUICK

LARGE = ["16x3x256x256", "1x3x1080x1920"]
SMALL = ["1x1x28x28", "128x1x28x28", "1x1x128x128", "5x1x128x128"]
SIZES = ["1x1x256x256", "1x1x1024x1024", "1x1x4096x4096"]
MEMORY = ["1x3x1080x1920"]
COMMANDS = ["run", "accuracy", "ceilings", "readme", "table", "plot"]
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split("x"))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape like 16x3x256x256")
    return shape


def _device(text: str) -> str:
    if text.partition(":")[0] not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is none of cpu, cuda and cuda:NUMBER")
    usable_device(text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="run",
        choices=COMMANDS,
    )
    parser.add_argument("file", nargs="?", type=Path, help="for table and plot")
    parser.add_argument("--quick", action="store_true", help="few providers, a short budget")
    parser.add_argument("--full", action="store_true", help="every shape, dtype and mode")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="NxCxHxW")
    parser.add_argument("--providers", nargs="+", choices=list(BY_NAME), metavar="NAME")
    parser.add_argument(
        "--modes", nargs="+", choices=["value", "step", "memory"], default=["value", "step"]
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    parser.add_argument("--device", type=_device, default="cpu")
    parser.add_argument("--threads", type=at_least(1), default=None)
    parser.add_argument("--budget", type=float, help="seconds for each workload")
    parser.add_argument("--out", type=Path, default=None, help="where CSV and JSON go")
    parser.add_argument("--name", default=None, help="of the result files")
    return parser


def _show(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<70}", end="", file=sys.stderr, flush=True)


def _rows(measurements: list[Measurement]) -> list[dict]:
    ours = {m.workload: m for m in measurements if m.provider == OURS}
    return [m.row(ours.get(m.workload)) for m in measurements]


def _lacking(names: list[str]) -> str:
    """Which of the libraries that can be installed anywhere are not, in words."""
    absent = [name for name in names if BY_NAME[name].package and BY_NAME[name].missing()]
    return f"without {', '.join(absent)}" if absent else ""


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Measure every workload; what is measured is kept when the run is cut short."""
    names = args.providers or (QUICK if args.quick else list(BY_NAME))
    shapes = args.shapes or [_shape(text) for text in SMALL + LARGE]
    budget = args.budget or (6.0 if args.quick else 12.0)
    workloads = [
        (Workload(mode, shape, dtype, args.device), names)
        for dtype in args.dtypes
        for shape in shapes
        for mode in args.modes
    ]
    if args.full:
        beyond = [Workload(mode, _shape(text)) for text in SIZES for mode in args.modes]
        beyond += [
            Workload(mode, _shape(LARGE[1]), dtype) for dtype in DTYPES[1:] for mode in args.modes
        ]
        workloads += [(Workload("memory", _shape(text)), names) for text in MEMORY]
        workloads += [(workload, [name for name in FAST if name in names]) for workload in beyond]
    for name in names:
        if reason := BY_NAME[name].missing(args.device):
            print(f"left out: {name}: {reason}", file=sys.stderr)
    measurements: list[Measurement] = []
    lacks = _lacking(names) if args.quick or args.full else ""
    for i, (workload, compared) in enumerate(workloads):
        print(f"[{i + 1}/{len(workloads)}] {workload}", file=sys.stderr)
        found, finished = measure(workload, compared, budget, _show)
        measurements += found
        if not finished:
            print("\ninterrupted; what was measured is kept", file=sys.stderr)
            lacks = "interrupted"
            break
    if not measurements:
        return 1
    rows = _rows(measurements)
    name = args.name or ("quick" if args.quick else "full" if args.full else "run")
    name = results.name_for(name, parser, args, lacks)
    path = results.save(args.out or results.RESULTS, name, rows)
    print(f"\nns a pixel and channel, median (time relative to ssim_fused); saved in {path}\n")
    results.show(results.load(path))
    wrong = [m for m in measurements if m.provider == OURS and not m.agrees]
    for measurement in wrong:
        print(f"ssim_fused disagrees with float64: {measurement.workload} {measurement.problem}")
    return 1 if wrong else 0


def show(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """A saved run as a table or picture."""
    if args.file is None or not args.file.is_file():
        parser.error(f"{args.command} needs a saved CSV file, got {args.file}")
    rows = results.load(args.file)
    columns = Measurement(OURS, Workload("value", (1, 1, 1, 1))).row(None)
    if absent := [name for name in columns if not rows or name not in rows[0]]:
        parser.error(
            f"{args.command} takes times as `python -m benchmarks` saves them: {args.file} has no "
            f"{', '.join(absent)}"
        )
    if args.command == "table":
        print(results.markdown(rows))
        return 0
    picture = args.file.with_suffix(".png")
    if not results.plot(rows, picture):
        parser.error(f"nothing in {args.file} was timed beside ssim_fused")
    print(picture)
    return 0


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "run":
        return run(parser, args)
    if args.command == "accuracy":
        names = args.providers or list(BY_NAME)
        rows = accuracy.measure(names)
        if not rows:
            reasons = (f"{name}: {BY_NAME[name].missing()}" for name in names)
            print("nothing can be measured", *reasons, sep="\n", file=sys.stderr)
            return 1
        name = results.name_for(args.name or "accuracy", parser, args, _lacking(names))
        path = results.save(args.out or results.RESULTS, name, rows)
        print(f"relative error against float64, float32 images; saved in {path}\n\nvalue\n")
        print(accuracy.markdown(rows, "value_error"))
        print("\ngradient\n")
        print(accuracy.markdown(rows, "gradient_error"))
        return 0
    if args.command == "ceilings":
        name = results.name_for(args.name or "ceilings", parser, args)
        path = results.save(args.out or results.RESULTS, name, ceilings.by_threads())
        print(path.read_text())
        return 0
    if args.command == "readme":
        from . import readme  # needs the libraries of every benchmark that has a table

        print(*readme.update(), sep="\n")
        return 0
    return show(parser, args)


if __name__ == "__main__":
    sys.exit(main())
