"""NVRTC, CUDA's compiler as a library: found in what torch's CUDA wheels bring, called by ctypes.

Imports nothing of torch, so that kernels can be compiled where a package is built.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class Compiled(NamedTuple):
    """A kernel as CUDA's driver loads it."""

    symbol: str  # in the image, a mangled name
    image: bytes  # a cubin


class Nvrtc:
    """One NVRTC library; OSError where it does not load."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins))  # NVRTC itself would look for it on the system's path
        self._library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("Version", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def _call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, f"nvrtc{name}")(*arguments)
        if result:
            text = self._library.nvrtcGetErrorString
            text.restype = ctypes.c_char_p
            raise RuntimeError(f"NVRTC's {name} failed: {text(result).decode()}")

    def _text(self, what: str, program: ctypes.c_void_p) -> bytes:
        """What NVRTC hands out in two calls: its size, then its bytes."""
        size = ctypes.c_size_t()
        self._call(f"Get{what}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"Get{what}", program, text)
        return text.raw

    @functools.cached_property
    def architectures(self) -> list[int]:
        """The compute capabilities that it compiles for, as 90 for 9.0, lowest first."""
        count = ctypes.c_int()
        self._call("GetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("GetSupportedArchs", found)
        return sorted(found)

    def compile(
        self,
        headers: dict[str, str],
        header: str,
        expression: str,
        architecture: int,
        options: tuple[str, ...] = (),
    ) -> tuple[Compiled, str]:
        """Compile one kernel.

        Args:
            headers: name and text of every header.
            header: the one that holds the kernel.
            expression: the kernel's name, with template arguments.
            architecture: the compute capability, as 90 for 9.0.
            options: of NVRTC, beside the architecture.

        Returns:
            the kernel, and NVRTC's log.

        Raises:
            RuntimeError: it does not compile; the text is NVRTC's log.
        """
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        source = f'#include "{header}"\n'.encode()
        self._call(
            "CreateProgram", ctypes.byref(program), source, b"ssim.cu", len(headers), texts, names
        )
        try:
            self._call("AddNameExpression", program, expression.encode())
            flags = [f"--gpu-architecture=sm_{architecture}", *options]
            encoded = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
            failed = self._library.nvrtcCompileProgram(program, len(flags), encoded)
            log = self._text("ProgramLog", program).rstrip(b"\0").decode()
            if failed:
                raise RuntimeError(f"NVRTC could not compile {expression}: {log}")
            symbol = ctypes.c_char_p()
            self._call("GetLoweredName", program, expression.encode(), ctypes.byref(symbol))
            assert symbol.value is not None
            return Compiled(symbol.value.decode(), self._text("CUBIN", program)), log
        finally:
            self._call("DestroyProgram", ctypes.byref(program))


def _version_in(path: Path) -> int:
    """The major version in a file's name: libnvrtc.so.12, nvrtc64_120_0.dll; 0 for none."""
    found = re.search(r"\.so\.(\d+)|nvrtc64_(\d+)\d_", path.name)
    return int(found[1] or found[2]) if found else 0


def _candidates(folders: list[Path]) -> Iterator[Path]:
    """Libraries in the `nvidia` packages, folders given, the environment, and a CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(place) for place in spec.submodule_search_locations or ()] if spec else []
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    toolkits = [Path(home) for home in homes if home] + [Path("/usr/local/cuda")]
    places = [folder for package in packages for folder in sorted(package.glob("*/lib"))]
    places += [folder for package in packages for folder in sorted(package.glob("*/bin"))]
    places += [*folders, Path(sys.prefix) / "lib"]  # the latter is conda's
    places += [toolkit / part for toolkit in toolkits for part in ("lib64", "bin")]
    pattern = "nvrtc64_*.dll" if sys.platform == "win32" else "libnvrtc.so.*"
    for place in places:
        yield from sorted(path for path in place.glob(pattern) if "alt" not in path.name)


def find(major: int | None = None, folders: list[Path] | None = None) -> Path | None:
    """An NVRTC library, of this major version of CUDA if one is given; None where there is none.

    folders: where to look beside the ``nvidia`` packages and a CUDA toolkit.
    """
    found = _candidates(folders or [])
    return next((path for path in found if major in (None, _version_in(path))), None)
