"""Build the native library with ninja; where that cannot be, install the pure-Python package.

The library is written on LibTorch's stable ABI and uses no Python API: one file serves every
Python and every torch from 2.10 on.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020a000000000000"  # stable ABI of torch 2.10

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
# one build of the kernel for each: the best is chosen at run time
ISA_FLAGS = {"baseline": []} | ({"avx2": AVX2, "avx512": AVX2 + AVX512} if X86_64 else {})

# -ffp-contract=fast: multiply and add in one instruction, which ISO mode would forbid
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
CXX_FLAGS += ["-Wno-unused-parameter", "-ffp-contract=fast", "-fno-math-errno"]


class CannotBuild(Exception):
    """Why there will be no native library."""


def find_torch() -> Path | None:
    """The folder of torch: importable, or in the environment that an isolated build leaves."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    beside = Path(sysconfig.get_path("purelib")) / "torch"
    return beside if (beside / "include").is_dir() else None


def compiler() -> list[str]:
    """The C++ compiler's command."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not command or shutil.which(command[0]) is None:
        raise CannotBuild(
            f"no C++ compiler ({command[0] if command else 'CXX is empty'} not found)"
        )
    return command


def objects(build: Path, torch: Path) -> dict[Path, tuple[Path, list[str]]]:
    """Object file -> source and flags."""
    includes = [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]
    target = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
    found = {build / "ssim_cpu.o": (ROOT / "csrc/ssim_cpu.cpp", includes + target)}
    for isa, flags in ISA_FLAGS.items():
        source = ROOT / "csrc/ssim_cpu_kernel.cpp"
        found[build / f"ssim_cpu_kernel_{isa}.o"] = (source, [f"-DSSIM_ISA={isa}", *flags])
    return found


def escape(path: Path | str) -> str:
    """A path in a ninja file."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def write_ninja(build: Path, library: Path, torch: Path) -> None:
    """build.ninja: one object a source and instruction set, linked to one library."""
    cxx = shlex.join(compiler())
    lib = torch / "lib"
    lines = [
        "rule compile",
        f"  command = {cxx} -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {cxx} -shared $in -o $out -L{shlex.quote(str(lib))} -ltorch_cpu -lc10",
    ]
    made = objects(build, torch)
    for output, (source, flags) in made.items():
        lines.append(f"build {escape(output)}: compile {escape(source)}")
        lines.append(f"  flags = {shlex.join(CXX_FLAGS + flags)}".replace("$", "$$"))
    lines.append(f"build {escape(library)}: link {' '.join(escape(o) for o in made)}")
    (build / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")


def run_ninja(build: Path) -> None:
    """Run ninja, from PATH or from the wheel of that name."""
    on_path = shutil.which("ninja")
    command = [on_path] if on_path else [sys.executable, "-m", "ninja"]
    if on_path is None and importlib.util.find_spec("ninja") is None:
        raise CannotBuild("ninja is not installed (pip install ninja)")
    try:
        subprocess.run([*command, "-C", str(build)], check=True)
    except subprocess.CalledProcessError as error:
        raise CannotBuild(
            f"the compiler failed (exit code {error.returncode}, see above)"
        ) from None


class BuildNative(build_ext):
    """Builds ssim_fused/_C_cpu.so, or says in one line why it does not."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        build = Path(self.build_temp).resolve()
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        build.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch = find_torch()
            if torch is None:
                raise CannotBuild("torch is not installed where the package is built")
            write_ninja(build, library, torch)
            run_ninja(build)
        except CannotBuild as reason:
            if os.environ.get("SSIM_FUSED_REQUIRE_NATIVE") == "1":
                sys.exit(f"ssim_fused: the native library cannot be built: {reason}")
            print(f"ssim_fused: installing without the native library: {reason}", file=sys.stderr)
            library.unlink(missing_ok=True)

    def copy_extensions_to_source(self) -> None:
        # an editable install: the library goes beside the sources, and none stays from before
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            built, place = Path(self.build_lib) / name, ROOT / name
            place.unlink(missing_ok=True)
            if built.exists():
                shutil.copy2(built, place)

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).exists()]


class Wheel(bdist_wheel):
    """Any Python 3: the library uses no Python API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("ssim_fused._C_cpu", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    # an isolated build takes the headers of the environment's torch; without one it needs its own
    setup_requires=[] if find_torch() else ["torch>=2.10"],
)
