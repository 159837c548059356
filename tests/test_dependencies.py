"""What the package needs, and what developers install: declared, locked, licensed."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ssim_fused._extra import INSTALLED_BY

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# what people install to use the package, not to work on it
USED = ("metrics", "command", "video", "ray")
TEXT = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").replace(" \\\n", "\n")
LINES = re.findall(r"^(\S+==.*)\n((?: +--hash=sha256:[0-9a-f]{64}\n)*)", TEXT, re.M)


@pytest.fixture(scope="module")
def locked():
    """name -> version, of those that this Python gets."""
    found = [Requirement(line) for line, _ in LINES]
    found = [each for each in found if each.marker is None or each.marker.evaluate()]
    versions = {canonicalize_name(each.name): str(each.specifier)[2:] for each in found}
    assert len(versions) == len(found)
    return versions


def test_torch_is_all_that_the_package_needs():
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["torch"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_extras_are_locked(extra, locked):
    for line in EXTRAS[extra]:
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{line}: make lock"
        assert requirement.specifier.contains(locked[name]), f"{line}: make lock"


def test_messages_name_what_an_extra_installs():
    for extra, packages in INSTALLED_BY.items():
        assert packages.split() == EXTRAS[extra]


def test_every_locked_file_has_a_hash():
    assert len(LINES) == len(re.findall(r"^[^ #\n]", TEXT, re.M))
    assert all("--hash=sha256:" in hashes for _, hashes in LINES)


def test_what_is_installed_is_what_is_locked(locked):
    assert locked == {name: importlib.metadata.version(name) for name in locked}


def licence(name):
    """As a distribution's metadata has it."""
    metadata = importlib.metadata.metadata(name)
    given = metadata.get("License-Expression") or metadata.get("License") or ""
    if given and "\n" not in given and len(given) < 100:
        return given.replace("Apache 2.0", "Apache-2.0")
    classified = [line for line in metadata.get_all("Classifier") if line.startswith("License")]
    return classified[0].rpartition(" :: ")[2]


def test_licences_are_listed():
    lines = [line for extra in USED for line in EXTRAS[extra]]
    names = sorted({"torch", *(Requirement(line).name for line in lines)})
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for name in names:
        assert f"| {name} | {licence(name)} |" in page
    assert page.count("\n| ") == len(names) + 1  # and the head: no others
