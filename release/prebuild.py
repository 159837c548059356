"""``python release/prebuild.py FOLDER ARCHITECTURES``: compile the CUDA kernels ahead, for a wheel.

FOLDER holds the kernels' headers; a file ``sm_90.zip`` comes beside them for each architecture
("90"; "all" stands for all that a release has). Needs NVRTC and no GPU. What was compiled before is
taken from .cache/kernels, so that a run that was cut short goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# what a release is built for; NVRTC serves the others, and what comes after
RELEASE = (75, 80, 86, 89, 90, 100, 120)

# the package without its __init__, which needs torch
package = types.ModuleType("ssim_fused")
package.__path__ = [str(ROOT / "ssim_fused")]
sys.modules.setdefault("ssim_fused", package)

from ssim_fused import _kernel_cache, _kernels, _nvrtc  # noqa: E402


def compile_all(folder: Path, library: Path, architecture: int, part: int, parts: int) -> None:
    """Put a share of an architecture's kernels into the cache."""
    source, nvrtc = _kernels.Source(folder), _nvrtc.Nvrtc(library)
    for header, expression in _kernels.names()[part::parts]:
        source.compile(nvrtc, header, expression, architecture, cache())


def cache() -> _kernel_cache.Cache:
    """Kernels of earlier runs."""
    return _kernel_cache.Cache(ROOT / ".cache/kernels")


def main() -> int:
    """The exit status: 0 where all kernels are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("architectures", nargs="+", help='such as 80 or 9.0, or "all"')
    chosen = parser.parse_args()
    library = _nvrtc.find(12) or _nvrtc.find()  # CUDA 12's kernels load with drivers of 13, too
    if library is None:
        print("no NVRTC is found (pip install nvidia-cuda-nvrtc-cu12)", file=sys.stderr)
        return 1
    nvrtc = _nvrtc.Nvrtc(library)
    names = [name.replace(".", "") for name in chosen.architectures]
    known = [str(architecture) for architecture in nvrtc.architectures]
    unknown = [name for name in names if name not in (*known, "all")]
    if unknown:
        version = ".".join(map(str, nvrtc.version))
        listed = ", ".join(known)
        print(f"NVRTC {version} knows no {unknown[0]!r}, but {listed}", file=sys.stderr)
        return 1
    wanted = RELEASE if "all" in names else [int(name) for name in names]

    source = _kernels.Source(chosen.folder)
    parts = os.cpu_count() or 1
    for architecture in wanted:
        with ProcessPoolExecutor(parts) as pool:
            arguments = (chosen.folder, library, architecture)
            running = [pool.submit(compile_all, *arguments, i, parts) for i in range(parts)]
            for future in running:
                future.result()
        made = {
            expression: source.compile(nvrtc, header, expression, architecture, cache())
            for header, expression in _kernels.names()
        }
        path = _kernels.archive(architecture, chosen.folder)
        _kernels.write_archive(path, source, nvrtc.version, made)
        print(f"{path.name}: {len(made)} kernels, {path.stat().st_size / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
