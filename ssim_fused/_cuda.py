"""The CUDA library connected: with the driver, with torch's streams, and with its kernels.

csrc/ssim_cuda_driver.h says what the library is given. Nothing of CUDA is touched before the first
launch, so that importing does not keep a process from forking.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from pathlib import Path

import torch

from ._kernels import Kernels, NoKernel
from ._nvrtc import Compiled

_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

# in the order of csrc/ssim_cuda_driver.h
_FUNCTIONS = (
    "cuGetErrorString",
    "cuDeviceGetAttribute",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuDevicePrimaryCtxRetain",
    "cuMemAlloc_v2",
    "cuMemsetD32Async",
    "cuThreadExchangeStreamCaptureMode",
    "cuStreamIsCapturing",
    "cuStreamGetId",
    "cuLaunchKernel",
)
_FindKernel = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_void_p),
    ctypes.c_void_p,
    ctypes.c_int,
)


class _Driver(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
        ("current_stream", ctypes.c_void_p),
        ("find_kernel", _FindKernel),
    )


_Connect = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Driver), ctypes.c_void_p, ctypes.c_int)


# ---- the libraries ----


def _torch_libraries() -> Path:
    return Path(torch.__file__).parent / "lib"


@functools.cache
def kernels() -> Kernels:
    """Where this process takes its kernels from."""
    major = int(torch.version.cuda.split(".")[0]) if torch.version.cuda else None
    return Kernels(cuda_major=major, libraries=[_torch_libraries()])


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _torch_cuda() -> ctypes.CDLL:
    name = "torch_cuda.dll" if sys.platform == "win32" else "libtorch_cuda.so"
    return ctypes.CDLL(str(_torch_libraries() / name))


def _check(result: int, what: str) -> None:
    if result:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(result, ctypes.byref(text))
        said = text.value.decode() if text.value else "unknown error"
        raise NoKernel(f"{what} failed: {said} ({result})")


# ---- what the library calls ----


def _said(reason: BaseException) -> str:
    return str(reason) or type(reason).__name__


def _tell(error: int, size: int, reason: str) -> int:
    """Leave the text of an error in the library's buffer."""
    text = reason.encode()[: size - 1] + b"\0"
    ctypes.memmove(error, text, len(text))
    return 1


@_Connect
def _connect(driver, error, size):
    try:
        cuda = _driver()
        for name in _FUNCTIONS:
            address = ctypes.cast(getattr(cuda, name), ctypes.c_void_p)
            setattr(driver.contents, name, address.value)
        stream = ctypes.cast(_torch_cuda().aoti_torch_get_current_cuda_stream, ctypes.c_void_p)
        driver.contents.current_stream = stream.value
        driver.contents.find_kernel = _find_kernel
    except BaseException as reason:  # one would be lost in the library, Ctrl-C too
        return _tell(error, size, f"CUDA's driver cannot be called: {_said(reason)}")
    return 0


@functools.cache
def _capability(device: int) -> int:
    """A GPU's compute capability, as 90 for 9.0."""
    parts = [ctypes.c_int(), ctypes.c_int()]
    for part, attribute in zip(parts, _COMPUTE_CAPABILITY):
        result = _driver().cuDeviceGetAttribute(ctypes.byref(part), attribute, device)
        _check(result, "a device query")
    return parts[0].value * 10 + parts[1].value


def _load_function(compiled: Compiled) -> int:
    """A CUfunction in the current context. Its module stays for as long as the process."""
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    mode = ctypes.c_int(_RELAXED)  # loading would end a graph's capture
    driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    try:
        result = driver.cuModuleLoadData(ctypes.byref(module), compiled.image)
        if result == _OUT_OF_MEMORY:
            with contextlib.suppress(RuntimeError):  # not while a graph is captured
                torch.cuda.empty_cache()  # torch may hold what the driver lacks
            result = driver.cuModuleLoadData(ctypes.byref(module), compiled.image)
        _check(result, "loading a kernel")
        found = driver.cuModuleGetFunction(ctypes.byref(function), module, compiled.symbol.encode())
        _check(found, f"looking for {compiled.symbol}")
    finally:
        driver.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    assert function.value is not None
    return function.value


@_FindKernel
def _find_kernel(device, header, expression, function, error, size):
    try:
        capability, name = _capability(device), expression.decode()
        ahead = kernels().ahead(name, capability)
        if ahead is not None:
            try:
                function[0] = _load_function(ahead)
                return 0
            except NoKernel:  # the driver is older than the compiler was: compile for this one
                pass
        function[0] = _load_function(kernels().compiled(header.decode(), name, capability))
    except BaseException as reason:  # one would be lost in the library, Ctrl-C too
        return _tell(error, size, _said(reason))
    return 0


# ---- for the rest of the package ----


def load(library: Path) -> None:
    """Load the library of operators and connect it; OSError where it does not load."""
    torch.ops.load_library(str(library))
    for callback in (_connect, _find_kernel):  # the library calls them for as long as it is there
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(callback))
    ctypes.CDLL(str(library)).ssim_fused_cuda_connect(_connect)


def reason(capability: int | None = None) -> str | None:
    """Why no kernel can be had for a GPU of a compute capability, or for any; None if one can."""
    return kernels().reason(capability)
