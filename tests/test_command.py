"""The command `ssim-fused` from end to end: exit codes, resuming, Ctrl-C, torchrun."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("imagecodecs")
pytest.importorskip("pyarrow")

import kills
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
import torch.distributed as dist
from click.testing import CliRunner
from conftest import needs_proc, process_of_rank
from evaluation_tables import picture, save, save_pairs
from PIL import Image

from ssim_fused import command
from ssim_fused.compat import frame_analytics
from ssim_fused.evaluation import run as running
from ssim_fused.evaluation import writers
from ssim_fused.evaluation.compare import Settings
from ssim_fused.evaluation.pairs import Pairs, find_pairs
from ssim_fused.evaluation.pictures import read_picture
from ssim_fused.evaluation.ranks import Ranks
from ssim_fused.evaluation.session import run_session
from ssim_fused.evaluation.summary import Summary

ROOT = Path(__file__).resolve().parent.parent
START = "from ssim_fused.command import main; main()"
OUTPUTS = {"csv": "--csv", "json": "--json", "parquet": "--parquet"}


@pytest.fixture(autouse=True)
def handlers():
    """The command handles signals; the tests' own process takes that back."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


def call(*words):
    """The command in this process: exit code, and what it said."""
    done = CliRunner().invoke(command.group, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done


def start(*words, program=(sys.executable, "-c", START), **environment):
    """The command in a process of its own."""
    return subprocess.Popen(
        [*program, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- what it says, and its exit codes ----


def test_two_pictures(tmp_path):
    a, b = save_pairs(tmp_path, 2)
    done = call("compare", a / "01.png", b / "01.png", "--json", tmp_path / "r.json")
    assert done.exit_code == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert f"{result['ssim']:.6g}" in done.stdout


def test_luma_without_a_border(tmp_path):
    a, b = save_pairs(tmp_path, 3)
    words = ["--luma", "matlab", "--crop-border", "4", "--padding", "valid"]
    assert call("compare", a, b, *words, "--csv", tmp_path / "r.csv").exit_code == 0
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = frame_analytics.ssim(
        *(torch.from_numpy(read_picture(folder / "02.png")).permute(2, 0, 1) for folder in (a, b)),
        luma="matlab", crop_border=4,
    )  # fmt: skip
    assert float(rows[2]["ssim"]) == pytest.approx(expected.item(), abs=1e-6)
    assert [rows[2][name] for name in ("height", "width", "channels")] == ["32", "40", "1"]
    assert (rows[2]["luma"], rows[2]["crop_border"]) == ("matlab", "4")


def test_fail_under(tmp_path):
    a, b = save_pairs(tmp_path, 3)
    call("compare", a, b, "--csv", tmp_path / "r.csv")
    least = min(float(row["ssim"]) for row in rows(tmp_path / "r.csv"))
    equal = call("compare", a, b, "--fail-under", least)
    assert equal.exit_code == 0
    assert "below" not in equal.stderr
    for quiet in ([], ["--quiet"]):
        done = call("compare", a, b, "--fail-under", least + 1e-9, *quiet)
        assert done.exit_code == command.BELOW
        assert done.stderr.splitlines()[-2:] == [
            f"{least:.6f}: {a / '02.png'} and {b / '02.png'}",
            f"1 of 3 below {least + 1e-9}",
        ]


def test_at_most_twenty_below_are_named(tmp_path):
    a, b = kills.save_many(tmp_path, 50)
    done = call("compare", a, b, "--fail-under", "0.9999", "--quiet")
    *named, more, count = done.stderr.splitlines()
    assert len(named) == 20
    assert (more, count) == ("... and 5 more", "25 of 50 below 0.9999")


def test_names_of_the_worst_pairs_are_whole_on_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    a, b = save_pairs(folder, 2)
    shown = re.sub(r"[│\s]", "", call("compare", a, b).stdout)
    for i in range(2):
        assert f"0{i}.png" in shown


@pytest.mark.parametrize("name", ["compare", "video"])
def test_fail_under_what_no_ssim_reaches(tmp_path, name):
    done = call(name, tmp_path, tmp_path, "--fail-under", "98")
    assert done.exit_code == command.USAGE
    assert "'--fail-under': 98.0 is not in the range x<=1" in done.stderr


@pytest.mark.parametrize("name", ["compare", "video"])
def test_fail_under_nan(tmp_path, name):
    done = call(name, tmp_path, tmp_path, "--fail-under", "nan")
    assert done.exit_code == command.USAGE
    assert "nan is not a number" in done.stderr


def test_the_summary_says_how_many_are_too_small_for_ms_ssim(tmp_path):
    a, b = save_pairs(tmp_path, 2)
    said = "MS-SSIM: 2 of {} too small, with a side below 176 pixels"
    assert said.format(2) in call("compare", a, b, "--ms-ssim").stdout
    for folder in (a, b):
        save(folder / "large.png", picture((180, 176)))
    assert said.format(3) in call("compare", a, b, "--ms-ssim").stdout
    for words in ((a, b), (a / "large.png", b / "large.png", "--ms-ssim")):
        assert "too small" not in call("compare", *words).stdout


def test_bad_pictures_are_named_and_counted_and_the_others_done(tmp_path):
    a, b = save_pairs(tmp_path, 6)
    (b / "00.png").unlink()
    (b / "01.png").write_bytes((b / "01.png").read_bytes()[:500])
    save(b / "02.png", picture((9, 9)))
    save(b / "03.png", picture(channels=4))
    csv_path = tmp_path / "r.csv"
    done = call("compare", a, b, "--csv", csv_path, "--fail-under", "1")
    assert done.exit_code == command.INCOMPLETE
    for name, why in (
        (a / "00.png", "has no partner"),
        (b / "01.png", "cannot be read"),
        (f"{a / '02.png'} and {b / '02.png'}: ", "differ in size: 48 x 40 and 9 x 9"),
        (f"{a / '03.png'} and {b / '03.png'}: ", "differ in their number of channels: 3 and 4"),
    ):
        assert any(str(name) in line and why in line for line in done.stderr.splitlines())
    assert "4 of 6 not compared" in done.stderr
    assert "2 compared" in done.stdout
    assert [row["error"] == "" for row in rows(csv_path)] == [False] * 4 + [True] * 2


def test_values_beyond_the_range_name_the_pair_and_the_option(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "x.npy", 3 * picture(dtype="float32"))
    pair = [tmp_path / name / "x.npy" for name in ("a", "b")]
    done = call("compare", tmp_path / "a", tmp_path / "b")
    assert done.exit_code == command.INCOMPLETE
    assert f"{pair[0]} and {pair[1]}: floating-point values" in done.stderr
    assert "--data-range" in done.stderr
    assert call("compare", *pair, "--data-range", "3").exit_code == 0


def test_warnings_of_decoders_are_not_printed(tmp_path):
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        Image.fromarray(picture()).save(folder / "p.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff")
        # a tag whose value lies beyond the file's end
        tifffile.imwrite(folder / "t.tif", picture(), extratags=[(33723, "B", 3, b"abc", True)])
        content = (folder / "t.tif").read_bytes()
        at = content.index(struct.pack("<HHI", 33723, 1, 3))
        (folder / "t.tif").write_bytes(
            content[: at + 4] + struct.pack("<II", 9, 10**6) + content[at + 12 :]
        )
        # a profile that libpng does not know
        Image.fromarray(picture()).save(folder / "i.png", icc_profile=b"no profile" * 20)
    done = start("compare", *folders, "--quiet")
    _, err = done.communicate(timeout=60)
    assert (done.returncode, err) == (0, "")


def test_a_bomb_is_refused(tmp_path):
    a, b = save_pairs(tmp_path, 1)
    done = call("compare", a, b, "--max-pixels", "100")
    assert done.exit_code == command.INCOMPLETE
    assert "more than the limit of 100" in done.stderr


def test_a_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    a, b = save_pairs(tmp_path, 2)
    done = call("compare", a, b, "--csv", "/dev/full", "--json", tmp_path / "r.json")
    assert done.exit_code == command.INCOMPLETE
    assert "/dev/full: cannot be written: No space left on device" in done.stderr
    assert len((tmp_path / "r.json").read_text().splitlines()) == 2


def test_a_folder_that_is_not_there_for_results(tmp_path):
    a, b = save_pairs(tmp_path, 1)
    done = call("compare", a, b, "--csv", tmp_path / "no" / "r.csv")
    assert done.exit_code == command.INCOMPLETE
    assert "No such file or directory" in done.stderr


def test_a_folder_that_is_not_there_for_a_page(tmp_path):
    a, b = save_pairs(tmp_path, 1)
    done = call("compare", a, b, "--html", tmp_path / "no/p.html", "--csv", tmp_path / "r.csv")
    assert done.exit_code == command.USAGE
    assert f"there is no folder {tmp_path / 'no'}" in done.stderr
    assert not (tmp_path / "r.csv").exists()


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    a, b = save_pairs(tmp_path, 1)
    page = tmp_path / "p.html"
    page.write_text("old")

    def full(path, text, encoding):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(page), "write_text", full)
    done = call("compare", a, b, "--html", page)
    assert done.exit_code == command.INCOMPLETE
    assert f"{page}: cannot be written: No space left on device" in done.stderr
    assert page.read_bytes() == b"old"
    assert list(tmp_path.glob("p.*")) == [page]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "no.png"], "give two pictures"),
        (["compare", "no.csv"], "cannot be read"),
        (["compare", ".", "no.png"], "is a folder"),
        (["compare", "a", "b", "--data-range", "-1"], "data_range must be positive"),
        (["compare", "a", "b", "--padding", "zeros"], "'zeros' is not one of"),
        (["compare", "a", "b", "--resume"], "--resume goes with"),
        (["compare", "a", "b", "--threads", "0"], "0 is not in the range"),
        (["compose"], "No such command"),
    ],
)
def test_wrong_usage(words, message):
    done = call(*words)
    assert done.exit_code == command.USAGE
    assert message in done.stderr


def two_lists(folder):
    """The pairs of a/ and b/ as CSV and as Parquet, and another name of the former."""
    names = [f"{i:02}.png" for i in range(2)]
    (folder / "l.csv").write_text("".join(f"a/{name},b/{name}\n" for name in names))
    columns = {"input": [f"a/{name}" for name in names], "target": [f"b/{name}" for name in names]}
    pq.write_table(pa.table(columns), folder / "l.parquet")
    (folder / "link.csv").symlink_to("l.csv")
    os.link(folder / "l.csv", folder / "hard.csv")


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("l.csv --csv l.csv", "l.csv"),
        ("l.csv --csv ./l.csv --resume", "l.csv"),
        ("l.csv --json link.csv", "l.csv"),
        ("link.csv --html l.csv", "l.csv"),
        ("l.csv --json hard.csv", "l.csv"),
        ("l.parquet --parquet l.parquet", "l.parquet"),
        ("l.csv --csv a/00.png", "a/00.png"),
        ("a b --json b/01.png", "b/01.png"),
        ("a/00.png b/00.png --html b/00.png", "b/00.png"),
        ("l.csv --csv r --json r", "r"),
        ("l.csv --csv r --html ./r", "r"),
        ("l.csv --parquet r --csv r.part", "r"),
        ("l.csv --csv r --json r.rank1", "r"),
    ],
)
def test_an_output_that_would_destroy_a_file_is_refused(tmp_path, monkeypatch, words, lost):
    save_pairs(tmp_path, 2)
    two_lists(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    done = call("compare", *words.split())
    assert done.exit_code == command.USAGE
    assert "destroy" in done.stderr
    assert lost in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    assert call("compare", "l.csv", "--csv", "/dev/null", "--json", "/dev/null").exit_code == 0


def test_a_list_that_has_become_empty_is_named(monkeypatch):
    pairs = Pairs([], 1)
    monkeypatch.setattr("ssim_fused.evaluation.pairs.find_pairs", lambda *paths: pairs)
    done = call("compare", "l.csv")
    assert done.exit_code == command.INCOMPLETE
    assert done.stderr.splitlines()[-1] == "l.csv: no pair was compared"


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (RuntimeError("no luck"), command.INCOMPLETE, "ssim-fused: ended by RuntimeError: no luck"),
        (OSError(5, "Input/output error"), command.INCOMPLETE, "ssim-fused: ended by OSError: "),
        (KeyboardInterrupt(), command.INTERRUPTED, "interrupted"),
    ],
)
def test_no_other_end_has_the_code_of_below(monkeypatch, raised, code, message):
    def fail(*arguments):
        raise raised

    monkeypatch.setattr("ssim_fused.evaluation.pairs.find_pairs", fail)
    done = call("compare", "a", "b")
    assert done.exit_code == code
    assert done.stderr.splitlines()[-1].startswith(message)
    assert ("Traceback" in done.stderr) == (code == command.INCOMPLETE)


def test_a_reader_who_leaves_changes_no_exit_code(tmp_path):
    a, b = save_pairs(tmp_path, 2)
    done = start("compare", a, b)
    done.stdout.close()
    assert done.wait(timeout=60) == 0, done.stderr.read()
    done.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("compare nope1 nope2 >&- 2>&-", command.INCOMPLETE),
        ("compare a b --bogus 2>&-", command.USAGE),
        ("compare a b --csv /dev/full --quiet >/dev/full 2>&1", command.INCOMPLETE),
        ("compare a b >/dev/full 2>&1", command.INCOMPLETE),
        ("compare a b --fail-under 1 2>&-", command.BELOW),
        ("compare a b 2>/dev/full", 0),
        ("info | true", 0),
    ],
)
def test_no_stream_that_fails_changes_what_the_code_says(tmp_path, words, code):
    save_pairs(tmp_path, 2)
    line = f'cd {tmp_path}; set -o pipefail; "{sys.executable}" -c "{START}" {words}'
    done = start("-c", line, program=("bash",))
    _, err = done.communicate(timeout=60)
    assert done.returncode == code
    assert "Traceback" not in err


# ---- resuming ----


@pytest.mark.parametrize("kind", OUTPUTS)
def test_resuming_does_what_is_missing_and_retries_errors(tmp_path, kind, monkeypatch):
    a, b = save_pairs(tmp_path, 5)
    whole = save(b / "03.png", picture(seed=9)).read_bytes()
    (b / "03.png").write_bytes(whole[:99])
    (b / "04.png").rename(tmp_path / "later.png")
    path = tmp_path / f"r.{kind}"
    words = ["compare", a, b, OUTPUTS[kind], path]
    assert call(*words).exit_code == command.INCOMPLETE
    before = list(writers.read_results(kind, path))
    (b / "03.png").write_bytes(whole)
    (tmp_path / "later.png").rename(b / "04.png")
    compared = []
    real = running.result_of
    monkeypatch.setattr(
        running, "result_of", lambda pair, s: compared.append(pair.input) or real(pair, s)
    )
    done = call(*words, "--resume")
    assert done.exit_code == 0, done.stderr
    assert sorted(compared) == [str(a / "03.png"), str(a / "04.png")]
    assert "5 compared" in done.stdout
    after = list(writers.read_results(kind, path))
    assert after[:3] == before[:3]
    assert [result["error"] for result in after] == [None] * 5
    assert list(tmp_path.glob("r.*")) == [path]
    assert call(*words, "--resume").exit_code == 0
    assert list(writers.read_results(kind, path)) == after


@pytest.mark.parametrize("kind", OUTPUTS)
def test_resuming_on_a_full_disk(tmp_path, kind, monkeypatch):
    a, b = save_pairs(tmp_path, 2)
    path = tmp_path / f"r.{kind}"
    words = ["compare", a, b, OUTPUTS[kind], path]
    call(*words)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for writer in (writers.CsvWriter, writers.JsonWriter, writers.ParquetWriter):
        monkeypatch.setattr(writer, "write", full)
    done = call(*words, "--resume")
    assert done.exit_code == command.INCOMPLETE
    assert done.stderr.splitlines()[-1] == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", OUTPUTS)
def test_resuming_compares_again_what_has_changed(tmp_path, kind):
    a, b = save_pairs(tmp_path, 3)
    words = ["compare", a, b, OUTPUTS[kind], tmp_path / f"r.{kind}", "--fail-under", "0.5"]
    assert call(*words).exit_code == 0
    for place, name in ((b, "00.png"), (a, "01.png")):
        (place / name).write_bytes(b"")
        later = time.time() + 5  # whatever the file system's clock tells apart
        os.utime(place / name, (later, later))
    done = call(*words, "--resume")
    assert done.exit_code == command.INCOMPLETE
    assert "2 of 3 not compared" in done.stderr


def test_several_outputs_resume_from_what_any_has(tmp_path, monkeypatch):
    a, b = save_pairs(tmp_path, 4)
    words = ["compare", a, b, "--csv", tmp_path / "r.csv", "--json", tmp_path / "r.json"]
    assert call(*words).exit_code == 0
    expected = list(writers.read_results("csv", tmp_path / "r.csv"))
    lines = (tmp_path / "r.csv").read_text().splitlines(keepends=True)
    (tmp_path / "r.csv").write_text("".join(lines[:3]) + lines[3][:20])
    monkeypatch.setattr(running, "result_of", pytest.fail)
    assert call(*words, "--resume", "--parquet", tmp_path / "r.parquet").exit_code == 0
    for kind in OUTPUTS:
        assert list(writers.read_results(kind, tmp_path / f"r.{kind}")) == expected


@pytest.mark.parametrize(
    "other",
    [
        ["--padding", "valid"], ["--data-range", "1"], ["--ms-ssim"], ["--luma", "bt601"],
        ["--crop-border", "1"],
    ],
    ids=str,
)  # fmt: skip
def test_resuming_with_other_settings_is_refused(tmp_path, other):
    a, b = save_pairs(tmp_path, 1, size=(176, 180))
    words = ["compare", a, b, "--csv", tmp_path / "r.csv"]
    call(*words)
    before = (tmp_path / "r.csv").read_text()
    done = call(*words, "--resume", *other)
    assert done.exit_code == command.USAGE
    assert "was made with other settings" in done.stderr
    assert (tmp_path / "r.csv").read_text() == before
    assert list(tmp_path.glob("r.*")) == [tmp_path / "r.csv"]


def test_resuming_counts_the_pairs_of_the_list_alone(tmp_path):
    a, b = save_pairs(tmp_path, 3)
    words = ["compare", a, b, "--csv", tmp_path / "r.csv", "--fail-under", "0.999"]
    assert call(*words).exit_code == command.BELOW
    for name in ("01.png", "02.png"):
        (a / name).unlink()
        (b / name).unlink()
    done = call(*words, "--resume")
    assert done.exit_code == 0, done.stderr
    assert "1 compared" in done.stdout
    assert len(rows(tmp_path / "r.csv")) == 3


def test_without_resume_results_are_made_anew(tmp_path):
    a, b = save_pairs(tmp_path, 2)
    for _ in range(2):
        call("compare", a, b, "--csv", tmp_path / "r.csv")
        assert len(rows(tmp_path / "r.csv")) == 2


# ---- interruption ----


def long_list(folder, count):
    """A list that names two pairs again and again, by other names."""
    a, b = save_pairs(folder, 2)
    lines = [f"{a}/0{i % 2}.png,{b}/{'./' * (i % 3)}0{i % 2}.png" for i in range(count)]
    path = folder / "list.csv"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize(
    ("kind", "how"),
    [("csv", signal.SIGINT), ("parquet", signal.SIGTERM)],
)
def test_interrupted_results_are_readable(tmp_path, kind, how):
    path, watched = tmp_path / f"r.{kind}", tmp_path / "w.csv"
    outputs = {"--csv": watched, OUTPUTS[kind]: path}
    if kind == "csv":
        watched = path
    options = [word for pair in outputs.items() for word in pair]
    running = start("compare", long_list(tmp_path, 100_000), *options)
    deadline = time.monotonic() + 60
    while not (watched.exists() and watched.stat().st_size > 10_000):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.05)
    running.send_signal(how)
    out, err = running.communicate(timeout=60)
    assert running.returncode == command.INTERRUPTED, err
    assert "interrupted" in err
    found = list(writers.read_results(kind, path))
    assert 50 < len(found) < 100_000
    assert f"{len(found)} compared" in out
    assert all(result["ssim"] for result in found)


# ---- names ----


@pytest.mark.parametrize("name", ["[id]/x", ":smile:", "dir[/x]", "[red]x"])
def test_names_are_printed_as_they_are(tmp_path, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "500")
    a, b = save_pairs(tmp_path, 2)
    for place in (a, b):
        (place / f"{name}.png").parent.mkdir(exist_ok=True)
        (place / "01.png").rename(place / f"{name}.png")
    (a / f"{name}.alone.png").touch()
    done = call("compare", a, b)
    assert f"{a}/{name}.png" in done.stdout
    assert f"{a}/{name}.alone.png: has no partner" in done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="names are UTF-8 there")
def test_names_that_are_not_utf8(tmp_path):
    a, b = (tmp_path / f"{side}\udce9" for side in "ab")  # a byte alone
    for old, new in zip(save_pairs(tmp_path, 2), (a, b)):
        old.rename(new)
    lines = [b"%s/0%d.png,%s/0%d.png\n" % (os.fsencode(a), i, os.fsencode(b), i) for i in range(2)]
    (tmp_path / "l.csv").write_bytes(b"".join(lines))
    words = [word for kind in OUTPUTS for word in (OUTPUTS[kind], tmp_path / f"r.{kind}")]
    strict = {"PYTHONIOENCODING": "utf-8:strict", "COLUMNS": "500"}
    for more in ([], ["--resume", "--html", tmp_path / "r.html"]):
        done = start("compare", tmp_path / "l.csv", *words, *more, **strict)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 0, err
        assert r"\udce9/" in out
        assert "2 compared" in out
        for kind in OUTPUTS:
            assert len(list(writers.read_results(kind, tmp_path / f"r.{kind}"))) == 2
    (b / "00.png").unlink()
    done = start("compare", a, b, **strict)
    out, err = done.communicate(timeout=60)
    assert done.returncode == command.INCOMPLETE
    assert "has no partner" in err


# ---- many processes ----


# ends as the command does, but a page takes long
SLOW_PAGE = """
import time
from ssim_fused import command
from ssim_fused.compat import frame_analytics

write = command._write_page
command._write_page = lambda *given: (time.sleep(2), write(*given))
command.main()
"""


def test_torchrun_shares_merges_and_resumes(tmp_path):
    a, b = save_pairs(tmp_path, 7)
    (b / "05.png").write_text("not a picture")
    path = tmp_path / "r.csv"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    words = ["compare", a, b, "--csv", path]
    page = tmp_path / "page.html"
    (tmp_path / "slow.py").write_text(SLOW_PAGE)
    done = start(tmp_path / "slow.py", *words, "--html", page, program=torchrun)
    out, err = done.communicate(timeout=120)
    assert done.returncode != 0
    # torchrun ends the others where a rank fails: rank 0 does, and only once all is written
    first = err[err.index("Root Cause") :]
    assert re.search(r"rank +: (\d)", first)[1] == "0"
    assert re.search(r"exitcode +: (\d+)", first)[1] == str(command.INCOMPLETE)
    assert "interrupted" not in err
    assert "</html>" in page.read_text()
    assert "1 of 7 not compared" in err
    assert "6 compared" in out
    assert out.count("compared") == 1
    assert list(tmp_path.glob("r.*")) == [path]
    assert call("compare", a, b, "--csv", tmp_path / "alone.csv").exit_code == command.INCOMPLETE
    key = lambda row: row["input"]  # noqa: E731
    shared = rows(path)
    assert sorted(shared, key=key) == sorted(rows(tmp_path / "alone.csv"), key=key)
    # as if killed: two of rank 1's results alone, and no merged file
    save(b / "05.png", picture(seed=5))
    lines = path.read_text().splitlines(keepends=True)
    path.rename(tmp_path / "r.csv.rank1")
    (tmp_path / "r.csv.rank1").write_text("".join(lines[:3]))
    done = start("-m", "ssim_fused.command", *words, "--resume", program=torchrun)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert "7 compared" in out
    assert len(rows(path)) == 7
    assert path.read_text().splitlines(keepends=True)[:3] == lines[:3]
    assert list(tmp_path.glob("r.*")) == [path]


# the command, whose rank 1 is late when it begins anew: rank 0 must not take its old address
LATE = """
import os, time
from ssim_fused import command
from ssim_fused.compat import frame_analytics

if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "1"):
    time.sleep(1)
command.main()
"""


@needs_proc
def test_a_killed_rank_is_replaced(tmp_path):
    a, b = kills.save_many(tmp_path, 4000)
    path, part = tmp_path / "r.csv", tmp_path / "r.csv.rank1"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    options = ["--nproc-per-node", "2", "--max-restarts", "1", tmp_path / "late.py"]
    (tmp_path / "late.py").write_text(LATE)
    running = start(*options, "compare", a, b, "--csv", path, "--resume", program=torchrun)
    try:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 10_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process_of_rank(running.pid, 1), signal.SIGKILL)
        out, err = running.communicate(timeout=60)
    finally:
        running.terminate()  # it ends its ranks
    assert running.returncode == 0, err
    assert "exitcode: -9" in err
    assert "4000 compared" in out
    assert len({row["input"] for row in rows(path)}) == len(rows(path)) == 4000
    assert list(tmp_path.glob("r.*")) == [path]


def test_parts_of_ranks_are_told_from_other_files(tmp_path):
    a, b = save_pairs(tmp_path, 1)
    path = tmp_path / "r[1].csv"
    others = ["r[1].csv.ranking-2024", "r[1].csv.rank-1", "r[1].csv.rank2x.part", "r1.csv.rank1"]
    parts = ["r[1].csv.rank0", "r[1].csv.rank12.part"]
    for name in (*others, *parts):
        (tmp_path / name).touch()
    assert Ranks().parts({"parquet": path})["parquet"] == [
        tmp_path / "r[1].csv.rank0",
        tmp_path / "r[1].csv.rank12",
    ]
    assert call("compare", a, b, "--parquet", path).exit_code == 0
    assert {p.name for p in tmp_path.glob("r*")} == {path.name, *others}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ("RANK=1 WORLD_SIZE=2", "WORLD_SIZE is 2 without MASTER_ADDR, MASTER_PORT"),
        ("WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=1", "WORLD_SIZE is 2 without RANK"),
        ("RANK=1 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=", "MASTER_PORT must be a number"),
        ("RANK=one WORLD_SIZE=2", "RANK must be a number, got 'one'"),
        ("WORLD_SIZE=", "WORLD_SIZE must be a number, got ''"),
        ("RANK=2", "no RANK 2 where WORLD_SIZE is 1"),
        ("RANK=-1 WORLD_SIZE=2", "no RANK -1 where WORLD_SIZE is 2"),
        ("RANK=0 WORLD_SIZE=0", "no RANK 0 where WORLD_SIZE is 0"),
        ("LOCAL_WORLD_SIZE=abc", "LOCAL_WORLD_SIZE must be a number, got 'abc'"),
        ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE must be positive, got 0"),
    ],
)
def test_ranks_without_torchrun_are_refused(tmp_path, monkeypatch, environment, message):
    for name, value in (word.split("=") for word in environment.split()):
        monkeypatch.setenv(name, value)
    done = call("compare", *save_pairs(tmp_path, 3))
    assert done.exit_code == command.USAGE
    assert message in done.stderr


def test_ranks_wait_longer_for_a_share_than_for_each_other(monkeypatch):
    store, begun = dist.HashStore(), {}
    store.set_timeout(timedelta(milliseconds=100))
    monkeypatch.setattr(dist, "TCPStore", lambda *where, **how: store)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: begun.update(given))
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="timeout"):
        Ranks()
    assert not begun
    store.set("attempt 0/rank 1", "")
    Ranks()
    assert begun["timeout"].days >= 7


class First(Ranks):
    """The first of two processes; the other one says what it does."""

    def __init__(self):
        self.rank, self.size = 0, 2

    def _gathered(self, value):
        return [value, None if value is None else (Summary(), [], False)]

    def wait(self):
        pass


def share_of_first(pairs, outputs, ranks=None):
    """What the first of two processes does; the other one has done its part or not."""
    outcome = running.Outcome()
    run_session(
        pairs, Settings(), outputs, ranks or First(),
        resuming=False, threads=1, outcome=outcome, show=lambda done, total: None,
    )  # fmt: skip
    return outcome


@pytest.mark.parametrize("kind", OUTPUTS)
def test_parts_on_another_node_are_named(tmp_path, kind):
    a, b = save_pairs(tmp_path, 4)
    path = tmp_path / f"r.{kind}"
    outcome = share_of_first(find_pairs(a, b), {kind: path})
    (failure,) = outcome.failures
    assert failure.startswith(f"{path}.rank1: is not there")
    assert len(list(writers.read_results(kind, path))) == 2


class Crashed(First):
    """It is killed before it merges."""

    def merge(self, *arguments):
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_crash_of_ranks_leaves_nothing_of_an_older_run(tmp_path, kind):
    a, b = save_pairs(tmp_path, 4)
    path = tmp_path / f"r.{kind}"
    words = ["compare", a, b, OUTPUTS[kind], path]
    call(*words)
    for place in b.iterdir():  # other pictures by the same names
        save(place, picture(seed=9))
    with pytest.raises(KeyboardInterrupt):
        share_of_first(find_pairs(a, b), {kind: path}, Crashed())
    assert not path.exists()
    assert call(*words, "--resume").exit_code == 0
    found = {result["input"]: result for result in writers.read_results(kind, path)}
    assert [found[pair.input] for pair in find_pairs(a, b).each] == [
        running.result_of(pair, Settings()) for pair in find_pairs(a, b).each
    ]


def test_a_killed_table_is_resumed(tmp_path):
    """As torchrun's ranks leave it: a journal of one that was killed, a table of another."""
    a, b = save_pairs(tmp_path, 5)
    path = tmp_path / "r.parquet"
    assert call("compare", a, b, "--parquet", path).exit_code == 0
    expected = list(writers.read_results("parquet", path))
    path.unlink()
    writer = writers.open_writer("parquet", tmp_path / "r.parquet.rank0")
    writer.write(expected[:2])  # without a close
    writer = writers.open_writer("parquet", tmp_path / "r.parquet.rank1")
    writer.write(expected[3:4])
    writer.close()
    done = call("compare", a, b, "--parquet", path, "--resume")
    assert done.exit_code == 0
    assert "5 compared" in done.output
    order = lambda result: result["input"]  # noqa: E731
    assert sorted(writers.read_results("parquet", path), key=order) == expected
    assert list(tmp_path.glob("r.*")) == [path]


# ---- the rest ----


def test_info():
    from ssim_fused.__main__ import report

    assert call("info").stdout.strip() == report()


def test_bench(monkeypatch):
    from ssim_fused import _bench

    monkeypatch.setattr(_bench, "SHAPES", ((1, 1, 32, 32),))
    monkeypatch.setattr(_bench, "_AT_LEAST", 1e-4)
    done = call("bench")
    assert done.exit_code == 0
    assert done.stdout.count("1x1x32x32") == 2
    monkeypatch.setattr(_bench, "conv2d_loss", lambda x, y: (x - y).square().mean())
    with pytest.raises(RuntimeError, match="differ"):
        list(_bench.measure())


def printed(code):
    """The last line that a program prints."""
    done = start(program=(sys.executable, "-c", code))
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    return out.splitlines()[-1]


def test_importing_the_package_loads_none_of_it():
    heavy = ["PIL", "click", "rich", "pyarrow", "matplotlib", "ssim_fused.evaluation"]
    code = f"""
import torch, sys
before = set(sys.modules)
import ssim_fused
print(before.isdisjoint({heavy}), [name for name in {heavy} if name in sys.modules])
"""
    assert printed(code) == "True []"


def test_info_loads_no_decoders():
    heavy = ["matplotlib", "pyarrow", "PIL", "imagecodecs"]
    code = f"""
import sys
from ssim_fused.command import group
group(["info"], standalone_mode=False)
print([name for name in {heavy} if name in sys.modules])
"""
    assert printed(code) == "[]"


@pytest.mark.parametrize(
    ("words", "missing"), [(["info"], "click"), (["compare", "a", "b"], "imagecodecs")]
)
def test_without_the_extra_one_line_says_what_to_install(tmp_path, words, missing):
    hide = f"""
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name: None if name == {missing!r} else find_spec(name)
"""
    done = start(*words, program=(sys.executable, "-c", hide + START))
    out, err = done.communicate(timeout=60)
    assert (out, done.returncode) == ("", command.USAGE)
    packages = "click rich numpy pillow tifffile imagecodecs pyarrow"
    assert err == f"ssim-fused: this needs {missing}: pip install {packages}\n"
