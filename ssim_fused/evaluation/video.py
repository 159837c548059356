"""Two videos, frame by frame, in memory that does not grow with their length."""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from .compare import Settings, compare
from .outputs import Files
from .pictures import PictureError

FRAME_FIELDS = {
    "frame": int,
    "time": float,
    "ssim": float,
    "ms_ssim": float,
    "psnr": float,
    "mse": float,
    "l1": float,
}
_AHEAD = 4  # frames of each video that are decoded before they are needed


class VideoError(ValueError):
    """A video that cannot be read, or two that do not fit: which, and why."""


class Frame(NamedTuple):
    """A picture of a video."""

    time: float  # seconds from its first frame
    picture: np.ndarray  # (H, W, 3), uint8 or, of videos of more bits, uint16


class _End(NamedTuple):
    error: VideoError | None


class Video:
    """The frames of a file, decoded in a thread of their own.

    Raises:
        VideoError: it cannot be opened, or, while it is read, decoded.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path = path
        try:
            self._container = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise VideoError(f"{path}: cannot be read: {_reason(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{path}: holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        size = self._stream.codec_context
        if size.width * size.height > max_pixels:
            self._container.close()
            raise VideoError(
                f"{path}: {size.width} x {size.height} are more pixels than the limit, {max_pixels}"
            )
        self._ready: queue.Queue[Frame | _End] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._decode, daemon=True)
        self._thread.start()

    def length(self) -> int | None:
        """How many frames it says to have."""
        if self._stream.frames:
            return self._stream.frames
        if self._container.duration and self._stream.average_rate:
            return round(self._container.duration / av.time_base * self._stream.average_rate)
        return None

    def _decode(self) -> None:
        count, start, error = 0, 0.0, None
        try:
            for frame in self._container.decode(self._stream):
                deep = any(part.bits > 8 for part in frame.format.components)
                picture = frame.to_ndarray(format="rgb48le" if deep else "rgb24")
                rate = self._stream.average_rate
                seconds = frame.time if frame.time is not None else count / float(rate or 1)
                if count == 0:
                    start = seconds
                count += 1
                if not self._put(Frame(seconds - start, picture)):
                    break
        except Exception as found:  # whatever it is: the other thread waits for an end
            where = f"after {count} frames"
            error = VideoError(f"{self.path}: cannot be read {where}: {_reason(found)}")
        self._put(_End(error))

    def _put(self, item: Frame | _End) -> bool:
        """Wait for room; whether anybody still wants it."""
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Iterator[Frame]:
        while True:
            item = self._ready.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    def close(self) -> None:
        """Stop decoding."""
        self._closed.set()
        self._thread.join()
        self._container.close()


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return strerror or str(error).strip() or type(error).__name__


class Course:
    """What became of two videos: the SSIM of each frame, and the worst frames whole.

    Attributes:
        times, similarities: seconds and SSIM of each frame.
        errors: what ended it before its end, and outputs that could not be written.
        interrupted: whether Ctrl-C ended it, or is to end it.
    """

    def __init__(self, keep_worst: int) -> None:
        self.times = array("d")
        self.similarities = array("d")
        self.errors: list[str] = []
        self.interrupted = False
        self._keep = keep_worst
        self._worst: list[tuple[float, int, tuple[np.ndarray, np.ndarray]]] = []

    def add(self, result: dict[str, Any], pictures: tuple[np.ndarray, np.ndarray]) -> None:
        """One more frame."""
        self.times.append(result["time"])
        self.similarities.append(result["ssim"])
        entry = (-result["ssim"], -result["frame"], pictures)
        if len(self._worst) < self._keep:
            heapq.heappush(self._worst, entry)
        elif self._worst and entry[:2] > self._worst[0][:2]:
            heapq.heapreplace(self._worst, entry)

    def worst(self) -> list[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Numbers and pictures of the frames with the least SSIM, the least first."""
        ordered = sorted(self._worst, key=lambda entry: entry[:2], reverse=True)
        return [(-number, pictures) for _, number, pictures in ordered]


def compare_videos(
    first: Video,
    second: Video,
    settings: Settings,
    files: Files,
    course: Course,
    advance: Callable[[int], None] = lambda done: None,
) -> None:
    """Compare frames in their order until one video ends; what is wrong goes to the course.

    The values are those of pairs of pictures, of RGB frames. Frames go together by their number.
    """
    pairs = itertools.zip_longest(first, second)
    try:
        for number, (ours, theirs) in enumerate(pairs):
            if ours is None or theirs is None:
                short, long = (first, second) if ours is None else (second, first)
                raise VideoError(f"{short.path} ends after {number} frames, {long.path} goes on")
            result = _frame(number, ours, theirs, settings)
            course.add(result, (ours.picture, theirs.picture))
            files.add(result)
            advance(number + 1)
            if course.interrupted or files.all_failed:
                break
        else:
            if not course.times:
                raise VideoError(f"{first.path} and {second.path} hold no frames")
    except VideoError as error:
        course.errors.append(str(error))
    except KeyboardInterrupt:
        course.interrupted = True
    finally:
        files.close()
        course.errors += files.failures


def _frame(number: int, ours: Frame, theirs: Frame, settings: Settings) -> dict[str, Any]:
    try:
        values = compare(ours.picture, theirs.picture, settings)
    except PictureError as error:
        raise VideoError(f"frame {number}: {error}") from None
    except MemoryError:
        raise VideoError(f"frame {number}: no memory to compare it") from None
    found = {"frame": number, "time": ours.time} | values
    return {name: found[name] for name in FRAME_FIELDS}
