"""The CUDA launchers with a driver that stands in for CUDA's, and runs kernels in the emulator."""

from __future__ import annotations

import ctypes
import hashlib
import secrets
import subprocess
from pathlib import Path
from typing import NamedTuple

import torch

from ssim_fused._nvrtc import Compiled

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
CACHE = ROOT / ".cache" / "cuda_standin"


def _build(name: str, sources: list[Path], flags: list[str]) -> Path:
    """A shared library; what was built before is kept."""
    inputs = [*CSRC.glob("*"), *HERE.glob("*.cpp"), HERE.parent / "cuda_emulator/cuda_on_cpu.h"]
    text = b"".join(path.read_bytes() for path in sorted(inputs)) + repr((name, flags)).encode()
    built = CACHE / hashlib.sha256(text).hexdigest()[:16] / name
    if not built.exists():
        built.parent.mkdir(parents=True, exist_ok=True)
        scratch = built.with_suffix(f".{secrets.token_hex(4)}")  # many may build it at once
        command = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", *flags]
        subprocess.run([*command, *map(str, sources), "-o", str(scratch)], check=True)
        scratch.replace(built)
    return built


def build_driver() -> Path:
    """The stand-in of libcuda.so.1."""
    flags = ["-Wl,-soname,libcuda.so.1", f"-I{CSRC}", f"-I{HERE.parent / 'cuda_emulator'}"]
    return _build("driver.so", [HERE / "driver.cpp"], flags)


def _build_launchers(name: str, source: Path, flags: list[str]) -> Path:
    folder = Path(torch.__file__).parent
    flags = [*flags, "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-I{folder / 'include'}", f"-I{folder / 'include/torch/csrc/api/include'}"]
    flags += [f"-L{folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-lc10"]
    shared = [CSRC / "ssim_cuda_volume.cpp", CSRC / "ssim_cuda_driver.cpp"]
    return _build(name, [source, *shared], flags)


def build_operators() -> Path:
    """The launchers as operators `ssim_fused_standin::*` of images of the CPU."""
    return _build_launchers("operators.so", HERE / "operators.cpp", ["-DSSIM_CUDA_STANDIN"])


def build_library() -> Path:
    """The library as it is, for a torch with CUDA."""
    return _build_launchers("_C_cuda.so", CSRC / "ssim_cuda.cpp", [])


class Call(NamedTuple):
    """One call that the driver wrote down."""

    what: str
    name: str
    blocks: int
    threads: int
    shared: int


class _Call(ctypes.Structure):
    _fields_ = (
        ("what", ctypes.c_char * 16),
        ("name", ctypes.c_char * 160),
        ("blocks", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint),
    )


class Driver:
    """The stand-in of CUDA's driver, and what it wrote down."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(build_driver()))
        self.library.standin_call.restype = ctypes.POINTER(_Call)
        self.library.standin_kernels.restype = ctypes.c_char_p

    def kernel_names(self) -> set[str]:
        """The names of all kernels that the launchers can choose, as `plain` gives them."""
        return set(self.library.standin_kernels().decode().split())

    def reset(self, refuse: int = 0, capability_major: int = 9) -> None:
        """Forget all calls; refuse this many images; be a GPU of this compute capability."""
        self.library.standin_reset(refuse, capability_major)

    def capture(self, capturing: bool) -> None:
        """Whether streams are captured into a graph from now on."""
        self.library.standin_capture(int(capturing))

    def be_scarce(self, times: int) -> None:
        """So many allocations and loaded images find no memory from now on."""
        self.library.standin_scarce(times)

    def change_stream(self, number: int) -> None:
        """Another current stream."""
        self.library.standin_stream(ctypes.c_ulonglong(number))

    def calls(self, what: str | None = None) -> list[Call]:
        """All calls since the reset, or those of one kind."""
        found = []
        for i in range(self.library.standin_calls()):
            call = self.library.standin_call(i).contents
            found.append(
                Call(call.what.decode(), call.name.decode(), call.blocks, call.threads, call.shared)
            )
        return [call for call in found if what in (None, call.what)]


class NoCompiler:
    """In place of NVRTC: an image that holds nothing, under the name that NVRTC would give."""

    version = (12, 9)
    architectures = (75, 80, 90)

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def compile(self, headers, header, expression, architecture, options=()):
        assert header in headers
        self.compiled.append(expression)
        return Compiled(written_out(expression), b"image"), ""


def written_out(expression: str) -> str:
    """A name expression as a compiler writes it out; the stand-in takes such names, too."""
    for kind, values in (
        ("Layout", ("streaming", "tile", "any")),
        ("Task", ("value", "map", "gradient", "gradients", "backward", "backwards")),
    ):
        for number, value in enumerate(values):
            for end in (",", ">"):
                expression = expression.replace(
                    f"ssim_fused::{kind}::{value}{end}", f"(ssim_fused::{kind}){number}{end}"
                )
    return expression.replace("uint8", "unsigned char").replace("uint16", "unsigned short") + "("


def plain(expression: str) -> str:
    """A name expression as the stand-in writes names down."""
    return written_out(expression).replace(" ", "").removesuffix("(")
