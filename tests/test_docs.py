"""The documentation: links, code blocks, commands, navigation, figures, and the site itself."""

from __future__ import annotations

import csv
import fnmatch
import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FILES = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
HAS_SITE_TOOLS = all(importlib.util.find_spec(name) for name in ("zensical", "mkdocstrings"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    """A page, with the files that it includes."""
    return re.sub(
        r'^--8<-- "(.+)"$',
        lambda found: (ROOT / found[1]).read_text(),
        path.read_text(),
        flags=re.M,
    )


def prose_of(path: Path) -> str:
    """Without code, whose brackets are no links."""
    return re.sub(r"`[^`\n]+`", "", FENCE.sub("", text_of(path)))


def anchors(path: Path) -> set[str]:
    """Of headings, as GitHub and Python-Markdown agree to name them."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text_of(path)), re.M)
    plain = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles)
    return {re.sub(r"\s+", "-", title) for title in plain}


def broken_links(path: Path) -> list[str]:
    """Internal links and pictures that lead nowhere."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        to = (path.parent / file).resolve() if file else path
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    return broken


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_links_and_anchors(path):
    assert not broken_links(path)


def test_a_broken_link_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One title\n[a](gone.md) [b](#one-title) [c](#two) ![d](gone.png)\n")
    assert broken_links(page) == ["gone.md", "#two", "gone.png"]


# ---- code ----


def blocks(path: Path, *languages: str) -> list[re.Match[str]]:
    return [found for found in FENCE.finditer(path.read_text()) if found["language"] in languages]


WITH_PYTHON = [path for path in FILES if blocks(path, "python")]


# what README's lines and the pages' programs find in theirs
DATA = """
import torch
x, y, render, photo = (torch.rand(2, 1, 32, 32, requires_grad=True) for _ in range(4))
recon_x, raw_x = torch.rand(2, 1, 32, 32, requires_grad=True), torch.rand(2, 1, 32, 32)
mu, logvar = torch.zeros(2, 4), torch.zeros(2, 4)
seen = torch.rand(2, 1, 32, 32) > 0.2
from ssim_fused import MSE_SSIM_KL_Loss
"""
PROGRAM = "from pytorch_msssim import ssim\nassert ssim.__module__.startswith('ssim_fused')\n"


def run_blocks(path: Path) -> int:
    """In order, in one namespace; how many."""
    namespace: dict = {"__name__": "page"}
    if path.name == "README.md":
        exec(compile(DATA, "README's data", "exec"), namespace)
    run = [found for found in blocks(path, "python") if found["why"] is None]
    for found in run:
        line = path.read_text()[: found.start("code")].count("\n")
        exec(compile("\n" * line + found["code"], str(path), "exec"), namespace)
    return len(run)


@pytest.mark.parametrize("path", WITH_PYTHON, ids=name_of)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    (tmp_path / "their_program.py").write_text(PROGRAM)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(ROOT)
    run_blocks(path)


def test_a_block_that_fails_is_noticed_by_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\na = 1\n```\n\n```python\nassert a == 2\n```\n")
    with pytest.raises(AssertionError) as failed:
        run_blocks(page)
    assert failed.traceback[-1].lineno == 5  # counted from 0
    page.write_text("<!-- not run: needs a GPU -->\n```python\nassert False\n```\n")
    assert run_blocks(page) == 0


def test_few_blocks_are_not_run():
    left_out = {name_of(p): found["why"] for p in FILES for found in FENCE.finditer(p.read_text())}
    reasons = {name: why for name, why in left_out.items() if why}
    assert all("needs" in why for why in reasons.values()), reasons
    assert len(reasons) <= 2, reasons


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def unknown_command(line: str) -> str | None:
    """Why a line of a console block cannot be a command of this repository, or None."""
    words = line.removeprefix("$ ").split()
    while "=" in words[0]:
        words.pop(0)  # a variable
    if words[0] == "make":
        missing = [w for w in words[1:] if "=" not in w and w not in targets()]
        return f"no target {missing}" if missing else None
    if words[:2] == ["python", "-m"]:
        found = importlib.util.find_spec(words[2])
        return None if found else f"no module {words[2]}"
    if words[0] == "python":
        return None if (ROOT / words[1]).is_file() else f"no file {words[1]}"
    if words[0] == "torchrun":
        scripts = [w for w in words if w.endswith(".py")]
        return None if scripts and all((ROOT / s).is_file() for s in scripts) else "no file"
    if words[:2] == ["pip", "install"]:
        return None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return None if words[0] in project.get("scripts", {}) else f"no entry point {words[0]}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_commands_exist(path):
    lines = [
        line for found in blocks(path, "console", "bash") for line in found["code"].splitlines()
    ]
    assert not [why for line in lines if line.strip() and (why := unknown_command(line))]
    inline = re.findall(r"`((?:make|python -m) [a-z][^`]*)`", prose_with_code(path))
    assert not [why for line in inline if (why := unknown_command(line))]


def prose_with_code(path: Path) -> str:
    return FENCE.sub("", path.read_text()).replace("\n", " ")


@pytest.mark.parametrize(
    "line",
    ["make nothing", "python -m benchmarks.nothing", "python examples/nothing.py", "ssim-no a"],
)
def test_an_unknown_command_is_noticed(line):
    assert unknown_command(line)


def fragment(message: str) -> str:
    """The longest part of a message that does not depend on the machine."""
    return max(re.split(r"[\d()':]+|\.{3}|\S*/\S*", message), key=len).strip()


def test_the_messages_of_troubleshooting_are_those_of_the_sources():
    page = (DOCS / "troubleshooting.md").read_text()
    table = page.split("## What the messages mean")[1].split("##")[0]
    messages = re.findall(r"^\| `(.+?)`", table, re.M)
    assert len(messages) > 10
    paths = [ROOT / "setup.py", *(ROOT / "ssim_fused").glob("_*.py")]
    sources = "".join(path.read_text() for path in paths)
    assert not [message for message in messages if fragment(message) not in sources]


def test_times_in_the_text_are_those_of_the_results():
    with (ROOT / "benchmarks" / "results" / "train_step.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == "CVAE, 128x1x32x32"]
    took = {row["loss"]: f"takes about {float(row['loss_ms']):.0f} ms" for row in rows}
    text = " ".join((DOCS / "start-vae.md").read_text().split())
    start = f"The loss of a batch of 128 pictures of 32 x 32 {took['ssim_fused']}, "
    assert f"{start}forward and backward, where the usual code {took['usual code']} (" in text


def test_counts_of_others_have_a_source():
    text = " ".join((ROOT / "README.md").read_text().split())
    assert re.search(r"family, counted on its compiled kernels[^.]*, executes about 1,000", text)


# ---- CONTRIBUTING.md's tree ----


def tree() -> list[str]:
    """What the tree names, with wildcards; of folders whose files have lines below, those."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## The tree\n\n")[1].split("\n##")[0]
    named: list[str] = []
    folder = ""
    for line in section.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].split(", ")
        if not line.startswith(" " * 8):
            folder = names[0][: names[0].rfind("/") + 1]
            names[0] = names[0].removeprefix(folder)
        elif named[-1] == folder:
            named.pop()
        for name in names:
            inside = re.fullmatch(r"\{(.+)\}(.+)", name)
            parts = [part + inside[2] for part in inside[1].split(",")] if inside else [name]
            named += [folder + part for part in parts]
    return named


def tracked() -> list[str]:
    """The files that git knows, less the marks of packages."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split() if not name.endswith("/__init__.py")]


def is_in(name: str, place: str) -> bool:
    return name.startswith(place) if place.endswith("/") else fnmatch.fnmatch(name, place)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs git's list of files")
def test_the_tree_names_every_file():
    places, files = tree(), tracked()
    assert not [place for place in places if not any(is_in(name, place) for name in files)]
    folders = ("csrc/", "ssim_fused/", "benchmarks/")
    told = [name for name in files if name.startswith(folders)]
    assert not [name for name in told if not any(is_in(name, place) for place in places)]


# ---- the site ----


def navigation() -> list[str]:
    def leaves(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        values = part.values() if isinstance(part, dict) else part
        return [leaf for value in values for leaf in leaves(value)]

    return leaves(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])


def test_every_page_is_in_the_navigation():
    pages = [str(path.relative_to(DOCS)) for path in PAGES]
    assert sorted(navigation()) == sorted(pages)


def test_every_public_name_is_in_the_reference():
    import ssim_fused
    from ssim_fused import compat

    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    skipped = {"__version__", "compat"}
    for name in {*ssim_fused.__all__, "evaluate_batch"} - skipped:
        assert re.search(rf"::: ssim_fused\.(\w+\.)*{name}\n|`{name}`", text), name
    metrics = (ROOT / "ssim_fused" / "metrics.py").read_text()  # importing it needs torchmetrics
    names = re.findall(r"^class ([A-Z]\w+)", metrics, re.M)
    assert len(names) == 2
    for name in (*names, "install", "uninstall"):
        assert name in text, name
    for library in compat.LIBRARIES:
        assert f"::: ssim_fused.compat.{library}\n" in text, library


def test_figures_are_made_and_used(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    from docs_tools import figures

    assert figures.main(["--out", str(tmp_path)]) == 0
    text = "".join(path.read_text() for path in PAGES)
    for name in figures.FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
        assert f"(images/{name}.png)" in text
        assert (DOCS / "images" / f"{name}.png").exists()


def build(folder: Path) -> subprocess.CompletedProcess:
    """The site of a copy of the pages, built in it."""
    for name in ("zensical.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, folder)
    for name in ("docs", "docs_tools", "ssim_fused"):
        if not (folder / name).exists():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(
    not HAS_SITE_TOOLS, reason="the site's tools are not installed: pip install .[docs]"
)
def test_the_site_builds(tmp_path):
    done = build(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in navigation():
        name = page.removesuffix(".md")
        place = tmp_path / "site" / ("" if name == "index" else name) / "index.html"
        html = place.read_text()
        assert "--8&lt;--" not in html
        assert "--8<--" not in html
        assert 'arithmatex">\\' not in html, "a formula that is not MathML"
        outside = re.findall(
            r"""<(?:link|script|img)[^>]+(?:src|href)="?(https?://[^" >]+)""", html
        )
        assert not outside, "loaded from another host"
    api = (tmp_path / "site" / "api" / "functional" / "index.html").read_text()
    assert 'id="ssim_fused.ssim_loss"' in api
    assert "<math" in api
    assert ":func:" not in api
    assert ":math:" not in api
    assert "k1, k2" not in api, "arguments that share a description have one entry each"


@pytest.mark.skipif(
    not HAS_SITE_TOOLS, reason="the site's tools are not installed: pip install .[docs]"
)
def test_a_page_that_is_wrong_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "index.md"
    page.write_text("# Start\n\n[the top](#start)\n")
    assert build(tmp_path).returncode == 0
    page.write_text("# Start\n\n[nowhere](gone.md)\n")
    assert build(tmp_path).returncode != 0
