"""The public names and signatures are those that tests/api.txt keeps.

After a change that is meant (see the deprecation policy in CONTRIBUTING.md), write it anew:
``python tests/test_api.py``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
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
    extras = ("evaluate_batch",) if prefix == "ssim_fused" else ()
    for name in sorted((*module.__all__, *extras)):
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
            lines += describe(importlib.import_module(name), name)
        except ImportError as error:  # a library that it is made of is an extra
            pytest.skip(f"{name} needs {error.name or error}")
    return "\n".join(lines) + "\n"


def test_no_public_signature_has_changed():
    assert api() == SNAPSHOT.read_text(encoding="utf-8")


def test_every_public_module_says_what_is_public():
    for name in modules():
        module = importlib.import_module(name)
        assert sorted(set(module.__all__)) == sorted(module.__all__)
        assert all(hasattr(module, public) for public in module.__all__)


def test_modules_are_there_after_import_and_not_before_they_are_asked_for():
    pytest.importorskip("torchmetrics")
    code = """
import sys, torch, ssim_fused
lazy = {"ssim_fused.metrics", *(f"ssim_fused.compat.{n}" for n in ssim_fused.compat.LIBRARIES)}
assert lazy.isdisjoint(sys.modules)
x = torch.rand(1, 1, 16, 16, requires_grad=True)
ssim_fused.ssim_loss(x, x.detach().flip(3)).backward()
assert "torch._dynamo" not in sys.modules  # as large as torch itself
print(ssim_fused.metrics.StructuralSimilarity.__name__)
for name in ssim_fused.compat.LIBRARIES:
    assert getattr(ssim_fused.compat, name).STANDS_FOR
for module, name in ((ssim_fused, "metric"), (ssim_fused.compat, "ssim")):
    try:
        getattr(module, name)
    except AttributeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "StructuralSimilarity",
        "module 'ssim_fused' has no attribute 'metric'",
        "module 'ssim_fused.compat' has no attribute 'ssim'",
    ]


def test_a_changed_signature_is_noticed(monkeypatch):
    def dssim(input, target, *, data_range=2.0):
        raise NotImplementedError

    monkeypatch.setattr(ssim_fused, "dssim", dssim)
    assert api() != SNAPSHOT.read_text(encoding="utf-8")


if __name__ == "__main__":
    SNAPSHOT.write_text(api(), encoding="utf-8")
