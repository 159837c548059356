"""Pictures from files, pairs, results and their files: what `ssim-fused compare` is made of."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import struct
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import ssim_fused

pytest.importorskip("PIL")
pytest.importorskip("tifffile")
pytest.importorskip("imagecodecs")
pytest.importorskip("pyarrow")

import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
from evaluation_tables import picture, save, save_pairs
from PIL import Image

from ssim_fused.compat import frame_analytics
from ssim_fused.evaluation import run, writers
from ssim_fused.evaluation.compare import FIELDS, Settings, compare, compare_files
from ssim_fused.evaluation.pairs import PairsError, find_pairs
from ssim_fused.evaluation.pictures import Inks, PictureError, read_picture
from ssim_fused.evaluation.summary import Summary

# ---- pictures ----

U8, U16 = np.uint8, np.uint16


@pytest.mark.parametrize(
    ("suffix", "channels", "dtype"),
    [
        (".png", 0, U8), (".png", 2, U8), (".png", 3, U8), (".png", 4, U8),
        (".png", 0, U16), (".png", 3, U16),
        (".tif", 0, U8), (".tif", 3, U8), (".tif", 0, U16), (".tif", 3, U16),
        (".tif", 3, np.float32),
        (".webp", 3, U8), (".webp", 4, U8),
        (".npy", 0, U8), (".npy", 3, U16), (".npy", 3, np.float16), (".npy", 1, np.float64),
    ],
)  # fmt: skip
def test_every_bit_is_read(tmp_path, suffix, channels, dtype):
    array = picture(channels=channels, dtype=dtype)
    found = read_picture(save(tmp_path / f"p{suffix}", array))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array if channels else array[..., None])


def test_jpeg(tmp_path):
    array = picture()
    path = save(tmp_path / "p.jpg", array)
    with Image.open(path) as image:
        assert np.array_equal(read_picture(path), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA"])
def test_what_stands_for_colours_is_read_as_colours(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / "p.png")
    image.save(tmp_path / "p.tif")
    meant = image.convert({"1": "L", "P": "RGB"}.get(mode, mode))
    expected = np.asarray(meant).reshape(40, 48, -1)
    for name in ("p.png", "p.tif"):
        assert np.array_equal(read_picture(tmp_path / name), expected)


def test_other_byte_order_and_planes_of_a_tiff(tmp_path):
    array = picture(dtype=U16)
    planes = array.transpose(2, 0, 1)
    tifffile.imwrite(
        tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate", byteorder=">"
    )
    assert np.array_equal(read_picture(tmp_path / "p.tif"), array)
    np.save(tmp_path / "p.npy", array.astype(">u2"))
    found = read_picture(tmp_path / "p.npy")
    assert found.dtype.isnative
    assert np.array_equal(found, array)


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "CMYK"])
def test_other_spaces_of_a_tiff_are_read_as_colours(tmp_path, mode):
    smooth = np.stack([np.add.outer(np.arange(40), np.arange(48)) + 40 * i for i in range(3)], -1)
    image = Image.fromarray(smooth.astype(U8))
    image.convert(mode).save(tmp_path / "p.tif")
    found = read_picture(tmp_path / "p.tif")
    if mode == "CMYK":
        assert isinstance(found, Inks)
        assert np.array_equal(found, np.asarray(image.convert(mode)))
    else:
        assert np.abs(found.astype(int) - smooth).max() <= 8  # what eight bits of LAB come to


@pytest.mark.parametrize("dtype", [U8, U16])
def test_white_is_zero(tmp_path, dtype):
    array = picture(channels=0, dtype=dtype)
    most = np.iinfo(dtype).max
    tifffile.imwrite(tmp_path / "p.tif", most - array, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "p.tif")[..., 0], array)


def test_inks_are_not_compared_with_light(tmp_path):
    image = Image.fromarray(picture())
    paths = [tmp_path / name for name in ("cmyk.jpg", "cmyk.tif", "rgba.png")]
    for path in paths[:2]:
        image.convert("CMYK").save(path)
    image.convert("RGBA").save(paths[2])
    for path in paths[:2]:
        found = compare_files(path, paths[2], Settings())
        assert found["error"].endswith("differ in their colours: CMYK and RGBA")
    assert compare_files(*paths[:2], Settings())["ssim"] > 0.8


def png_header(width, height):
    """A PNG that promises much and holds nothing."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body + bytes(40)


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path


def bomb(path):
    """A file whose header promises 4e9 pixels."""
    if path.suffix == ".png":
        path.write_bytes(png_header(65535, 65535))
    elif path.suffix == ".npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|u1", "fortran_order": False, "shape": (65535, 65535)}
            )
            file.truncate(1 << 33)  # a hole: takes no room
    else:
        Image.new("L", (8000, 8000)).save(path)
    return path


def several(path, **how):
    """A file of two pictures."""
    first, second = (Image.fromarray(picture(seed=i)) for i in range(2))
    first.save(path, save_all=True, append_images=[second], **how)
    return path


def tiff(path, array, **how):
    tifffile.imwrite(path, array, **how)
    return path


def long_file(path):
    """More than may be in memory, and no picture: a hole, which takes no room."""
    with path.open("wb") as file:
        file.truncate(1 << 36)
    return path


def without(path, code, **how):
    """A TIFF whose first entry of a tag is zero, as in sparse files."""
    tiff(path, picture(channels=0), **({} if "tile" in how else {"rowsperstrip": 8}), **how)
    with tifffile.TiffFile(path, mode="r+b") as file:
        tag = file.pages[0].tags[code]
        tag.overwrite((0, *tag.value[1:]))
    return path


BAD = {
    "missing": ("p.png", lambda path: path, "no such file"),
    "folder": ("p.png", lambda path: path.mkdir() or path, "is not a file"),
    "device": ("p", lambda path: path.symlink_to("/dev/zero") or path, "is not a file"),
    "empty": ("p.png", lambda path: path.touch() or path, "is not a PNG"),
    "text": ("p.png", lambda path: path.write_text("hello") and path, "is not a PNG"),
    "header": (
        "p.png",
        lambda p: p.write_bytes(png_header(9, 9)) and p,
        "cannot be read",
    ),
    **{
        f"truncated {suffix}": (f"p{suffix}", lambda p: cut(save(p, picture())), "cannot be read")
        for suffix in (".png", ".jpg", ".tif", ".webp", ".npy")
    },
    "truncated JPEG in a TIFF": (
        "p.tif",
        lambda p: cut(tiff(p, picture(channels=0), compression="jpeg")),
        "cannot be read: a part of its pixels is not in the file",
    ),
    **{
        f"no {what}": (
            "p.tif",
            lambda p, code=code, how=how: without(p, code, **how),
            "cannot be read: a part of its pixels is not in the file",
        )
        for what, code, how in (
            ("offset", 273, {}),
            ("length", 279, {"compression": "zlib"}),
            ("tile", 324, {"tile": (16, 16)}),
        )
    },
    "bomb .png": ("p.png", bomb, "more than the limit"),
    "bomb .npy": ("p.npy", bomb, "more than the limit"),
    "bomb .tif": ("p.tif", bomb, "more than the limit"),
    "bomb .jpg": ("p.jpg", bomb, "more than the limit"),
    "two .tif": ("p.tif", several, "holds 2 pictures"),
    "two .webp": ("p.webp", several, "holds 2 pictures"),
    "two .png": ("p.png", several, "holds 2 pictures"),
    "a .png and an animation": (
        "p.png",
        lambda p: several(p, default_image=True),
        "holds 2 pictures",
    ),
    "long": ("p.png", long_file, "is not a PNG"),
    "long .png": (
        "p.png",
        lambda p: os.truncate(bomb(p), 1 << 36) or p,
        "more than the limit",
    ),
    "12 bits": (
        "p.tif",
        lambda p: tiff(p, np.zeros((8, 8), U16), bitspersample=12),
        "has 12 bits a value",
    ),
    "white is zero": (
        "p.tif",
        lambda p: tiff(p, np.zeros((8, 8), np.float32), photometric="miniswhite"),
        "has white as zero in 1 x float32",
    ),
    "many channels .tif": (
        "p.tif",
        lambda p: tiff(p, np.zeros((8, 8, 5), U8), photometric="minisblack", planarconfig=1),
        "at most 4 channels, got shape (8, 8, 5)",
    ),
    "int32": ("p.npy", lambda p: save(p, np.zeros((4, 4), np.int32)), "must hold uint8"),
    "object": ("p.npy", lambda p: save(p, np.array([[{}]])), "cannot be read"),
    "many channels": ("p.npy", lambda p: save(p, np.zeros((4, 4, 5), U8)), "at most 4 channels"),
    "1-D": ("p.npy", lambda p: save(p, np.zeros(4, U8)), "must be (H, W)"),
    "no pixels": ("p.npy", lambda p: save(p, np.zeros((0, 4), U8)), "must be (H, W)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_named(tmp_path, case):
    name, make, message = BAD[case]
    path = make(tmp_path / name)
    with pytest.raises(PictureError) as caught:
        read_picture(path, max_pixels=10_000_000)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_channels_of_a_tiff_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(tifffile.TiffPage, "asarray", pytest.fail)
    planes = np.zeros((5, 8, 8), U8)
    path = tiff(tmp_path / "p.tif", planes, photometric="minisblack", planarconfig=2)
    with pytest.raises(PictureError, match="at most 4 channels"):
        read_picture(path)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    """The bytes of a file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    names = [f"p{suffix}" for suffix in (".png", ".jpg", ".tif", ".webp", ".npy")]
    return {name: save(folder / name, picture((9, 11))).read_bytes() for name in names}


edits = st.lists(
    st.tuples(
        st.sampled_from(["put", "cut", "insert", "repeat"]),
        st.floats(0, 1),  # where, as a share of the file
        st.sampled_from([b"\0", b"\xff", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
        | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=4,
)


def spoil(data: bytes, edits) -> bytes:
    for how, where, content in edits:
        at = int(where * len(data))
        rest = {"put": at + len(content), "cut": at + 7 * len(content)}.get(how, at)
        more = {"cut": b"", "repeat": data[at : at + 32]}.get(how, content)
        data = data[:at] + more + data[rest:]
    return data


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True, database=None)
@hypothesis.given(data=st.data(), edits=edits)
def test_spoiled_files_are_pictures_or_errors(whole_files, tmp_path_factory, data, edits):
    name = data.draw(st.sampled_from(sorted(whole_files)))
    path = tmp_path_factory.getbasetemp() / f"spoiled{name}"
    path.write_bytes(spoil(whole_files[name], edits))
    try:
        found, error = read_picture(path, max_pixels=100_000), None
    except PictureError as caught:
        found, error = None, str(caught)
    if found is None:
        assert error.startswith(f"{path}: ")
        assert "\n" not in error
    else:
        assert found.ndim == 3
        assert 0 < found.shape[0] * found.shape[1] <= 100_000


# ---- one pair ----


@pytest.mark.parametrize("dtype", [U8, U16, np.float32, np.float64])
@pytest.mark.parametrize("padding", ["same", "valid", "reflect"])
def test_values_are_those_of_the_functions(dtype, padding):
    first, second = (picture((180, 190), dtype=dtype, seed=seed) for seed in range(2))
    settings = Settings(padding=padding, ms_ssim=True)
    found = compare(first, second, settings)
    x, y = (torch.from_numpy(p.astype(np.float64)).permute(2, 0, 1) for p in (first, second))
    span = {U8: 255.0, U16: 65535.0}.get(dtype, 1.0)
    difference = first.astype(np.float64) - second.astype(np.float64)
    mse = (difference**2).mean()
    expected = {
        "ssim": ssim_fused.ssim(x, y, data_range=span, padding=padding).item(),
        "ms_ssim": ssim_fused.ms_ssim(x, y, data_range=span).item(),
        "psnr": 10 * math.log10(span**2 / mse),
        "mse": mse,
        "l1": np.abs(difference).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert list({"input": "", "target": ""} | found) == list(FIELDS)
    assert settings.fit(found)
    assert not Settings(padding=padding).fit(found)


BT601 = (65.481, 128.553, 24.966)  # of colours in [0, 1]: luma in [16, 235]


@pytest.mark.parametrize("dtype", [U8, U16, np.float32, np.float64])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_luma_without_a_border(dtype, padding):
    """As papers on super-resolution have it."""
    first, second = (picture((190, 200), dtype=dtype, seed=seed) for seed in range(2))
    settings = Settings(padding=padding, ms_ssim=True, luma="matlab", crop_border=4)
    found = compare(first, second, settings)
    span = {U8: 255.0, U16: 65535.0}.get(dtype, 1.0)
    x, y = ((16 + p[4:-4, 4:-4].astype(np.float64) @ BT601 / span) / 255 for p in (first, second))
    mse = ((x - y) ** 2).mean()
    x, y = (torch.from_numpy(luma)[None] for luma in (x, y))
    expected = {
        "ssim": ssim_fused.ssim(x, y, padding=padding).item(),
        "ms_ssim": ssim_fused.ms_ssim(x, y).item(),
        "psnr": -10 * math.log10(mse),
        "mse": mse * span**2,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert [found[name] for name in ("height", "width", "channels")] == [182, 192, 1]
    assert (found["dtype"], found["data_range"]) == (np.dtype(dtype).name, span)
    assert (found["luma"], found["crop_border"]) == ("matlab", 4)
    assert settings.fit(found)
    assert not settings._replace(luma=None).fit(found)
    assert not settings._replace(luma="bt601").fit(found)
    assert not settings._replace(crop_border=0).fit(found)


@pytest.mark.parametrize("luma", ["bt601", "bt709", "matlab"])
def test_luma_is_that_of_frame_analytics(luma):
    first, second = (picture(seed=seed) for seed in range(2))
    found = compare(first, second, Settings(padding="valid", luma=luma, crop_border=2))
    x, y = (torch.from_numpy(p).permute(2, 0, 1) for p in (first, second))
    theirs = frame_analytics.ssim(x, y, luma=luma, crop_border=2)
    assert found["ssim"] == pytest.approx(theirs.item(), abs=1e-6)


def test_grey_pictures_are_their_own_luma():
    first, second = (picture(channels=1, seed=seed) for seed in range(2))
    found = [compare(first, second, Settings(luma=luma)) for luma in (None, "matlab")]
    assert found[0] | {"luma": "matlab"} == found[1]


def test_equal_and_small_pictures():
    found = compare(picture((7, 5)), picture((7, 5)), Settings(ms_ssim=True))
    assert found["ssim"] == 1
    assert found["psnr"] == math.inf
    assert found["ms_ssim"] is None


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        (picture((20, 30)), picture((30, 20)), Settings(), "in size: 30 x 20 and 20 x 30"),
        (picture(), picture(channels=4), Settings(), "number of channels: 3 and 4"),
        (picture(), picture(dtype=U16), Settings(), "in type: uint8 and uint16"),
        (picture(dtype=np.float32) * 255, picture(dtype=np.float32), Settings(), "data_range"),
        (np.full((20, 20, 1), np.nan), np.zeros((20, 20, 1)), Settings(), "NaN"),
        (picture((5, 5)), picture((5, 5)), Settings(padding="valid"), "at least 11 x 11"),
        (np.full((20, 20, 1), 1e200), np.zeros((20, 20, 1)), Settings(1.0), "not a number"),
        (picture(channels=4), picture(channels=4), Settings(luma="matlab"), "not of 4 channels"),
        (picture((9, 8)), picture((9, 8)), Settings(crop_border=4), "leaves nothing of 8 x 9"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, first, second, settings, message):
    with pytest.raises(PictureError, match=message):
        compare(first, second, settings)
    paths = [save(tmp_path / f"{i}.npy", array) for i, array in enumerate((first, second))]
    found = compare_files(*paths, settings)
    assert message in found["error"]
    assert found["ssim"] is None


def out_of_memory(*_, **__):
    """As torch says it on the CPU."""
    raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")


def test_torchs_lack_of_memory_is_one_pairs_error(tmp_path, monkeypatch):
    good = save(tmp_path / "p.png", picture())
    monkeypatch.setattr("ssim_fused.evaluation.compare.image_loss", out_of_memory)
    found = compare_files(good, good, Settings())
    assert found["error"] == f"no memory to compare {good} with {good}"
    batch = {"input": [picture()], "target": [picture()]}
    assert ssim_fused.evaluate_batch(batch)["error"] == ["no memory to compare the pictures"]


# ---- pairs ----


def names(pairs):
    return [(pair.input, pair.target) for pair in pairs.each if pair.error is None]


def test_folders_are_matched_by_name(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (
        "a/x.png", "b/x.png", "a/deep/y.png", "b/deep/y.jpg", "a/only.png", "b/other.tif",
        "a/z.png", "a/z.jpg", "b/z.webp", "a/notes.txt", "b/X.PNG.bak",
    ):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    pairs = find_pairs(a, b)
    assert names(pairs) == [
        (str(a / "deep/y.png"), str(b / "deep/y.jpg")),
        (str(a / "x.png"), str(b / "x.png")),
    ]
    unmatched = {pair.error for pair in pairs.each if pair.error}
    assert unmatched == {
        f"{a}/only.png: has no partner in {b}", f"{a}/z.png: has no partner in {b}",
        f"{a}/z.jpg: has no partner in {b}", f"{b}/z.webp: has no partner in {a}",
        f"{b}/other.tif: has no partner in {a}",
    }  # fmt: skip
    assert pairs.total == len(pairs.each) == 7


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    a, b = save_pairs(tmp_path, 2)
    (a / "locked").mkdir()
    scan = os.scandir

    def scandir(path):  # whoever runs tests as root may read everything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    pairs = find_pairs(a, b)
    assert len(names(pairs)) == 2
    assert [pair.error for pair in pairs.each if pair.error] == [
        f"{a / 'locked'}: the folder cannot be read: Permission denied"
    ]


def test_links_to_folders_are_followed_but_not_for_ever(tmp_path):
    far, near = save_pairs(tmp_path, 1), (tmp_path / "near-a", tmp_path / "near-b")
    for there, here in zip(far, near):
        here.mkdir()
        for name in ("x", "y"):  # twice the same folder
            (here / name).symlink_to(there)
    (near[0] / "self").symlink_to(near[0])
    (far[1] / "deep").mkdir()
    (far[1] / "deep" / "up").symlink_to(far[1])
    pairs = find_pairs(*near)
    assert names(pairs) == [
        tuple(str(here / name / "00.png") for here in near) for name in ("x", "y")
    ]
    assert pairs.total == 2


@pytest.mark.parametrize(
    "header",
    [
        "input,target\n",
        "",
        "other,target,input\n",
        "\ufeffinput,target\n",
        "\ufeff",
        "Input, TARGET \n",
    ],
)
def test_a_csv_list(tmp_path, header):
    lines = ["a.png,b.png", "", "sub/c.png,d.png"]
    if "other" in header:
        lines = ["n,b.png,a.png", "m,d.png,sub/c.png"]
    path = tmp_path / "list.csv"
    path.write_text(header + "\n".join(lines) + "\n")
    pairs = find_pairs(path, None)
    expected = [
        (f"{tmp_path}/a.png", f"{tmp_path}/b.png"),
        (f"{tmp_path}/sub/c.png", f"{tmp_path}/d.png"),
    ]
    assert names(pairs) == names(pairs) == expected
    assert pairs.total == 2


def test_a_line_that_names_one_file(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("a.png,b.png\nc.png\nd.png,\n")
    assert [pair.error for pair in find_pairs(path, None).each] == [
        None,
        f"{path}, line 2: must name two files",
        f"{path}, line 3: must name two files",
    ]


def test_a_row_that_names_one_file(tmp_path):
    path = tmp_path / "list.parquet"
    count = 5000  # more than are read at once
    names = [None if i % 2500 == 2499 else f"{i}.png" for i in range(count)]
    pq.write_table(pa.table({"input": names, "target": names[::-1]}), path)
    pairs = list(find_pairs(path, None).each)
    assert [pair.error for pair in pairs if pair.error] == [
        f"{path}, row {row}: must name two files" for row in (1, 2500, 2501, 5000)
    ]
    assert pairs[0].input == f"{tmp_path}/0.png"


def test_a_parquet_list(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"target": ["/t/b.png"], "input": ["a.png"], "more": [1]}), path)
    assert names(find_pairs(path, None)) == [(f"{tmp_path}/a.png", "/t/b.png")]


def test_columns_of_a_parquet_list_in_any_case(tmp_path):
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"Target ": ["b.png"], "INPUT": ["a.png"]}), path)
    assert names(find_pairs(path, None)) == [(f"{tmp_path}/a.png", f"{tmp_path}/b.png")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: ((p / "h.csv").write_text("input,other\na,b\n") and p / "h.csv", None),
         "must have the columns input and target, got input, other"),
        (lambda p: (p / "no.csv", None), "cannot be read"),
        (lambda p: (p / "a.png", None), "give two pictures or folders"),
        (lambda p: (p, p / "a.png"), "is a folder"),
        (lambda p: (p, p), "no pictures"),
        (lambda p: ((p / "e.csv").write_text("input,target\n") and p / "e.csv", None), "no pairs"),
        (lambda p: ((p / "e.parquet").write_text("x") and p / "e.parquet", None), "cannot be read"),
        (lambda p: (pq.write_table(pa.table({"a": [1]}), p / "c.parquet") or p / "c.parquet", None),
         "must have the columns"),
    ],
)  # fmt: skip
def test_no_pairs(tmp_path, make, message):
    with pytest.raises(PairsError, match=message):
        find_pairs(*make(tmp_path))


# ---- files of results ----

KINDS = sorted(writers.KINDS)


def results(tmp_path, count=3):
    a, b = save_pairs(tmp_path, count)
    return [run.result_of(pair, Settings()) for pair in find_pairs(a, b).each]


@pytest.mark.parametrize("kind", KINDS)
def test_results_come_back(tmp_path, kind):
    made = results(tmp_path)
    made.append(
        {"input": 'odd, "name"\nof\rthree\r\nlines', "target": None}
        | dict(made[0], input=None, target=None)
        | {name: None for name in FIELDS if name != "error"}
        | {"error": "é"}
    )
    path = tmp_path / f"r.{kind}"
    writer = writers.open_writer(kind, path)
    writer.write(made[:2])
    writer.write(made[2:])
    writer.close()
    assert list(writers.read_results(kind, path)) == made
    again = writers.open_writer(kind, path, append=True)
    again.write(made[:1])
    again.close()
    assert list(writers.read_results(kind, path)) == [*made, made[0]]


LATIN = "caf\udce9.png"  # é in Latin-1: no UTF-8


@pytest.mark.parametrize("kind", KINDS)
def test_names_that_are_not_utf8_come_back(tmp_path, kind):
    path = tmp_path / f"r.{kind}"
    (made,) = results(tmp_path, 1)
    made |= {"input": LATIN}
    writer = writers.open_writer(kind, path)
    writer.write([made])
    writer.close()
    (found,) = writers.read_results(kind, path)
    expected = LATIN if kind != "parquet" else r"caf\udce9.png"
    assert found == made | {"input": expected}
    assert writers.key_of(found["input"], None) == writers.key_of(LATIN, None)
    if kind == "csv":
        assert b"caf\xe9.png" in path.read_bytes()


def test_others_can_read_them(tmp_path):
    made = results(tmp_path)
    assert made[0]["psnr"] == math.inf
    for kind in KINDS:
        writer = writers.open_writer(kind, tmp_path / f"r.{kind}")
        writer.write(made)
        writer.close()
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["ssim"]) for row in rows] == [result["ssim"] for result in made]
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "r.json").open()]
    assert lines[0]["psnr"] is None
    assert lines[1] == made[1]
    table = pq.read_table(tmp_path / "r.parquet")
    assert table["ssim"].to_pylist() == [result["ssim"] for result in made]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_leaves_whole_lines(tmp_path, kind):
    made = results(tmp_path)
    path = tmp_path / f"r.{kind}"
    writer = writers.open_writer(kind, path)
    writer.write(made)
    (file,) = writers.files_of(kind, path)  # of Parquet, a journal
    content = file.read_bytes()  # without a close
    file.write_bytes(content[:-9])
    assert list(writers.read_results(kind, path)) == made[:2]
    writers.rewrite(kind, path, list(writers.read_results(kind, path)))
    assert writers.files_of(kind, path) == [path]
    assert list(writers.read_results(kind, path)) == made[:2]
    assert list(tmp_path.glob("r.*")) == [path]


@pytest.mark.parametrize("kept", range(1, 60, 7))
def test_a_line_cut_within_a_name_of_two_lines(tmp_path, kept):
    first, second = results(tmp_path, 2)
    path = tmp_path / "r.csv"
    writer = writers.open_writer("csv", path)
    writer.write([first])
    whole = path.stat().st_size
    writer.write([second | {"input": "a\r\nb\rc\nd.png"}])
    writer.close()
    os.truncate(path, whole + kept)
    assert list(writers.read_results("csv", path)) == [first]


def test_a_table_goes_on_where_it_ended(tmp_path):
    made = results(tmp_path)
    path = tmp_path / "r.parquet"
    for part in (made[:1], made[1:]):
        writer = writers.open_writer("parquet", path, append=True)
        writer.write(part)
        writer.close()
    assert pq.read_table(path)["ssim"].to_pylist() == [result["ssim"] for result in made]
    nan = dict(made[1], ssim=math.nan)
    writer = writers.open_writer("parquet", path)  # not append: what was there goes at once
    writer.write([nan])
    assert [math.isnan(r["ssim"]) for r in writers.read_results("parquet", path)] == [True]
    writers.remove_results("parquet", path)
    assert not list(tmp_path.glob("r.*"))


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_not_results(tmp_path, kind):
    path = tmp_path / "r"
    path.write_text('{"a": 1}\n')
    with pytest.raises(writers.ResultsError, match=str(path)):
        list(writers.read_results(kind, path))


# ---- many pairs ----


def evaluated(pairs, outputs, **settings):
    outcome = run.Outcome()
    run.evaluate(
        pairs.each, Settings(**settings), outputs, append=False, threads=2, outcome=outcome
    )
    return outcome


def test_order_is_kept_and_memory_bounded(tmp_path, monkeypatch):
    a, b = save_pairs(tmp_path, 4)
    pairs = find_pairs(a, b)
    taken = 0

    def endless():
        nonlocal taken
        for i in range(100):
            taken += 1
            yield pairs.each[i % 4]

    found = run._in_order(endless(), Settings(), threads=2)
    assert [next(found)["input"] for _ in range(9)] == [pairs.each[i % 4].input for i in range(9)]
    assert taken <= 9 + 2 * run._IN_FLIGHT
    found.close()


def test_a_full_disk_is_named_and_the_others_go_on(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    pairs = find_pairs(*save_pairs(tmp_path, 3))
    outcome = evaluated(pairs, {"csv": Path("/dev/full"), "json": tmp_path / "r.json"})
    assert outcome.failures == ["/dev/full: cannot be written: No space left on device"]
    assert len(list(writers.read_results("json", tmp_path / "r.json"))) == 3
    outcome = evaluated(pairs, {"parquet": Path("/dev/full")})
    assert outcome.failures == ["/dev/full: cannot be written: is not a regular file"]
    assert outcome.summary.compared == 0  # nobody would have seen it
    (tmp_path / "r.parquet.part").symlink_to("/dev/full")  # the journal
    outcome = evaluated(pairs, {"parquet": tmp_path / "r.parquet"})
    assert len(outcome.failures) == 1
    assert "No space left on device" in outcome.failures[0]
    assert not (tmp_path / "r.parquet").exists()
    assert Path("/dev/full").is_char_device()


def test_a_disk_that_fills_up_under_a_table(tmp_path, monkeypatch):
    pairs = find_pairs(*save_pairs(tmp_path, 3))

    def full(self, table):
        self.close()  # as it does itself
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    outcome = evaluated(pairs, {"parquet": tmp_path / "r.parquet", "csv": tmp_path / "r.csv"})
    assert outcome.failures == [f"{tmp_path}/r.parquet: cannot be written: No space left on device"]
    assert list(tmp_path.glob("r.parquet*")) == [tmp_path / "r.parquet.part"]
    for kind in ("csv", "parquet"):  # finished results are kept, in whatever file
        assert len(list(writers.read_results(kind, tmp_path / f"r.{kind}"))) == 3
    monkeypatch.undo()
    run.resume({"parquet": tmp_path / "r.parquet"}, {}, Settings())
    assert pq.read_table(tmp_path / "r.parquet").num_rows == 3


def test_summary_of_parts_is_that_of_the_whole(tmp_path):
    made = results(tmp_path, 8) * 2
    made = [dict(result, ms_ssim=0.5 if i % 3 else None) for i, result in enumerate(made)]
    made.append(dict(made[0], error="bad"))
    whole, first, second = (Summary(keep_worst=3) for _ in range(3))
    for i, result in enumerate(made):
        whole.add(result)
        (first if i < 5 else second).add(result)
    first.merge(second)
    assert (first.compared, first.failed, first.errors) == (16, 1, ["bad"])
    assert first.means() == pytest.approx(whole.means())
    assert first.quantiles(0, 0.5, 1) == whole.quantiles(0, 0.5, 1)
    ordered = sorted(result["ssim"] for result in made[:-1])
    assert whole.quantiles(0, 1) == [ordered[0], ordered[-1]]
    assert [r["ssim"] for r in first.worst_first()] == [r["ssim"] for r in whole.worst_first()]
    assert [r["ssim"] for r in whole.worst_first()] == ordered[:3]
    assert whole.means()["psnr"] < math.inf
    assert first.without_ms_ssim == whole.without_ms_ssim == 6


# ---- batches ----


def test_a_batch_of_paths_or_pictures(tmp_path):
    a, b = save_pairs(tmp_path, 3)
    pairs = find_pairs(a, b).each
    batch = {
        "input": np.array([pair.input for pair in pairs] + ["no.png"], dtype=object),
        "target": np.array([pair.target for pair in pairs] + ["no.png"], dtype=object),
        "n": np.arange(4),
    }
    found = ssim_fused.evaluate_batch(batch)
    expected = [run.result_of(pair, Settings())["ssim"] for pair in pairs]
    assert found["ssim"][:3].tolist() == expected
    assert math.isnan(found["ssim"][3])
    assert found["error"].tolist() == ["", "", "", "no.png: no such file"]
    assert found["n"] is batch["n"]
    stacked = {
        side: np.stack([read_picture(getattr(pair, side)) for pair in pairs])
        for side in ("input", "target")
    }
    assert ssim_fused.evaluate_batch(stacked)["ssim"].tolist() == expected


def test_what_a_batch_may_hold(tmp_path):
    a, b = save_pairs(tmp_path, 1)
    first, second = a / "00.png", b / "00.png"
    expected = ssim_fused.evaluate_batch({"input": [str(first)], "target": [str(second)]})
    array = read_picture(second)
    others = [second, str(second), array, torch.from_numpy(array), Image.fromarray(array)]
    for input in (first, read_picture(first)):
        found = ssim_fused.evaluate_batch({"input": [input] * len(others), "target": others})
        assert found["error"].tolist() == [""] * len(others)
        assert found["ssim"].tolist() == expected["ssim"].tolist() * len(others)
    palette = Image.fromarray(array).quantize(4)
    found = ssim_fused.evaluate_batch({"input": [palette], "target": [palette.convert("RGB")]})
    assert found["ssim"] == 1


def closed_image():
    image = Image.new("L", (8, 8))
    image.close()
    return image


def cut_image():
    out = io.BytesIO()
    Image.fromarray(picture()).save(out, "PNG")
    return Image.open(io.BytesIO(out.getvalue()[:1000]))


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (closed_image(), "input is no picture: Operation on closed image"),
        (cut_image(), "input is no picture: image file is truncated"),
        (None, "input is null"),
        (float("nan"), "input is null"),
        (np.float32("nan"), "input is null"),
        (Path("no.png"), "no.png: no such file"),
        ([[1, 2], [3]], "input is no picture: setting an array element"),
        (torch.zeros(8, 8, requires_grad=True), "input is no picture: .*requires grad"),
        (torch.zeros(8, 8).bfloat16(), "input is no picture: .*BFloat16"),
        (Image.new("I", (8, 8)), "has pixels of a kind that is not supported"),
        (7, r"must be \(H, W\)"),
    ],
)
def test_what_is_wrong_with_a_pair_is_its_error_alone(what, error):
    good = np.zeros((8, 8), np.uint8)
    found = ssim_fused.evaluate_batch({"input": [what, good], "target": [good, good]})
    assert re.match(error, found["error"][0])
    assert found["error"][1] == ""
    assert found["ssim"].tolist() == pytest.approx([math.nan, 1], nan_ok=True)
    swapped = ssim_fused.evaluate_batch({"input": [good], "target": [what]})
    assert re.match(error.replace("input", "target"), swapped["error"][0])


def test_no_memory_for_a_pair_of_pictures(monkeypatch):
    def refuse(*_):
        raise MemoryError

    good = np.zeros((8, 8), np.uint8)
    monkeypatch.setattr("ssim_fused.evaluation.batch.compare", refuse)
    found = ssim_fused.evaluate_batch({"input": [good], "target": [good]})
    assert found["error"].tolist() == ["no memory to compare the pictures"]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_the_limit_of_a_batch_is_that_of_its_settings(tmp_path, monkeypatch, suffix):
    """Pillow's own, beyond twice of which it refuses, is for others."""
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (40, 40)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    batch = {"input": [path], "target": [path]}
    assert ssim_fused.evaluate_batch(batch)["error"].tolist() == [""]
    assert "limit of 1000" in ssim_fused.evaluate_batch(batch, max_pixels=1000)["error"][0]
    assert Image.MAX_IMAGE_PIXELS == 100

    def nested(*_):
        ssim_fused.evaluate_batch({"input": [], "target": []})
        return compare_files(path, path, Settings())

    monkeypatch.setattr("ssim_fused.evaluation.batch.compare_files", nested)
    assert ssim_fused.evaluate_batch(batch)["error"].tolist() == [""]
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("batch", "settings", "message"),
    [
        ({"input": []}, {}, "columns input and target, got input"),
        ({"input": [1, 2], "target": [1]}, {}, "one length, got input 2, target 1"),
        ({"input": [1], "target": [1], "n": []}, {}, "got input 1, target 1, n 0"),
        ({"input": [], "target": [], "error": [], "height": []}, {}, "results: height, error"),
        ({"input": [], "target": []}, {"data_range": -1.0}, "data_range must be positive"),
        ({"input": [], "target": []}, {"padding": "zeros"}, "padding must be one of"),
        ({"input": [], "target": []}, {"luma": "y"}, "luma must be one of"),
        ({"input": [], "target": []}, {"crop_border": -1}, "crop_border must be at least 0"),
    ],
)
def test_bad_batches(batch, settings, message):
    with pytest.raises(ValueError, match=message):
        ssim_fused.evaluate_batch(batch, **settings)
