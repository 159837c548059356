"""``python -m ssim_fused``: which paths are available and in use, and why."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from . import __version__, _cuda, _paths

_DTYPES = "float32, float64; float16 and bfloat16 with float32 arithmetic"


def _cpu() -> str:
    if _paths.cpu_reason is None:
        return f"native, {torch.ops.ssim_fused.cpu_isa()} ({_DTYPES})"
    return f"fallback (plain PyTorch): the native library is not in use because {_paths.cpu_reason}"


def _gpu(device: int) -> str:
    name = torch.cuda.get_device_name(device)
    reason = None if _paths.cuda_reason else _paths.gpu_reason(device)
    return f"{name}: fallback (plain PyTorch), {reason}" if reason else name


def _cuda_path() -> str:
    if torch.version.cuda is None:
        return f"none: {_paths.cuda_reason}"
    if _paths.cuda_reason is not None:
        reason = _paths.cuda_reason
        path = f"fallback (plain PyTorch): the CUDA library is not in use because {reason}"
    else:
        most, of_volumes = _paths.CUDA_MOST_TAPS, _paths.CUDA_MOST_TAPS_OF_A_VOLUME
        left = f"windows of more than {most} taps (volumes: {of_volumes}) by the fallback"
        path = f"native ({_DTYPES}); {left}"
    if torch.cuda.is_available():
        gpus = [_gpu(i) for i in range(torch.cuda.device_count())]
        return "; ".join([path, *gpus])
    return f"{path}; torch is built for CUDA {torch.version.cuda}, but finds no GPU"


def _cuda_kernels() -> str:
    """Where the kernels come from: for each GPU, or for any where none is found."""
    if _paths.cuda_reason is not None:
        return f"none: {_paths.cuda_reason}"
    if not torch.cuda.is_available():
        return _cuda.kernels().describe()
    gpus = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    capabilities = sorted({major * 10 + minor for major, minor in gpus})
    return "; ".join(f"sm_{of}: {_cuda.kernels().describe(of)}" for of in capabilities)


def report() -> str:
    """What a bug report needs, in one paste."""
    rows = [
        ("ssim_fused", __version__),
        ("from", Path(__file__).parent),
        ("torch", torch.__version__),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        ("threads", torch.get_num_threads()),
        ("cpu", _cpu()),
        ("cuda", _cuda_path()),
        ("kernels", _cuda_kernels()),
        ("elsewhere", "fallback (plain PyTorch), differentiable to any order"),
    ]
    return "\n".join(f"{name:<11} {value}" for name, value in rows)


if __name__ == "__main__":
    print(report())
