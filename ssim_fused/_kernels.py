"""The CUDA kernels: their names and source, and where a compiled one comes from.

Three places, in this order: those compiled ahead for a wheel (``kernels/sm_90.zip``), the cache on
disk, NVRTC. Imports nothing of torch, like ``_nvrtc``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import zipfile
from pathlib import Path

from . import _kernel_cache, _nvrtc
from ._kernel_cache import Cache
from ._nvrtc import Compiled, Nvrtc

FOLDER = Path(__file__).with_name("kernels")  # setup.py copies csrc's headers there
OPTIONS = ("--std=c++20",)
IMAGES, VOLUMES = "ssim_cuda_kernel.h", "ssim_cuda_volume_kernel.h"
UNPOOLING = "ssim_cuda_unpool_kernel.h"
OLDEST = 70  # compute capability; below, NVRTC refuses the kernels' parameters (__grid_constant__)
TEGRA = {53, 62, 72, 87, 101, 110}  # their code and other GPUs' is not for each other
SUMS = ("value", "gradient", "gradients")
TASKS = ("value", "map", "gradient", "gradients", "backward", "backwards")


def names() -> list[tuple[str, str]]:
    """Header and name expression of every kernel that is launched.

    What `dispatch` and `dispatch_volume` reach, see csrc/ssim_cuda_kernel.h.
    """
    found = []
    for dtype in ("float", "double", "float16", "bfloat16", "uint8", "uint16"):
        whole = dtype.startswith("uint")
        for task in TASKS[:2] if whole else TASKS:
            for layout in ("any",) if dtype == "double" else ("streaming", "tile", "any"):
                plain = task in SUMS and layout != "any" and not whole
                for extra in ("false", "true") if plain else ("true",):
                    how = f"ssim_fused::Layout::{layout}, ssim_fused::Task::{task}, {extra}"
                    found.append((IMAGES, f"ssim_fused::ssim_kernel<{dtype}, {how}>"))
            for fast in ("false",) if whole else ("true", "false"):
                how = f"{fast}, ssim_fused::Task::{task}"
                found.append((VOLUMES, f"ssim_fused::volume_kernel<{dtype}, {how}>"))
    for dtype in ("float", "double"):
        found.append((IMAGES, f"ssim_fused::reduce_kernel<{dtype}>"))
        found.append((UNPOOLING, f"ssim_fused::unpool_kernel<{dtype}>"))
    return found


class Source:
    """The headers that the kernels are compiled from."""

    def __init__(self, folder: Path = FOLDER) -> None:
        paths = sorted(folder.glob("*.h"))
        self.headers = {path.name: path.read_text(encoding="utf-8") for path in paths}
        text = json.dumps([self.headers, OPTIONS])
        self.hash = hashlib.sha256(text.encode()).hexdigest()

    def key(self, expression: str, architecture: int, version: tuple[int, int]) -> str:
        """What a compiled kernel depends on, as one word."""
        text = json.dumps([self.hash, expression, architecture, version])
        return hashlib.sha256(text.encode()).hexdigest()

    def compile(
        self, nvrtc: Nvrtc, header: str, expression: str, architecture: int, cache: Cache
    ) -> Compiled:
        """A kernel from the cache, or from NVRTC and then into the cache."""
        key = self.key(expression, architecture, nvrtc.version)
        compiled = cache.load(key)
        if compiled is None:
            compiled, _ = nvrtc.compile(self.headers, header, expression, architecture, OPTIONS)
            cache.store(key, compiled)
        return compiled


# ---- compiled ahead ----


def archive(architecture: int, folder: Path = FOLDER) -> Path:
    """Where the kernels of an architecture are that were compiled ahead."""
    return folder / f"sm_{architecture}.zip"


def write_archive(
    path: Path, source: Source, version: tuple[int, int], kernels: dict[str, Compiled]
) -> None:
    """Put kernels, by name expression, into a file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file:
        file.comment = json.dumps({"source": source.hash, "nvrtc": version}).encode()
        for expression, compiled in sorted(kernels.items()):
            info = zipfile.ZipInfo(expression, date_time=(1980, 1, 1, 0, 0, 0))  # reproducible
            file.writestr(info, _kernel_cache.pack(compiled), zipfile.ZIP_DEFLATED, 9)


def built_in(folder: Path = FOLDER) -> list[int]:
    """The architectures that kernels were compiled for ahead, lowest first."""
    return sorted(int(path.stem[len("sm_") :]) for path in folder.glob("sm_*.zip"))


def serving(capability: int, architectures: list[int]) -> int | None:
    """Of architectures, the best that a GPU runs: its own, or of the same major version one that is
    older; but no Tegra's, and nothing but its own on a Tegra.
    """
    if capability in architectures:
        return capability
    older = (a for a in architectures if a // 10 == capability // 10 and a < capability)
    return max((a for a in older if not {a, capability} & TEGRA), default=None)


def read_archive(path: Path, source: Source, expression: str) -> Compiled | None:
    """A kernel compiled ahead; None where it is of another source, not there, or damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            if json.loads(file.comment)["source"] != source.hash:
                return None
            return _kernel_cache.unpack(file.read(expression))
    except Exception:  # zipfile and zlib have an error each for what is damaged where
        return None


# ---- at run time ----


class NoKernel(Exception):
    """Why there is no kernel for a GPU."""


class Kernels:
    """Where this process takes its kernels from."""

    def __init__(
        self,
        folder: Path = FOLDER,
        cuda_major: int | None = None,
        libraries: list[Path] | None = None,
    ) -> None:
        self.folder = folder
        self.built_in = built_in(folder)
        self.nvrtc_path = _nvrtc.find(cuda_major, libraries)
        self.cache = Cache(_kernel_cache.folder())

    @functools.cached_property
    def source(self) -> Source:
        """The headers; read when the first kernel is wanted."""
        return Source(self.folder)

    @functools.cached_property
    def nvrtc(self) -> Nvrtc:
        """NVRTC, loaded when the first kernel has to be compiled."""
        if self.nvrtc_path is None:
            raise NoKernel("NVRTC is not found (pip install nvidia-cuda-nvrtc-cu12, or -cu13)")
        try:
            return Nvrtc(self.nvrtc_path)
        except OSError as error:
            raise NoKernel(f"NVRTC does not load: {error}") from None

    def reason(self, capability: int | None = None) -> str | None:
        """Why no kernel can be had for a GPU, or for any; None where there may be one."""
        if capability is None:
            if self.built_in or self.nvrtc_path is not None:
                return None
            return "no kernels are built in, and NVRTC is not found"
        if capability < OLDEST:
            return (
                f"the kernels need a GPU of compute capability {OLDEST / 10}, "
                f"this one has {capability / 10}"
            )
        if serving(capability, self.built_in) is not None:
            return None
        try:
            self.architecture(capability)
        except NoKernel as reason:
            return f"no kernels for sm_{capability} are built in, and {reason}"
        return None

    def ahead(self, expression: str, capability: int) -> Compiled | None:
        """A kernel that was compiled ahead."""
        architecture = serving(capability, self.built_in)
        if architecture is None:
            return None
        return read_archive(archive(architecture, self.folder), self.source, expression)

    def compiled(self, header: str, expression: str, capability: int) -> Compiled:
        """A kernel from the cache or from NVRTC; NoKernel, RuntimeError where there is none."""
        architecture = self.architecture(capability)
        return self.source.compile(self.nvrtc, header, expression, architecture, self.cache)

    def architecture(self, capability: int) -> int:
        """What NVRTC compiles for a GPU; NoKernel where it knows none that serves."""
        found = serving(capability, self.nvrtc.architectures)
        if found is None:
            version = ".".join(map(str, self.nvrtc.version))
            raise NoKernel(f"NVRTC {version} knows no GPU of compute capability {capability / 10}")
        return found

    def describe(self, capability: int | None = None) -> str:
        """Where kernels come from, in words: for one GPU, or for any."""
        if capability is not None and (reason := self.reason(capability)):
            return f"none: {reason}"
        parts = []
        if self.built_in:
            listed = ", ".join(f"sm_{architecture}" for architecture in self.built_in)
            best = None if capability is None else serving(capability, self.built_in)
            if best is not None:
                return f"built in, sm_{best}"
            parts.append(f"built in for {listed}")
        if self.nvrtc_path is not None:
            others = "others " if parts else ""
            kept = f"kept in {self.cache.place}" if self.cache.place else "not kept"
            parts.append(f"{others}compiled at first use by {self.nvrtc_path.name}, {kept}")
        elif not parts:
            parts.append(str(self.reason()))
        return "; ".join(parts)
