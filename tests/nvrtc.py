"""NVRTC by ctypes: the CUDA kernel compiled without nvcc and without a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class Nvrtc:
    """One NVRTC library."""

    def __init__(self, path: Path) -> None:
        for builtins in path.parent.glob("libnvrtc-builtins.so*"):
            ctypes.CDLL(str(builtins))  # NVRTC itself would look for it on the system's path
        self.library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value)

    def _log(self, program: ctypes.c_void_p) -> str:
        size = ctypes.c_size_t()
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self.library.nvrtcGetProgramLog(program, text)
        return text.value.decode()

    def compile(self, kernels: list[str], architecture: str) -> tuple[bytes, list[str], str]:
        """SASS of `kernels` (name expressions), their lowered names, and the log."""
        program = ctypes.c_void_p()
        source = b'#include "ssim_cuda_kernel.h"\n'
        create = self.library.nvrtcCreateProgram
        assert create(ctypes.byref(program), source, b"ssim.cu", 0, None, None) == 0
        for name in kernels:
            assert self.library.nvrtcAddNameExpression(program, name.encode()) == 0
        options = [f"--gpu-architecture=sm_{architecture}", "--std=c++20", f"-I{ROOT / 'csrc'}"]
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.library.nvrtcCompileProgram(program, len(options), encoded)
        log = self._log(program)
        if failed:
            raise RuntimeError(log)
        lowered = []
        for name in kernels:
            found = ctypes.c_char_p()
            get = self.library.nvrtcGetLoweredName
            assert get(program, name.encode(), ctypes.byref(found)) == 0
            lowered.append(found.value.decode())
        size = ctypes.c_size_t()
        assert self.library.nvrtcGetCUBINSize(program, ctypes.byref(size)) == 0
        cubin = ctypes.create_string_buffer(size.value)
        assert self.library.nvrtcGetCUBIN(program, cubin) == 0
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin.raw, lowered, log


def find(major: int, places: list[Path]) -> Nvrtc | None:
    """An NVRTC of this major version in the folders of site-packages given."""
    spec = importlib.util.find_spec("nvidia")
    own = [Path(place) for place in spec.submodule_search_locations] if spec else []
    for place in [*own, *(folder / "nvidia" for folder in places)]:
        for path in sorted(place.glob(f"*/lib/libnvrtc.so.{major}*")):
            return Nvrtc(path)
    return None
