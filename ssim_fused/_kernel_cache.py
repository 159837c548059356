"""Compiled kernels on disk, for the next process.

An entry is written beside its place and renamed, so that readers see all of it or nothing, whoever
else writes. It carries a checksum: one that is damaged counts as missing. Where nothing can be
written, a warning says so once, and the work goes on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from ._nvrtc import Compiled

VARIABLE = "SSIM_FUSED_CACHE"


def _checksum(compiled: Compiled) -> str:
    return hashlib.sha256(compiled.symbol.encode() + b"\n" + compiled.image).hexdigest()


def pack(compiled: Compiled) -> bytes:
    """A kernel as one string of bytes, with its checksum."""
    head = {"symbol": compiled.symbol, "sha256": _checksum(compiled)}
    return json.dumps(head).encode() + b"\n" + compiled.image


def unpack(entry: bytes) -> Compiled | None:
    """The kernel in what `pack` made; None where it is damaged."""
    head, _, image = entry.partition(b"\n")
    try:
        said = json.loads(head)
        compiled, checksum = Compiled(said["symbol"], image), said["sha256"]
        return compiled if checksum == _checksum(compiled) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def folder() -> Path | None:
    """Where kernels are kept: $SSIM_FUSED_CACHE, or the user's cache; None: nowhere.

    An empty SSIM_FUSED_CACHE turns it off.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "ssim_fused"
    except RuntimeError:  # there is no home
        return None


class Cache:
    """Kernels by key in a folder; without one, nothing is kept."""

    def __init__(self, place: Path | None) -> None:
        self.place = place

    def _path(self, key: str) -> Path | None:
        return None if self.place is None else self.place / f"{key}.kernel"

    def _give_up(self, reason: object) -> None:
        where, self.place = self.place, None
        with contextlib.suppress(Warning):  # as an error it would stop a launch
            warnings.warn(
                f"ssim_fused: compiled CUDA kernels are not kept in {where}: {reason}; "
                f"each process compiles them anew ({VARIABLE} names another folder)",
                stacklevel=2,
            )

    def load(self, key: str) -> Compiled | None:
        """The kernel of this key; None where there is none, or it is damaged."""
        path = self._path(key)
        if path is None:
            return None
        try:
            # what anyone may write is not run
            if os.name == "posix" and path.parent.stat().st_mode & stat.S_IWOTH:
                self._give_up("anyone may write there")
                return None
            return unpack(path.read_bytes())
        except (FileNotFoundError, PermissionError):  # or another user's
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:  # replaced meanwhile, from elsewhere on a network
                return None
            self._give_up(error)
            return None

    def store(self, key: str, compiled: Compiled) -> None:
        """Keep a kernel."""
        path = self._path(key)
        if path is None:
            return
        scratch = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, scratch = tempfile.mkstemp(prefix=".", dir=path.parent)
            if os.name == "posix":
                os.fchmod(handle, 0o644)  # a group may share the folder
            with os.fdopen(handle, "wb") as file:
                file.write(pack(compiled))
            os.replace(scratch, path)
        except OSError as error:
            if scratch is not None:
                with contextlib.suppress(OSError):
                    os.unlink(scratch)
            self._give_up(error)
