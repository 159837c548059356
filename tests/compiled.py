"""``python -m compiled``: what nvcc makes of every CUDA kernel, for every architecture.

It takes minutes and writes registers to compiled.json, together with a digest of the kernels, or
fails where one needs a stack or spills. The tests compile each header's float32 kernels for one
architecture, compare, and fail where the record is of other sources.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from cuda_emulator import digest, kernel_headers

from ssim_fused import _kernels

RECORD = Path(__file__).with_suffix(".json")
CSRC = Path(__file__).resolve().parent.parent / "csrc"
ARCHITECTURES = ["75", "80", "86", "89", "90", "100", "120"]
HEADERS = [_kernels.IMAGES, _kernels.VOLUMES, _kernels.UNPOOLING]
# the kernels whose registers decide how many blocks fit: a word of their mangled names
FAMILIES = {
    "streaming": "LayoutE0",
    "tile": "LayoutE1",
    "fast volume": r"volume_kernelI(?!d)\w*?Lb1E",  # not double
    "unpool": "unpool_kernel",
}


def find_nvcc() -> Path | None:
    """The compiler, in the places that setup.py looks at, too."""
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda-13.0", "/usr/local/cuda"]
    found = (Path(place) / "bin" / "nvcc" for place in places if place)
    return next((path for path in found if path.exists()), None)


def parameter_of(expression: str) -> str:
    """The structure that a kernel is given."""
    arithmetic = "double" if "<double" in expression else "float"
    kind = "VolumeProblem" if "volume_kernel" in expression else "Problem"
    kind = "Unpooling" if "unpool_kernel" in expression else kind
    return f"const __grid_constant__ ssim_fused::{kind}<{arithmetic}>"


def names_of(header: str) -> list[str]:
    """The kernels of a header."""
    return [name for of, name in _kernels.names() if of == header]


def compile_kernels(header: str, architectures: list[str], names: list[str]) -> str:
    """What ptxas says of kernels of a header."""
    lines = [f'#include "{header}"']
    for expression in names:
        parameters = parameter_of(expression)
        if "reduce_kernel" in expression:
            arithmetic = expression.partition("<")[2].removesuffix(">")
            parameters = f"const {arithmetic}*, ssim_fused::Int64, double, {arithmetic}*"
        lines.append(f"template __global__ void {expression}({parameters});")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cu"
        source.write_text("\n".join(lines))
        command = [find_nvcc(), "-std=c++20", "-O3", "--threads", "2", "-Xptxas=-v"]
        command += ["-Werror", "all-warnings"]
        for number in architectures:
            command += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        command += ["-fatbin", f"-I{CSRC}", source, "-o", Path(folder) / "kernels.fatbin"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    return done.stdout + done.stderr


def summary(said: str) -> dict[str, dict[str, int]]:
    """Architecture to the number of kernels, bytes of stack and spills; of each family, the same
    number and the most registers.
    """
    found: dict[str, dict[str, int]] = {}
    for name, architecture, stack, stores, loads, registers in re.findall(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'.*?(\d+) bytes stack frame, "
        r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        said,
        re.DOTALL,
    ):
        of = found.setdefault(architecture, {"kernels": 0, "stack and spills": 0})
        of["kernels"] += 1
        of["stack and spills"] += int(stack) + int(stores) + int(loads)
        for family, word in FAMILIES.items():
            if re.search(word, name):
                of[f"{family}: kernels"] = of.get(f"{family}: kernels", 0) + 1
                of[f"{family}: registers"] = max(of.get(f"{family}: registers", 0), int(registers))
    return dict(sorted(found.items(), key=lambda of: int(of[0])))


def sources_digest() -> str:
    """Of the kernels, and of which of them there are."""
    return digest(kernel_headers(CSRC), repr(_kernels.names()))


def main() -> None:
    """Compile all and write the record, or refuse to: what spills is no state to keep."""
    record = {
        header: summary(compile_kernels(header, ARCHITECTURES, names_of(header)))
        for header in HEADERS
    }
    spills = [
        f"{header}, sm_{architecture}: {found['stack and spills']} bytes of stack and spills"
        for header, of in record.items()
        for architecture, found in of.items()
        if found["stack and spills"]
    ]
    if spills:
        sys.exit("\n".join([*spills, f"{RECORD.name} is as it was"]))
    RECORD.write_text(json.dumps({"digest": sources_digest(), "found": record}, indent=2) + "\n")


if __name__ == "__main__":
    main()
