"""Which path serves a call: the libraries that are loaded, and what their kernels know."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._fakes import register_fakes
from ._gradients import register_gradients
from ._request import Request

LIBRARY = Path(__file__).with_name("_C_cpu.so")
CUDA_LIBRARY = Path(__file__).with_name("_C_cuda.so")
CUDA_MOST_TAPS = 33  # kMostTaps of csrc/ssim_cuda_geometry.h
# what fits a block's shared memory, with gradients and in float64
CUDA_MOST_TAPS_OF_A_VOLUME = 15


def _why_not_built(library: Path) -> str:
    why = library.with_suffix(".why")  # left by setup.py
    if why.exists():
        return why.read_text(encoding="utf-8").strip()
    folder = library.parent.parent
    if (folder / "setup.py").exists():  # Python takes them before the package that is installed
        return f"these are sources that were not built: leave {folder}, or 'pip install -e .' there"
    return "reason unknown"


def _load(library: Path, load: Callable[[Path], None]) -> str | None:
    """Load a library of operators; the reason where it cannot be had."""
    if not library.exists():
        return f"it was not built: {_why_not_built(library)}"
    try:
        load(library)
    except (OSError, RuntimeError, AttributeError) as error:  # the last: it defines no operators
        return f"it does not load: {str(error).strip().splitlines()[0]}"
    return None


def _load_cpu(library: Path) -> None:
    torch.ops.load_library(str(library))
    torch.ops.ssim_fused.cpu_isa()
    register_fakes()
    register_gradients()


def _load_cuda() -> str | None:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if os.environ.get("SSIM_FUSED_CUDA") == "0":
        return "SSIM_FUSED_CUDA=0 is set"
    if cpu_reason is not None:
        return f"the CPU library, which declares the operators, is missing: {cpu_reason}"
    from . import _cuda  # a fifth of the import's time, which a torch without CUDA is spared

    return _load(CUDA_LIBRARY, _cuda.load) or _cuda.reason()


# None where the path is in use
cpu_reason = _load(LIBRARY, _load_cpu)
cuda_reason = _load_cuda()


@functools.cache
def _find_gpu_reason(device: int) -> str | None:
    if not torch.cuda.is_available():  # an image that only stands for one
        return None
    from . import _cuda

    major, minor = torch.cuda.get_device_capability(device)
    return _cuda.reason(10 * major + minor)


def gpu_reason(device: int) -> str | None:
    """Why the kernels do not serve a GPU; None where they do."""
    return _find_gpu_reason(device)


# what torch.compiler.assume_constant_result does, without importing all of Dynamo, which takes as
# long as torch itself
gpu_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _reason_of_gpu(image: Tensor) -> str | None:
    """The same for an image's GPU, or for the current one."""
    if image.is_cuda:
        return gpu_reason(image.device.index or 0)
    return gpu_reason(torch.cuda.current_device()) if torch.cuda.is_available() else None


# ---- which path ----


def _under_transform(request: Request) -> bool:
    """Whether vmap or forward-mode derivatives are taken, which the operators do not know."""
    if torch.compiler.is_compiling():
        # what a traced image is asked for is not told, torch.func.grad's own argument included
        return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    if torch._C._are_functorch_transforms_active():
        kinds = (torch._C._functorch.TransformType.Grad,)
        stack = torch._C._functorch.get_interpreter_stack()
        return any(interpreter.key() not in kinds for interpreter in stack)
    if forward_ad._current_level < 0:
        return False
    images = (request.input, request.target)
    return any(forward_ad.unpack_dual(image).tangent is not None for image in images)


def no_kernel(request: Request, device: str) -> str | None:
    """Why the library of a device would not compute a request; None where it would."""
    if device not in ("cpu", "cuda"):
        return f"there is no native code for device {device!r}"
    if device == "cuda":
        if max(request.settings.taps(request.axes())) > CUDA_MOST_TAPS:
            return f"the CUDA kernels serve windows of at most {CUDA_MOST_TAPS} taps"
        most = CUDA_MOST_TAPS_OF_A_VOLUME
        if request.axes() == 3 and max(request.settings.taps(3)) > most:
            return f"the CUDA kernels for volumes serve windows of at most {most} taps"
    return None


def why_reference(request: Request, device: str | None = None) -> str | None:
    """None where a native kernel computes a request, else the reason why none does.

    device: another than the images' own.
    """
    device = device or request.input.device.type
    if device == "cpu" and cpu_reason is not None:
        return cpu_reason
    if device == "cuda":
        if cuda_reason is not None:
            return cuda_reason
        if reason := _reason_of_gpu(request.input):
            return reason
    if _under_transform(request):
        return "vmap and forward-mode derivatives are PyTorch's"
    return no_kernel(request, device)


def in_float32(request: Request, device: str | None = None) -> bool:
    """Whether other types are converted to float32 first, and not in the kernel.

    The CPU kernels for volumes, masked images and windows other than 11 x 11 (or with next to
    nothing in the middle: Window::is_fast in csrc/ssim_cpu.h) know float32 and float64 alone. And
    float16 gradients of weighted means would fall below its smallest number.
    """
    if request.input.dtype in (torch.float32, torch.float64):
        return False
    device = device or request.input.device.type
    settings = request.settings
    general = request.axes() == 3 or settings.taps(request.axes()) != [11, 11]
    general = general or any(16 * window[5] < max(window) for window in settings.windows)
    if device == "cpu" and (general or request.mask is not None):
        return True
    return request.share is not None and request.input.dtype == torch.float16
