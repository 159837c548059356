"""The report: what it holds, and how it is used in a browser, with and without a mouse."""

from __future__ import annotations

import base64
import io
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("imagecodecs")
pytest.importorskip("pyarrow")

from evaluation_tables import picture, save, save_pairs
from PIL import Image

from ssim_fused.evaluation import drawing, report
from ssim_fused.evaluation.compare import Settings
from ssim_fused.evaluation.pairs import Pair, find_pairs
from ssim_fused.evaluation.pictures import read_picture
from ssim_fused.evaluation.run import result_of
from ssim_fused.evaluation.summary import Summary

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
HOSTILE = "<_script><script>document.title='owned'<_script>.png"


def summarized(folder, count=6):
    a, b = save_pairs(folder, count)
    for place in (a, b):
        save(place / "x.png", picture(seed=3)).rename(place / HOSTILE)
    (a / "alone.png").touch()
    summary = Summary(keep_worst=100)
    for pair in find_pairs(a, b).each:
        summary.add(result_of(pair, Settings()))
    return summary


def content(page):
    """What a page holds, as data."""
    start = page.index('id="content">') + len('id="content">')
    return json.loads(page[start : page.index("</script>", start)])


def image(uri):
    kind, coded = uri.split(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(coded)))


def test_it_holds_the_pictures_and_the_map(tmp_path):
    summary = summarized(tmp_path)
    held = content(report.render(summary, Settings(), 3, "</script>"))
    assert held["title"] == "</script>"
    rows, worst = held["rows"], summary.worst_first()
    assert [row["ssim"] for row in rows] == sorted(summary.similarities)
    assert ["pictures" in row for row in rows] == [True] * 3 + [False] * 4
    for row, result in zip(rows[:3], worst):
        arrays = [np.asarray(Image.open(result[side])) for side in ("input", "target")]
        shown = [np.asarray(image(uri)) for uri in row["pictures"]]
        assert np.array_equal(shown[0], arrays[0])
        assert np.array_equal(shown[1], arrays[1])
        similarity = drawing.ssim_map(*arrays, 255.0, "same")
        assert similarity.mean() == pytest.approx(result["ssim"], abs=1e-5)
        assert np.array_equal(shown[2], np.asarray(drawing.draw_map(similarity)))
    assert sum(held["histogram"]["counts"]) == held["compared"] == 7
    assert held["failed"] == 1
    assert rows[-1]["psnr"] is None  # equal
    assert held["folders"]["input"] + rows[0]["input"] == worst[0]["input"]


def test_colours_rise_in_lightness():
    linear = drawing.COLOURS / 255.0
    luminance = linear**2.2 @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()
    # equal steps of what is seen: CIE lightness has no step of twice the mean one
    lightness = 116 * np.cbrt(luminance) - 16
    every_eighth = np.diff(lightness[::8])
    assert every_eighth.max() < 2 * every_eighth.mean()
    assert np.asarray(drawing.draw_map(np.array([[1.0, 0.0, -1.0]])))[0].tolist() == [
        drawing.COLOURS[0].tolist(),
        drawing.COLOURS[255].tolist(),
        drawing.COLOURS[255].tolist(),
    ]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((40, 48, 1), np.uint16), ((40, 48, 2), np.uint8), ((40, 48, 4), np.float32),
     ((1200, 20, 3), np.uint8)],
)  # fmt: skip
def test_pictures_of_every_kind_are_drawn(shape, dtype):
    array = picture(shape[:2], shape[2], dtype)
    span = {np.uint8: 255.0, np.uint16: 65535.0}.get(dtype, 1.0)
    shown = image(drawing.data_uri(drawing.draw_picture(array, span)))
    assert max(shown.size) <= 960
    if max(shape) <= 256:
        expected = np.round(array[..., 0] / span * 255)
        assert np.abs(np.asarray(shown)[..., 0].astype(int) - expected).max() <= 1


def test_negative_values_are_drawn(tmp_path):
    array = 2 * picture(dtype=np.float32) - 1
    summary = Summary()
    paths = [save(tmp_path / f"{i}.npy", (1 - i / 2) * array) for i in range(2)]
    settings = Settings(data_range=2.0)
    summary.add(result_of(Pair(*map(str, paths)), settings))
    (row,) = content(report.render(summary, settings, 1, ""))["rows"]
    black = array.min()
    for uri, values in zip(row["pictures"], (array, array / 2)):
        shown = np.asarray(image(uri)).astype(int)
        assert np.abs(shown - 255 * (values - black) / 2).max() <= 1
    sheet = np.asarray(drawing.draw_difference(array, array / 2, 2.0, "same")).astype(int)
    assert np.abs(sheet[:, :48] - 255 * (array - black) / 2).max() <= 1


def test_what_is_compared_is_shown(tmp_path):
    """Luma, without the border; its map belongs to the pair's SSIM."""
    a, b = save_pairs(tmp_path, 2)
    settings = Settings(luma="bt601", crop_border=3)
    summary = Summary()
    summary.add(result_of(Pair(str(a / "01.png"), str(b / "01.png")), settings))
    (row,) = content(report.render(summary, settings, 1, ""))["rows"]
    assert row["size"] == "42 x 34 x 1"
    parts = []
    for uri, path in zip(row["pictures"], (a / "01.png", b / "01.png")):
        colours = np.asarray(Image.open(path))[3:-3, 3:-3].astype(np.float64)
        parts.append(colours @ (0.299, 0.587, 0.114))
        assert np.abs(np.asarray(image(uri))[..., 0] - parts[-1]).max() <= 0.51
    similarity = drawing.ssim_map(*(part[..., None] for part in parts), 255.0, "same")
    assert similarity.mean() == pytest.approx(row["ssim"], abs=1e-5)
    assert np.array_equal(
        np.asarray(image(row["pictures"][2])), np.asarray(drawing.draw_map(similarity))
    )


def test_inks_are_drawn_as_colours(tmp_path):
    inks = Image.fromarray(picture()).convert("CMYK")
    inks.save(tmp_path / "p.tif")
    drawn = drawing.draw_picture(read_picture(tmp_path / "p.tif"), 255.0)
    assert np.array_equal(np.asarray(drawn.convert("RGB")), np.asarray(inks.convert("RGB")))


def test_a_picture_that_is_gone_is_named(tmp_path):
    summary = summarized(tmp_path, 2)
    shutil.rmtree(tmp_path / "b")
    rows = content(report.render(summary, Settings(), 9, ""))["rows"]
    assert all("no such file" in row["gone"] for row in rows)


def test_a_lack_of_memory_is_one_rows(tmp_path, monkeypatch):
    def out_of_memory(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(drawing, "ssim", out_of_memory)
    rows = content(report.render(summarized(tmp_path, 2), Settings(), 1, ""))["rows"]
    assert [row.get("gone") for row in rows] == ["no memory to draw them", None, None]


def test_nothing_compared(tmp_path):
    summary = Summary()
    summary.add(result_of(Pair("no.png", "no.png"), Settings()))
    held = content(report.render(summary, Settings(), 9, ""))
    assert held["rows"] == []
    assert held["errors"] == ["no.png: no such file"]


NEARLY = [np.float64(1) - i * 1e-16 for i in range(4)]


@pytest.mark.parametrize("similarities", [NEARLY, NEARLY[:1] * 3, [0.5, 0.5 + 1e-15], [-1.0, 1.0]])
def test_a_histogram_of_nearly_equal_pairs(similarities):
    summary = Summary()
    summary.similarities.extend(similarities)
    summary.compared = len(similarities)
    held = report._histogram(summary)
    assert sum(held["counts"]) == len(similarities)
    assert held["edges"][0] <= min(similarities) <= max(similarities) <= held["edges"][-1]
    assert held["edges"][-1] - held["edges"][0] >= 1e-6


INFINITE = Settings(data_range=3e20)


def infinite(folder):
    """Two pictures whose MSE is too large for their type."""
    paths = [save(folder / f"{i}.npy", picture(dtype=np.float32, seed=i) * 3e20) for i in range(2)]
    result = result_of(Pair(*map(str, paths)), INFINITE)
    assert result["mse"] == np.inf
    return result


def test_infinite_numbers_are_null(tmp_path):
    summary = Summary()
    summary.add(infinite(tmp_path))
    (row,) = content(report.render(summary, INFINITE, 1, ""))["rows"]
    assert row["mse"] is row["psnr"] is None
    assert "ms_ssim" not in row  # not computed


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    out = folder / "report.html"
    report.write_report(out, summarized(folder), Settings(), 4)
    return out


@pytest.fixture
def tab(browser, path):
    """The report in a window, in which nothing goes wrong and nothing is fetched."""
    window = browser.new_page(viewport={"width": 1200, "height": 900})
    problems, requests = [], []
    window.on("console", lambda message: problems.append(message.text))
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.on("request", lambda request: requests.append(request.url.split(",")[0]))
    window.goto(path.as_uri())
    yield window
    assert problems == []
    assert set(requests) <= {path.as_uri(), "data:image/webp;base64"}
    window.close()


def column(tab, number):
    return tab.locator(f"tbody tr > :nth-child({number})").all_inner_texts()


def chosen(tab):
    return tab.locator("tr.chosen th").inner_text()


def at(tab):
    return tab.locator("#slider").evaluate("e => e.style.getPropertyValue('--at')")


def test_worst_first_and_sortable(tab):
    similarities = [float(text) for text in column(tab, 3)]
    assert similarities == sorted(similarities)
    assert len(similarities) == 7
    head = tab.get_by_role("columnheader", name="Input")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(tab, 1) == sorted(column(tab, 1))
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(tab, 1) == sorted(column(tab, 1), reverse=True)
    tab.get_by_role("columnheader", name="PSNR").get_by_role("button").click()
    assert column(tab, 5)[-1] == "∞"


def test_names_are_names(tab):
    assert HOSTILE in column(tab, 1)
    assert tab.title() == "report: SSIM report"
    assert tab.locator("#error-list").inner_text().count("alone.png: has no partner") == 1


def test_infinite_numbers_are_called_so(browser, tmp_path):
    summary = Summary()
    summary.add(infinite(tmp_path))
    path = tmp_path / "report.html"
    report.write_report(path, summary, INFINITE, 1)
    tab = browser.new_page()
    tab.goto(path.as_uri())
    assert column(tab, 4) == [""]
    assert column(tab, 5) == column(tab, 6) == ["not finite"]
    tab.close()


def test_a_click_shows_a_pair(tab):
    tab.locator("tbody tr:nth-child(3) button").click()
    name = column(tab, 1)[2]
    assert chosen(tab) == name
    assert tab.locator("#pair-title").inner_text().endswith(name)
    for id, what in (("under", "Input"), ("over", "Target"), ("map", "SSIM map")):
        shown = tab.locator(f"#{id}")
        assert shown.get_attribute("alt").startswith(what)
        assert shown.evaluate("e => e.decode().then(() => e.naturalWidth)") == 48
    tab.locator("tbody tr:nth-child(6) button").click()
    assert tab.get_by_text("holds no pictures of this pair").is_visible()
    assert not tab.locator("#slider").is_visible()


def test_slider_by_mouse(tab):
    box = tab.locator("#slider").bounding_box()
    tab.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 5)
    assert at(tab) == "25%"
    # input on the left, target on the right: of the one in front its right part is to be seen
    clip = tab.locator("#over").evaluate("e => getComputedStyle(e).clipPath")
    assert clip == "inset(0px 0px 0px 25%)"


def test_all_of_it_by_keyboard(tab):
    names = column(tab, 1)
    seen = []
    for _ in range(30):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.id || document.activeElement.innerText"))
        if seen[-1] == names[0]:
            break
    assert {"theme", "next", "at", names[0]} <= set(seen)
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    assert chosen(tab) == tab.evaluate("document.activeElement.innerText") == names[2]
    tab.keyboard.press("ArrowUp")
    assert chosen(tab) == names[1]
    tab.locator("#next").focus()
    tab.keyboard.press("Enter")
    assert chosen(tab) == names[2]
    tab.locator("#at").focus()
    tab.keyboard.press("ArrowRight")
    assert at(tab) == "51%"
    tab.locator("#columns button").first.focus()
    tab.keyboard.press("Space")
    assert column(tab, 1) == sorted(names)


def test_dark_and_light(tab):
    def background():
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    light = background()
    tab.emulate_media(color_scheme="dark")
    dark = background()
    assert light != dark
    tab.get_by_role("button", name="Light").click()
    assert background() == light
    tab.get_by_role("button", name="Dark").click()
    assert background() == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(tab, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    tab.emulate_media(color_scheme=scheme)
    found = axe.Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("width", [360, 1600])
def test_it_fits_narrow_and_wide_windows(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.locator("#slider").is_visible()
