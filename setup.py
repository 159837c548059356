"""Build the native libraries with ninja; where one cannot be, the package works without it.

The libraries are written on LibTorch's stable ABI and use no Python API: one file serves every
Python and every torch from 2.10 on. The CUDA one is apart: only a torch with CUDA can load it.
Where a library is not built, a file beside its place (``_C_cpu.why``, ``_C_cuda.why``) holds the
reason, which ``python -m ssim_fused`` shows.

Environment: CXX, CUDA_HOME, TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX", or "all"),
SSIM_FUSED_REQUIRE_NATIVE=1 (a CPU library that cannot be built is an error), SSIM_FUSED_CUDA=0 (no
CUDA library) or =1 (one that cannot be built is an error).
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
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # stable ABI of torch 2.10

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
# one build of the kernel for each: the best is chosen at run time
ISA_FLAGS = {"baseline": []} | ({"avx2": AVX2, "avx512": AVX2 + AVX512} if X86_64 else {})

# -ffp-contract=fast: multiply and add in one instruction, which ISO mode would forbid
CXX_FLAGS = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += ["-Wno-psabi", "-Wno-unused-parameter", "-ffp-contract=fast", "-fno-math-errno"]
NVCC_FLAGS = ["-std=c++20", "-O3", "--threads", "2", "-DUSE_CUDA"]
NVCC_FLAGS += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]


class CannotBuild(Exception):
    """Why there will be no library."""


def find_torch() -> Path | None:
    """The folder of torch: importable, or in the environment that an isolated build leaves."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    beside = Path(sysconfig.get_path("purelib")) / "torch"
    return beside if (beside / "include").is_dir() else None


def includes(torch: Path) -> list[str]:
    """Where torch's headers are."""
    return [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]


def escape(path: Path | str) -> str:
    """A path in a ninja file."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(compile_with: str, link_with: str, library: Path, objects: dict) -> str:
    """build.ninja: one object a source and set of flags, linked to one library."""
    lines = [
        "rule compile",
        f"  command = {compile_with} -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {link_with}",
    ]
    for output, (source, flags) in objects.items():
        lines.append(f"build {escape(output)}: compile {escape(source)}")
        lines.append(f"  flags = {shlex.join(flags)}".replace("$", "$$"))
    lines.append(f"build {escape(library)}: link {' '.join(escape(o) for o in objects)}")
    return "\n".join(lines) + "\n"


# ---- the CPU library ----


def compiler() -> str:
    """The C++ compiler's command."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not command or shutil.which(command[0]) is None:
        name = command[0] if command else "CXX is empty:"
        raise CannotBuild(f"no C++ compiler ({name} not found)")
    return shlex.join(command)


def cpu_library(build: Path, library: Path, torch: Path) -> str:
    """The ninja file of _C_cpu.so."""
    flags = CXX_FLAGS + includes(torch) + [TORCH_TARGET]
    objects = {build / "ssim_cpu.o": (ROOT / "csrc/ssim_cpu.cpp", flags)}
    for isa, isa_flags in ISA_FLAGS.items():
        source = ROOT / "csrc/ssim_cpu_kernel.cpp"
        flags = [*CXX_FLAGS, f"-DSSIM_ISA={isa}", *isa_flags]
        objects[build / f"ssim_cpu_kernel_{isa}.o"] = (source, flags)
    link = f"{compiler()} -shared $in -o $out -L{shlex.quote(str(torch / 'lib'))} -ltorch_cpu -lc10"
    return ninja_file(compiler(), link, library, objects)


# ---- the CUDA library ----

# what a release is built for; the newest one's PTX serves what comes after
ALL_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def torch_cuda(torch: Path) -> str:
    """The version of CUDA that torch is built for, as "13.0"."""
    found = re.search(r"^cuda\b.*= '([\d.]+)'", (torch / "version.py").read_text(), re.MULTILINE)
    if found is None:
        raise CannotBuild("this torch is built without CUDA")
    return found[1]


def find_nvcc(cuda: str) -> Path:
    """An nvcc of torch's major version of CUDA."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    major = cuda.split(".")[0]
    places = [Path(home) / "bin/nvcc" for home in homes if home]
    places += [Path(on_path)] if (on_path := shutil.which("nvcc")) else []
    places += [Path(f"/usr/local/cuda{of}/bin/nvcc") for of in (f"-{cuda}", f"-{major}", "")]
    others = []
    for place in filter(Path.exists, places):
        said = subprocess.run([place, "--version"], capture_output=True, text=True).stdout
        release = re.search(r"release ([\d.]+)", said)
        if release and release[1].split(".")[0] == major:
            return place
        others.append(f"{place} is of CUDA {release[1] if release else 'unknown'}")
    missing = f"no nvcc of CUDA {major}, for which torch is built"
    raise CannotBuild(f"{missing} ({'; '.join(others) or 'none found'}); install the CUDA toolkit")


def present_gpus() -> list[str]:
    """Architectures of the GPUs that the driver lists, as "8.6"."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted(set(re.findall(r"^\d+\.\d$", said, re.MULTILINE)))


def architecture_flags() -> list[str]:
    """What nvcc compiles for: TORCH_CUDA_ARCH_LIST, the GPUs present, or PTX that serves any."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    if wanted.lower() == "all":
        wanted = ALL_ARCHITECTURES
    names = [name for name in wanted.split(";") if name] or present_gpus() or ["7.5+PTX"]
    flags = []
    for name in names:
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
        if match is None:
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST names {name!r}, no architecture like 8.6")
        number = "".join(match.group(1, 2, 3))
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def cuda_library(build: Path, library: Path, torch: Path) -> str:
    """The ninja file of _C_cuda.so."""
    if os.environ.get("SSIM_FUSED_CUDA") == "0":
        raise CannotBuild("SSIM_FUSED_CUDA=0 when it was installed")
    nvcc = find_nvcc(torch_cuda(torch))
    flags = [*NVCC_FLAGS, *includes(torch), TORCH_TARGET, *architecture_flags()]
    objects = {build / "ssim_cuda.o": (ROOT / "csrc/ssim_cuda.cu", flags)}
    command = f"{shlex.quote(str(nvcc))} -ccbin {compiler()}"
    # nvcc links CUDA's runtime into the file; with its symbols hidden it cannot clash with torch's
    link = f"{command} -shared --cudart static -Xlinker --exclude-libs,ALL $in -o $out "
    link += f"-L{shlex.quote(str(torch / 'lib'))} -ltorch_cuda -ltorch_cpu -lc10"
    return ninja_file(command, link, library, objects)


# ---- setuptools ----


def run_ninja(build: Path) -> None:
    """Run ninja, from PATH or from the wheel of that name."""
    on_path = shutil.which("ninja")
    command = [on_path] if on_path else [sys.executable, "-m", "ninja"]
    if on_path is None and importlib.util.find_spec("ninja") is None:
        raise CannotBuild("ninja is not installed (pip install ninja)")
    try:
        subprocess.run([*command, "-C", str(build)], check=True)
    except subprocess.CalledProcessError as error:
        reason = f"the compiler failed (exit code {error.returncode}, see above)"
        raise CannotBuild(reason) from None


# library -> its ninja file, the variable and value that make it a must
LIBRARIES = {
    "ssim_fused._C_cpu": (cpu_library, "SSIM_FUSED_REQUIRE_NATIVE"),
    "ssim_fused._C_cuda": (cuda_library, "SSIM_FUSED_CUDA"),
}


class BuildNative(build_ext):
    """Builds ssim_fused/_C_*.so, or says in one line why it does not."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / library.stem
        build.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        reason_file = library.with_suffix(".why")
        make_ninja_file, must = LIBRARIES[ext.name]
        try:
            torch = find_torch()
            if torch is None:
                raise CannotBuild("torch is not installed where the package is built")
            text = make_ninja_file(build, library, torch)
            (build / "build.ninja").write_text(text, encoding="utf-8")
            run_ninja(build)
            reason_file.unlink(missing_ok=True)
        except CannotBuild as reason:
            if os.environ.get(must) == "1":
                sys.exit(f"ssim_fused: {library.name} cannot be built: {reason}")
            print(f"ssim_fused: installing without {library.name}: {reason}", file=sys.stderr)
            library.unlink(missing_ok=True)
            reason_file.write_text(f"{reason}\n", encoding="utf-8")

    def files(self, ext: Extension) -> list[Path]:
        """What may come of an extension, relative to where packages go."""
        library = Path(self.get_ext_filename(ext.name))
        return [library, library.with_suffix(".why")]

    def copy_extensions_to_source(self) -> None:
        # an editable install: the files go beside the sources, and none stays from before
        for name in (name for ext in self.extensions for name in self.files(ext)):
            built, place = Path(self.build_lib) / name, ROOT / name
            place.unlink(missing_ok=True)
            if built.exists():
                shutil.copy2(built, place)

    def get_outputs(self) -> list[str]:
        names = (name for ext in self.extensions for name in self.files(ext))
        return [str(path) for name in names if (path := Path(self.build_lib) / name).exists()]


class Wheel(bdist_wheel):
    """Any Python 3: the library uses no Python API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(name, sources=[]) for name in LIBRARIES],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": Wheel},
    # an isolated build takes the headers of the environment's torch; without one it needs its own
    setup_requires=[] if find_torch() else ["torch>=2.10"],
)
