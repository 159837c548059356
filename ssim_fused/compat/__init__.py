"""Other libraries' SSIM, computed by this one: their names, arguments, defaults and values.

Where a program can be edited, one line is::

    from ssim_fused.compat.pytorch_msssim import ssim  # was: from pytorch_msssim import ssim

Where it cannot, :func:`install` puts a stand-in before the library itself. ``docs/switching.md``
has every library, and where values differ.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = ["LIBRARIES", "Installed", "install", "uninstall"]

LIBRARIES = (
    "frame_analytics",
    "fused_ssim",
    "fussim",
    "kornia",
    "monai",
    "piq",
    "pytorch_msssim",
    "skimage",
    "torchmetrics",
)

if TYPE_CHECKING:
    from . import frame_analytics as frame_analytics
    from . import fused_ssim as fused_ssim
    from . import fussim as fussim
    from . import kornia as kornia
    from . import monai as monai
    from . import piq as piq
    from . import pytorch_msssim as pytorch_msssim
    from . import skimage as skimage
    from . import torchmetrics as torchmetrics


def __getattr__(name: str) -> Any:
    """A library's module is imported when it is first asked for."""
    if name in LIBRARIES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _NoName(AttributeError, NotImplementedError):
    """A name that a stand-in lacks: ``hasattr`` takes an AttributeError for an answer."""


class _NoModule(ImportError, NotImplementedError):
    """The same of a module, and of ``from stand_in import name``."""


def _of_ssim(name: str) -> bool:
    return re.search("ssim|structural_?similarity", name, re.IGNORECASE) is not None


class _StandIn(ModuleType):
    """A module that has some names of another, and refuses its others of SSIM.

    Where the other module can be imported, it has the rest; without it, the rest is refused, too.
    """

    def __init__(
        self, name: str, offered: dict[str, Any], original: ModuleType | None = None
    ) -> None:
        super().__init__(name, f"ssim_fused.compat in the place of {name}")
        self._original = original
        # without the original a package without files: nothing lies below it
        self.__path__: list[str] = list(getattr(original, "__path__", ()))
        self.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        self.__spec__.submodule_search_locations = self.__path__
        self.__dict__.update(offered)
        self.__all__ = sorted(each for each in offered if not each.startswith("_"))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        # a module that is imported meanwhile is one of the original, afterwards, too
        imported = isinstance(value, ModuleType) and not isinstance(value, _StandIn)
        if imported and name != "_original" and self._original is not None:
            setattr(self._original, name, value)

    def __dir__(self) -> list[str]:
        rest = (name for name in dir(self._original or ()) if not name.startswith("__"))
        return sorted({*self.__dict__, *(name for name in rest if not _of_ssim(name))})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python and its tools ask of any module
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if self._original is not None and not _of_ssim(name):
            with contextlib.suppress(AttributeError):
                return getattr(self._original, name)
        raise _NoName(
            f"ssim_fused.compat does not cover {self.__name__}.{name}, "
            f"only {', '.join(self.__all__)}",
            name=name,
            obj=self,
        )


class _Finder:
    """Refuses modules of SSIM below a stand-in, and those that are not there.

    A stand-in that is reloaded stays what it is.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if isinstance(target, _StandIn):
            return target.__spec__
        above, _, last = name.rpartition(".")
        parent = sys.modules.get(above)
        if isinstance(parent, _StandIn):
            if not _of_ssim(last) and (spec := PathFinder.find_spec(name, parent.__path__)):
                return spec
            raise _NoModule(
                f"ssim_fused.compat does not cover the module {name}, "
                f"only {', '.join(parent.__all__)}",
                name=name,
            )
        return None


class Installed:
    """What :func:`install` did; as a context manager, undone at its end."""

    def __init__(self, library: str) -> None:
        self.library = library

    def __enter__(self) -> Installed:
        return self

    def __exit__(self, *error: object) -> None:
        if self.library in _installed:
            uninstall(self.library)


_MISSING: Any = object()
# by library: what stood in sys.modules, and as attributes of their parents
_installed: dict[str, tuple[dict[str, Any], list[tuple[ModuleType, str, Any]]]] = {}


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _original(name: str) -> ModuleType | None:
    """A module of a library, where it can be imported."""
    try:
        return importlib.import_module(name)
    except Exception:  # a library may fail in its own ways, for one that it needs
        return None


def _library(name: str) -> str:
    if name not in LIBRARIES:
        raise ValueError(f"library must be one of {', '.join(LIBRARIES)}, got {name!r}")
    return name


def install(library: str) -> Installed:
    """Put the stand-in for a library before the library, for programs that cannot be edited.

    Call it before the program imports the library: names that are already imported stay what they
    are. Of a library with many modules only those with SSIM are replaced (``kornia.losses``, not
    ``kornia``), and what has nothing to do with SSIM is that of the library, where it can be
    imported. Another name that a stand-in lacks is a NotImplementedError where it is used, which is
    an AttributeError, too; a module below it, and what is imported from it, one that is an
    ImportError.

    Args:
        library: one of ``LIBRARIES``.

    Returns:
        A context manager whose end undoes it; or call :func:`uninstall`.

    Raises:
        ValueError: for a library without a stand-in, or one that is installed already.

    Example:
        >>> with ssim_fused.compat.install("pytorch_msssim"):
        ...     import their_program
    """
    if _library(library) in _installed:
        raise ValueError(f"the stand-in for {library} is installed already")
    shim = importlib.import_module(f"{__name__}.{library}")
    targets: dict[str, list[str]] = shim.STANDS_FOR
    for parent in {parent for target in targets for parent in _parents(target)}:
        if parent not in targets:
            with contextlib.suppress(ImportError):  # the library's other modules, if it is there
                importlib.import_module(parent)
    originals = {target: _original(target) for target in targets}
    stand_ins: dict[str, Any] = {}
    for target, names in targets.items():
        offered = {name: getattr(shim, name) for name in names}
        stand_ins[target] = _StandIn(target, offered, originals[target])
        for parent in _parents(target):
            if parent not in sys.modules and parent not in targets:
                stand_ins.setdefault(parent, _StandIn(parent, {}))
    hidden = [
        name
        for name in sys.modules
        for parent in _parents(name)
        if parent in targets and (originals[parent] is None or _of_ssim(name[len(parent) :]))
    ]
    before = {name: sys.modules.get(name, _MISSING) for name in {*stand_ins, *hidden}}
    for name in hidden:
        sys.modules.pop(name, None)
    sys.modules.update(stand_ins)
    attributes = []
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent:
            holder = sys.modules[parent]
            # a submodule may share its name with a function that the stand-in has
            if not isinstance(holder, _StandIn) or child not in holder.__dict__:
                attributes.append((holder, child, holder.__dict__.get(child, _MISSING)))
                setattr(holder, child, module)
    for name, names in getattr(shim, "ALSO_IN", {}).items():
        holder = sys.modules[name]
        for child in names:
            attributes.append((holder, child, holder.__dict__.get(child, _MISSING)))
            setattr(holder, child, getattr(shim, child))
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    _installed[library] = (before, attributes)
    return Installed(library)


def uninstall(library: str) -> None:
    """Undo :func:`install`: the library itself is imported again, where it is there."""
    if _library(library) not in _installed:
        raise ValueError(f"the stand-in for {library} is not installed")
    before, attributes = _installed.pop(library)
    for holder, child, value in reversed(attributes):
        if value is _MISSING:
            delattr(holder, child)
        else:
            setattr(holder, child, value)
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not _MISSING:
            sys.modules[name] = module
    if not _installed:
        sys.meta_path.remove(_Finder)
