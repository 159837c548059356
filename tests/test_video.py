"""`ssim-fused video`: values of frames, what is wrong with videos, memory, interruption."""

from __future__ import annotations

import csv
import json
import os
import queue
import re
import signal
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("click")
pytest.importorskip("imagecodecs")
pytest.importorskip("matplotlib")

import av
from evaluation_tables import picture
from PIL import Image
from test_command import call, handlers  # noqa: F401

from ssim_fused import command
from ssim_fused.evaluation.compare import Settings, compare
from ssim_fused.evaluation.video import Video, VideoError


def frames(count, seed=0, size=(64, 80)):
    """Pictures that move; those of another seed differ by noise, the fifth most."""
    for i in range(count):
        still = np.roll(picture(size), 2 * i, axis=1)
        strength = (40 if i == 5 else 4) * bool(seed)
        noise = np.random.default_rng(seed * 1000 + i).integers(
            -strength, strength + 1, still.shape
        )
        yield np.clip(still.astype(int) + noise, 0, 255).astype(np.uint8)


def write(path, pictures, codec="ffv1", format="bgr0", first=0):
    """Lossless unless it is told otherwise, 10 frames a second; the first one may come later."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        stream.pix_fmt = format
        for i, array in enumerate(pictures):
            if i == 0:
                stream.height, stream.width = array.shape[:2]
            deep = array.dtype == np.uint16
            frame = av.VideoFrame.from_ndarray(array, format="rgb48le" if deep else "rgb24")
            frame.pts, frame.time_base = first + i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def videos(tmp_path):
    return [write(tmp_path / f"{seed}.mkv", frames(12, seed)) for seed in range(2)]


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_of_each_frame(tmp_path, videos):
    done = call("video", *videos, "--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json")
    assert done.exit_code == 0, done.stderr
    found = rows(tmp_path / "r.csv")
    pairs = list(zip(frames(12, 0), frames(12, 1)))
    expected = [compare(*pair, Settings()) for pair in pairs]
    assert [float(row["ssim"]) for row in found] == [values["ssim"] for values in expected]
    assert [float(row["l1"]) for row in found] == [values["l1"] for values in expected]
    assert [float(row["time"]) for row in found] == pytest.approx(np.arange(12) / 10)
    lines = [json.loads(line) for line in (tmp_path / "r.json").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12))
    assert "12 frames" in done.stdout
    worst = done.stdout.splitlines()[4]
    assert worst.split()[1] == "5"


def test_seconds_begin_with_the_first_frame(tmp_path):
    path = write(tmp_path / "late.mkv", frames(3), first=50)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).time == pytest.approx(5)
    call("video", path, path, "--csv", tmp_path / "r.csv")
    found = [float(row["time"]) for row in rows(tmp_path / "r.csv")]
    assert found == pytest.approx([0, 0.1, 0.2], abs=1e-3)


def test_any_error_of_a_decoder_ends_a_video(videos, monkeypatch):
    def fail(self, format):
        raise RuntimeError("no such format")

    monkeypatch.setattr(av.VideoFrame, "to_ndarray", fail)
    video = Video(videos[0], 10**6)
    ready = queue.Queue.get
    monkeypatch.setattr(video._ready, "get", lambda: ready(video._ready, timeout=20))
    with pytest.raises(VideoError, match="cannot be read after 0 frames: no such format"):
        next(iter(video))
    video.close()


def test_more_bits_are_kept(tmp_path):
    array = picture((64, 80), dtype=np.uint16) & 0xFFC0  # 10 bits
    path = write(tmp_path / "deep.mkv", [array], format="gbrp10le")
    video = Video(path, 10**6)
    (frame,) = video
    video.close()
    assert frame.picture.dtype == np.uint16
    assert np.abs(frame.picture.astype(int) - array).max() < 2 * 64
    assert len(np.unique(frame.picture)) > 300


def test_plot_and_pictures_of_the_worst_frames(tmp_path, videos):
    plot, folder = tmp_path / "plot.png", tmp_path / "worst"
    words = ["--plot", plot, "--worst-frames", folder, "--worst", "2"]
    assert call("video", *videos, *words).exit_code == 0
    assert Image.open(plot).size == (1200, 420)
    assert len(list(folder.iterdir())) == 2
    sheet = np.asarray(Image.open(folder / "frame-000005.png"))
    assert sheet.shape == (64, 3 * 80 + 2 * 8, 3)
    assert np.array_equal(sheet[:, :80], list(frames(12, 0))[5])
    assert np.array_equal(sheet[:, 88:168], list(frames(12, 1))[5])


def test_luma_without_a_border(tmp_path, videos):
    table, folder = tmp_path / "r.csv", tmp_path / "worst"
    words = ["--luma", "matlab", "--crop-border", "4", "--padding", "valid", "--csv", table]
    assert call("video", *videos, *words, "--worst-frames", folder).exit_code == 0
    settings = Settings(padding="valid", luma="matlab", crop_border=4)
    pairs = zip(frames(12, 0), frames(12, 1))
    expected = [compare(first, second, settings)["ssim"] for first, second in pairs]
    with table.open(newline="") as file:
        assert [float(row["ssim"]) for row in csv.DictReader(file)] == expected
    sheet = np.asarray(Image.open(folder / "frame-000005.png"))
    assert sheet.shape == (56, 2 * 72 + 62 + 2 * 8, 3)  # windows inside: the map is smaller


@pytest.mark.parametrize("name", [r"$\q$.mkv", "\udcff.mkv"])
def test_a_plot_has_the_names_as_they_are(tmp_path, videos, name):
    first = videos[0].rename(tmp_path / name)
    done = call("video", first, videos[1], "--plot", tmp_path / "plot.png", "--quiet")
    assert done.exit_code == 0, done.stderr


def test_fail_under(videos):
    assert call("video", *videos, "--fail-under", "0.1").exit_code == 0
    done = call("video", *videos, "--fail-under", "0.9")
    assert done.exit_code == command.BELOW
    assert re.search(r"^0\.\d+: frame 5$", done.stderr, re.M)
    assert re.search(r"^\d+ of 12 below 0\.9$", done.stderr, re.M)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    return path


def silent(path):
    """A file of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    return path


BAD = {
    "missing": (lambda p: p, "no.mkv: cannot be read: No such file"),
    "text": (lambda p: p.write_text("no video") and p, "cannot be read"),
    "sound": (silent, "holds no video"),
    "size": (lambda p: write(p, frames(3, size=(48, 80))), "differ in size: 80 x 64 and 80 x 48"),
    "short": (lambda p: write(p, frames(7)), "no.mkv ends after 7 frames, "),
    "long": (lambda p: write(p, frames(15)), "0.mkv ends after 12 frames, "),
    "cut": (lambda p: cut(write(p, frames(12))), "no.mkv"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_video_is_named(tmp_path, videos, case):
    make, message = BAD[case]
    done = call("video", videos[0], make(tmp_path / "no.mkv"), "--csv", tmp_path / "r.csv")
    assert done.exit_code == command.INCOMPLETE
    assert message in done.stderr
    if case in ("short", "long", "cut"):  # what came before is there
        assert len(rows(tmp_path / "r.csv")) >= 7


def test_large_frames_are_refused(videos):
    done = call("video", *videos, "--max-pixels", "5000")
    assert done.exit_code == command.INCOMPLETE
    assert "80 x 64 are more pixels than the limit" in done.stderr


def test_what_cannot_be_written_is_named(tmp_path, videos):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    plot = tmp_path / "p.svg"
    plot.symlink_to("/dev/full")
    words = ["--csv", "/dev/full", "--json", tmp_path / "r.json", "--plot", plot]
    done = call("video", *videos, *words, "--worst-frames", "/dev/null/x")
    assert done.exit_code == command.INCOMPLETE
    assert "/dev/full: cannot be written: No space left" in done.stderr
    assert "p.svg: cannot be written" in done.stderr
    assert "/dev/null/x/frame-000005.png: cannot be written" in done.stderr
    assert len((tmp_path / "r.json").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("plot", "message"),
    [
        ("no/p.png", "there is no folder no"),
        ("p.xyz", "must end with one of"),
        ("p", "must end with one of"),
    ],
)
def test_a_plot_that_cannot_be_made_is_refused_first(tmp_path, videos, monkeypatch, plot, message):
    monkeypatch.chdir(tmp_path)
    done = call("video", *videos, "--csv", "r.csv", "--plot", plot)
    assert done.exit_code == command.USAGE
    assert message in done.stderr
    assert not (tmp_path / "r.csv").exists()


@pytest.mark.parametrize("option", ["--csv", "--json", "--plot"])
def test_an_output_that_is_an_input_is_refused(videos, option):
    before = videos[1].read_bytes()
    done = call("video", *videos, option, videos[1])
    assert done.exit_code == command.USAGE
    assert f"would destroy {videos[1]}" in done.stderr
    assert videos[1].read_bytes() == before


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_results_in_place_of_a_picture_are_refused(tmp_path, videos, option):
    path = tmp_path / "photo.png"
    Image.new("L", (8, 8)).save(path)
    before = path.read_bytes()
    done = call("video", *videos, option, path)
    assert done.exit_code == command.USAGE
    assert f"{path}: is a picture" in done.stderr
    assert path.read_bytes() == before


def test_few_frames_are_ahead(tmp_path):
    video = Video(write(tmp_path / "long.mkv", frames(40)), 10**6)
    before = threading.active_count()
    it = iter(video)
    next(it)
    deadline = threading.Event()
    deadline.wait(0.3)
    assert video._ready.qsize() <= 4
    video.close()
    assert threading.active_count() == before - 1


def test_an_interrupted_video_leaves_its_frames(tmp_path, videos, monkeypatch):
    from ssim_fused.evaluation import video as module

    real = module.compare

    def interrupted(*arguments):
        if interrupted.count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        interrupted.count += 1
        return real(*arguments)

    interrupted.count = 0
    monkeypatch.setattr(module, "compare", interrupted)
    done = call("video", *videos, "--csv", tmp_path / "r.csv")
    assert done.exit_code == command.INTERRUPTED
    assert [row["frame"] for row in rows(tmp_path / "r.csv")] == list("01234")
