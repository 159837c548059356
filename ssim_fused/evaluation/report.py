"""One self-contained page that shows results: table, histogram, pictures, SSIM maps, slider."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .._version import __version__
from .compare import Result, Settings, compared_part
from .drawing import COLOURS, data_uri, draw_map, draw_picture, lowest, ssim_map
from .outputs import replaced
from .pictures import read_picture
from .summary import Summary
from .writers import finite

MOST_ROWS = 2000
_BINS = 40
_LEAST_SPAN = 1e-5  # of the histogram: what six digits can tell apart, far more than 40 roundings
_STOPS = 9  # of the legend's gradient
_SIDES = ("input", "target")
_NUMBERS = ("ssim", "ms_ssim", "psnr", "mse", "l1")


def render(summary: Summary, settings: Settings, pictures: int, title: str) -> str:
    """The page, with the pictures of so many of the worst pairs, which are read again."""
    worst = summary.worst_first()
    folders = {side: _folder([result[side] for result in worst]) for side in _SIDES}
    rows = [_row(result, settings, folders, i < pictures) for i, result in enumerate(worst)]
    stops = [COLOURS[round(i * 255 / (_STOPS - 1))] for i in range(_STOPS)]
    content = {
        "title": title,
        "version": __version__,
        "compared": summary.compared,
        "failed": summary.failed,
        "errors": summary.errors,
        "means": summary.means(),
        "quantiles": summary.quantiles(0, 0.05, 0.5, 0.95) if summary.compared else [],
        "histogram": _histogram(summary),
        "gradient": ["rgb({}, {}, {})".format(*colour) for colour in stops],
        "folders": folders,
        "rows": rows,
    }
    # nothing in a file's name may end the element that holds it
    held = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    before, after = template.split("@CONTENT@")
    return before + held + after


def write_report(path: Path, summary: Summary, settings: Settings, pictures: int) -> None:
    """Render a page into a file, which has it whole or is what it was.

    Raises:
        OSError: it cannot be written.
    """
    page = render(summary, settings, pictures, path.stem)
    with replaced(path) as new:
        new.write_text(page, encoding="utf-8")


def _histogram(summary: Summary) -> dict[str, Any]:
    """How many pairs have which SSIM, from the least to the greatest."""
    if not summary.compared:
        return {"counts": [], "edges": []}
    similarities = np.frombuffer(summary.similarities)
    low, high = similarities.min(), similarities.max()
    more = max(0, _LEAST_SPAN - (high - low)) / 2
    counts, edges = np.histogram(similarities, bins=_BINS, range=(low - more, high + more))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _folder(paths: list[str]) -> str:
    """What all paths have in front, which needs no place in each row; empty where it is nothing."""
    folders = {os.path.dirname(path) for path in paths}
    try:
        common = os.path.commonpath(folders)
    except ValueError:  # none at all, or relative and absolute ones
        return ""
    return os.path.join(common, "") if common.strip(os.sep) else ""


def _row(
    result: Result, settings: Settings, folders: dict[str, str], with_pictures: bool
) -> dict[str, Any]:
    row = {side: result[side].removeprefix(folders[side]) for side in _SIDES}
    row |= {name: finite(result[name]) for name in _NUMBERS if result[name] is not None}
    row["size"] = f"{result['width']} x {result['height']} x {result['channels']}"
    if with_pictures:
        row |= _pictures(result, settings)
    return row


def _pictures(result: Result, settings: Settings) -> dict[str, Any]:
    """Both pictures and the map; or why they are not there any more."""
    try:
        read = (read_picture(result[side], settings.max_pixels) for side in _SIDES)
        first, second = (compared_part(picture, settings) for picture in read)
        found = ssim_map(first, second, result["data_range"], result["padding"])
        low = lowest(first, second)
        drawn = [draw_picture(picture, result["data_range"], low) for picture in (first, second)]
        return {"pictures": [data_uri(image) for image in (*drawn, draw_map(found))]}
    except ValueError as error:  # a file has changed since: PictureError, or they do not fit
        return {"gone": str(error)}
    except MemoryError:
        return {"gone": "no memory to draw them"}
