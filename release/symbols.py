"""``python release/symbols.py FILE...``: what native libraries ask of others is in the stable set.

That is: C functions of torch's stable interface (torch_*, aoti_torch_*), the C library, libm, the
C++ library and libgcc. A name of torch's or c10's C++ would tie a file to one version of torch. The
versions of the symbols must be those of manylinux_2_28. A wheel is looked into.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# manylinux_2_28's policy in auditwheel
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}
STABLE = re.compile(r"(aoti_torch|torch)_\w+")
# what the tools put in, for a C library that may offer it
OPTIONAL = {"__gmon_start__", "__cxa_finalize", "_ITM_registerTMCloneTable"}
OPTIONAL |= {"_ITM_deregisterTMCloneTable"}


def undefined(library: Path) -> list[tuple[str, str]]:
    """Name and version of each symbol that a library needs; "" where it has no version."""
    command = ["objdump", "-T", str(library)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in said.splitlines() if "*UND*" in line)
    return [(words[-1], words[-2].strip("()") if "_" in words[-2] else "") for words in lines]


def fault(name: str, version: str) -> str | None:
    """What is wrong with a symbol."""
    if STABLE.fullmatch(name) or name in OPTIONAL:
        return None
    family, _, number = version.partition("_")
    if family not in NEWEST:
        return f"{name} is no part of the stable set"
    if tuple(map(int, number.split("."))) > NEWEST[family]:
        return f"{name} needs {version}, newer than manylinux_2_28"
    return None


def faults(library: Path) -> list[str]:
    """What is wrong with a library."""
    symbols = undefined(library)
    if not any(STABLE.fullmatch(name) for name, _ in symbols):
        return [f"{library.name} calls nothing of torch: is it the right file?"]
    return [f"{library.name}: {text}" for symbol in symbols if (text := fault(*symbol))]


def libraries(path: Path, folder: Path) -> list[Path]:
    """The native libraries of a wheel, unpacked into a folder; or the one that was named."""
    if path.suffix != ".whl":
        return [path]
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".so")]
        return [Path(wheel.extract(name, folder)) for name in names]


def main(files: list[str]) -> int:
    """The exit status: 0 where nothing is wrong."""
    found, looked_at = [], 0
    for file in map(Path, files):
        with tempfile.TemporaryDirectory() as folder:
            for library in libraries(file, Path(folder)):
                found += faults(library)
                looked_at += 1
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{looked_at} libraries, {len(found)} symbols outside the stable set")
    return int(bool(found) or looked_at == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
