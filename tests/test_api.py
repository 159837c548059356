"""The public names and signatures are those that tests/api.txt keeps.

After a change that is meant (see the deprecation policy in CONTRIBUTING.md), write it anew:
``python tests/test_api.py``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import ssim_fused
from ssim_fused import compat

SNAPSHOT = Path(__file__).with_name("api.txt")


def signature(thing: object) -> str:
    """Parameters and what is returned, without what differs between versions of Python."""
    try:
        text = str(inspect.signature(thing))
    except (TypeError, ValueError):
        return ""
    return re.sub(r"ForwardRef\(('.*?')[^)]*\)| at 0x[0-9a-f]+", r"\1", text)


def public_members(cls: type) -> list[str]:
    """A class's own public methods and attributes, one a line."""
    lines = []
    for name, member in sorted(vars(cls).items()):
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, property):
            lines.append(f".{name}: property")
        elif inspect.isfunction(member) or isinstance(member, (classmethod, staticmethod)):
            lines.append(f".{name}{signature(getattr(cls, name))}")
    return lines


def describe(module, prefix: str) -> list[str]:
    """Every public name of a module, with its signature."""
    lines = []
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        if inspect.ismodule(thing):
            lines.append(f"{prefix}.{name}: module")
        elif inspect.isclass(thing):
            lines.append(f"{prefix}.{name}{signature(thing)}")
            lines += [f"{prefix}.{name}{member}" for member in public_members(thing)]
        elif callable(thing):
            lines.append(f"{prefix}.{name}{signature(thing)}")
        else:
            lines.append(f"{prefix}.{name}: {type(thing).__name__}")
    return lines


def modules() -> list[str]:
    """The public modules."""
    found = [f"ssim_fused.compat.{m.name}" for m in pkgutil.iter_modules(compat.__path__)]
    public = ["ssim_fused", "ssim_fused.compat", "ssim_fused.metrics", "ssim_fused.reference"]
    return public + [name for name in sorted(found) if "._" not in name]


def api() -> str:
    """The whole public interface as text."""
    lines = []
    for name in modules():
        try:
            module = importlib.import_module(name)
        except ImportError as error:  # a library that it is made of is an extra
            pytest.skip(f"{name} needs {error.name}")
        lines += describe(module, name)
    return "\n".join(lines) + "\n"


def test_no_public_signature_has_changed():
    assert api() == SNAPSHOT.read_text(encoding="utf-8")


def test_every_public_module_says_what_is_public():
    for name in modules():
        module = importlib.import_module(name)
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        assert all(hasattr(module, public) for public in module.__all__)


def test_a_changed_signature_is_noticed(monkeypatch):
    def dssim(input, target, *, data_range=2.0):
        raise NotImplementedError

    monkeypatch.setattr(ssim_fused, "dssim", dssim)
    assert api() != SNAPSHOT.read_text(encoding="utf-8")


if __name__ == "__main__":
    SNAPSHOT.write_text(api(), encoding="utf-8")
