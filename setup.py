"""Build the native libraries with ninja; where one cannot be, the package works without it.

The libraries are written on LibTorch's stable ABI and use no Python API: one file serves every
Python and every torch from 2.10 on. The CUDA one needs no CUDA to be built or loaded: its kernels
are compiled by NVRTC, at first use or ahead (release/prebuild.py). Where a library is not built, a
file beside its place (``_C_cpu.why``, ``_C_cuda.why``) holds the reason, which
``python -m ssim_fused`` shows.

Environment: CXX and CXXFLAGS; SSIM_FUSED_REQUIRE_NATIVE=1 (a missing CPU library is an error);
SSIM_FUSED_CUDA=0 (no CUDA library) or =1 (one also for a torch without CUDA, and an error where it
cannot be built); SSIM_FUSED_CUDA_ARCHITECTURES ("80 90", or "all": compile their kernels ahead);
SSIM_FUSED_PORTABLE=1 (libraries that run with an older C++ library than the compiler's own).
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

if int(__version__.split(".")[0]) < 77:  # pyproject.toml asks for it, but not without isolation
    sys.exit(f"ssim_fused: setuptools {__version__} is too old: pip install 'setuptools>=77'")
from setuptools.command.bdist_wheel import bdist_wheel

for name in ("SSIM_FUSED_REQUIRE_NATIVE", "SSIM_FUSED_CUDA", "SSIM_FUSED_PORTABLE"):
    if os.environ.get(name, "") not in ("", "0", "1"):
        sys.exit(f"ssim_fused: {name} is {os.environ[name]!r}; it can be 0 or 1")

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # stable ABI of torch 2.10

AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
# one build of the kernel for each: the best is chosen at run time
ISA_FLAGS = {"baseline": []} | ({"avx2": AVX2, "avx512": AVX2 + AVX512} if X86_64 else {})

# -ffp-contract=fast: multiply and add in one instruction, which ISO mode would forbid
CXX_FLAGS = ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]
CXX_FLAGS += [] if sys.platform == "win32" else ["-fPIC"]
CXX_FLAGS += [
    "-Wno-unknown-warning-option",
    "-Wno-psabi",
    "-Wno-unused-parameter",
    "-ffp-contract=fast",
    "-fno-math-errno",
]


class CannotBuild(Exception):
    """Why there will be no library."""


def words(variable: str) -> list[str]:
    """What a variable of the environment holds for the compiler."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise CannotBuild(f"{variable} cannot be read: {error}") from None


def cxx_flags() -> list[str]:
    """Every source's flags: the standard is the sources' affair, the rest CXXFLAGS may change."""
    return [*CXX_FLAGS, *words("CXXFLAGS"), "-std=c++20"]


def find_torch() -> Path | None:
    """The folder of torch: importable, or in the environment that an isolated build leaves."""
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        return Path(spec.origin).parent
    beside = Path(sysconfig.get_path("purelib")) / "torch"
    return beside if (beside / "include").is_dir() else None


def has_stable_abi(torch: Path) -> bool:
    """Whether this torch has what the sources include: 2.10 and newer."""
    text = (torch / "version.py").read_text(encoding="utf-8")
    found = re.search(r"__version__ = '(\d+)\.(\d+)", text)
    return found is None or (int(found[1]), int(found[2])) >= (2, 10)


def includes(torch: Path) -> list[str]:
    """Where torch's headers are."""
    return [f"-I{torch / 'include'}", f"-I{torch / 'include/torch/csrc/api/include'}"]


def escape(path: Path | str) -> str:
    """A path in a ninja file."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def command_line(command: list[str]) -> str:
    """A command in a ninja file, for the shell; on Windows ninja uses none."""
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join(command).replace("$", "$$")


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
        lines.append(f"  flags = {command_line(flags)}")
    lines.append(f"build {escape(library)}: link {' '.join(escape(o) for o in objects)}")
    return "\n".join(lines) + "\n"


# ---- the libraries ----


# what the sources need that compilers of before 2021 lack, and clang 14 to 16 (f16c)
PROBE = "#include <span>\ntemplate <typename T> concept Any = true;\nint size(std::span<int> s);\n"
PROBE += 'bool f16c() { return __builtin_cpu_supports("f16c"); }\n' if X86_64 else ""


def start(command: list[str]) -> subprocess.Popen:
    """A program that runs, its output to be read."""
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "errors": "backslashreplace"}
    try:
        return subprocess.Popen(command, text=True, **out)
    except OSError as error:
        raise CannotBuild(f"{command[0]} cannot be started ({error.strerror})") from None


@functools.cache
def compiler() -> str:
    """The C++ compiler's command, which knows C++20."""
    command = words("CXX") or ["c++"]
    if shutil.which(command[0]) is None:
        raise CannotBuild(f"no C++ compiler ({command[0]} not found)")
    if os.path.dirname(command[0]):  # ninja runs elsewhere
        command[0] = os.path.abspath(command[0])
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text(PROBE, encoding="utf-8")
        probe = [*command, "-std=c++20", "-c", str(source), "-o", str(source.with_suffix(".o"))]
        probing = start(probe)
        probing.communicate()
    if probing.returncode:
        said, _ = start([*command, "--version"]).communicate()
        name = said.splitlines()[0] if said else command[0]
        raise CannotBuild(f"{name} does not compile C++20; gcc 11, clang 19 or newer do (CXX)")
    return command_line(command)


def native_library(build: Path, library: Path, torch: Path, objects: dict) -> str:
    """The ninja file of a library on torch's stable ABI."""
    if os.environ.get("SSIM_FUSED_PORTABLE") == "1":
        objects[build / "portable.o"] = (ROOT / "csrc/portable.cpp", cxx_flags())
    # the C++ library first: torch's exports some of its symbols, which are not torch's to promise
    own = "-lstdc++ " if sys.platform == "linux" else ""
    link = f"{compiler()} -shared $in -o $out {own}"
    link += command_line([f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10"])
    return ninja_file(compiler(), link, library, objects)


def cpu_library(build: Path, library: Path, torch: Path) -> str:
    """The ninja file of _C_cpu.so."""
    flags = cxx_flags() + includes(torch) + [TORCH_TARGET]
    objects = {build / "ssim_cpu.o": (ROOT / "csrc/ssim_cpu.cpp", flags)}
    for isa, isa_flags in ISA_FLAGS.items():
        source = ROOT / "csrc/ssim_cpu_kernel.cpp"
        flags = [*cxx_flags(), f"-DSSIM_ISA={isa}", *isa_flags]
        objects[build / f"ssim_cpu_kernel_{isa}.o"] = (source, flags)
    return native_library(build, library, torch, objects)


def cuda_library(build: Path, library: Path, torch: Path) -> str:
    """The ninja file of _C_cuda.so: what launches the kernels, which are not in it."""
    wanted = os.environ.get("SSIM_FUSED_CUDA")
    if wanted == "0":
        raise CannotBuild("SSIM_FUSED_CUDA=0 when it was installed")
    version = (torch / "version.py").read_text(encoding="utf-8")
    if wanted != "1" and re.search(r"^cuda\b.*= '[\d.]+'", version, re.MULTILINE) is None:
        reason = "the torch it was built beside had no CUDA; with one that has, install again"
        raise CannotBuild(reason)
    flags = cxx_flags() + includes(torch) + [TORCH_TARGET]
    names = ("ssim_cuda", "ssim_cuda_volume", "ssim_cuda_driver")
    objects = {build / f"{name}.o": (ROOT / f"csrc/{name}.cpp", flags) for name in names}
    return native_library(build, library, torch, objects)


# ---- the source of the CUDA kernels, and kernels compiled ahead ----


def kernel_headers() -> set[str]:
    """The kernels' headers, and what they include of ours."""
    found: set[str] = set()
    left = [path.name for path in (ROOT / "csrc").glob("ssim_cuda*kernel.h")]
    while left:
        name = left.pop()
        found.add(name)
        text = (ROOT / "csrc" / name).read_text(encoding="utf-8")
        left += set(re.findall(r'^#include "(.+)"', text, re.MULTILINE)) - found
    return found


def make_kernels(folder: Path) -> None:
    """Put the kernels' headers into a folder, and kernels for what architectures are asked for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in kernel_headers():
        shutil.copyfile(ROOT / "csrc" / name, folder / name)
    wanted = os.environ.get("SSIM_FUSED_CUDA_ARCHITECTURES", "").split()
    if wanted:
        program = [sys.executable, str(ROOT / "release/prebuild.py"), str(folder), *wanted]
        if subprocess.run(program).returncode:
            reason = f"no kernels for {' '.join(wanted)}, see above"
            if os.environ.get("SSIM_FUSED_CUDA") == "1":
                raise CannotBuild(reason)
            for archive in folder.glob("*.zip"):  # one may be cut short
                archive.unlink()
            print(f"ssim_fused: {reason}; NVRTC compiles them at first use", file=sys.stderr)


# ---- setuptools ----


def run_ninja(build: Path) -> None:
    """Run ninja, from PATH or from the wheel of that name."""
    on_path = shutil.which("ninja")
    command = [on_path] if on_path else [sys.executable, "-m", "ninja"]
    if on_path is None and importlib.util.find_spec("ninja") is None:
        raise CannotBuild("ninja is not installed (pip install ninja)")
    first_error = ""
    with start([*command, "-C", str(build)]) as running:
        for line in running.stdout:
            print(line, end="", flush=True)
            if "error:" in line:
                first_error = first_error or line.strip()
    if running.returncode:
        why = f": {first_error}" if first_error else f" (exit code {running.returncode})"
        raise CannotBuild(f"the compiler failed{why}")


# pip keeps a wheel that it has built of an archive or a repository, and would take it again
AGAIN = "pip install --no-cache-dir --force-reinstall --no-deps ..."

# library -> its ninja file, the variable and value that make it a must
LIBRARIES = {
    "ssim_fused._C_cpu": (cpu_library, "SSIM_FUSED_REQUIRE_NATIVE"),
    "ssim_fused._C_cuda": (cuda_library, "SSIM_FUSED_CUDA"),
}


class BuildNative(build_ext):
    """Builds ssim_fused/_C_*.so, or says in one line why it does not."""

    def run(self) -> None:
        """Without setuptools' own compiler, which fails where CXX or CXXFLAGS cannot be read."""
        inplace, self.inplace = self.inplace, False
        for extension in self.extensions:
            self.build_extension(extension)
        self.inplace = inplace
        if inplace:
            self.copy_extensions_to_source()

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / library.stem
        build.mkdir(parents=True, exist_ok=True)
        library.parent.mkdir(parents=True, exist_ok=True)
        reason_file = library.with_suffix(".why")
        make_ninja_file, must = LIBRARIES[ext.name]
        kernels = library.with_name("kernels")
        try:
            torch = find_torch()
            if torch is None:
                raise CannotBuild("torch is not installed where the package is built")
            if not has_stable_abi(torch):
                raise CannotBuild(f"the torch in {torch.parent} is older than 2.10")
            text = make_ninja_file(build, library, torch)
            (build / "build.ninja").write_text(text, encoding="utf-8")
            run_ninja(build)
            if make_ninja_file is cuda_library:
                make_kernels(kernels)
            reason_file.unlink(missing_ok=True)
        except CannotBuild as reason:
            if os.environ.get(must) == "1":
                sys.exit(f"ssim_fused: {library.name} cannot be built: {reason}")
            said = f"without {library.name}: {reason} (to try again: {AGAIN})"
            print(f"ssim_fused: installing {said}", file=sys.stderr)
            library.unlink(missing_ok=True)
            reason_file.write_text(f"{reason}\n", encoding="utf-8")
            if make_ninja_file is cuda_library:
                shutil.rmtree(kernels, ignore_errors=True)

    def files(self) -> list[Path]:
        """What was made, relative to where packages go."""
        built = Path(self.build_lib)
        patterns = ("_C_*.so", "_C_*.why", "kernels/*")
        found = (path for pattern in patterns for path in (built / "ssim_fused").glob(pattern))
        return sorted(path.relative_to(built) for path in found)

    def copy_extensions_to_source(self) -> None:
        # an editable install: the files go beside the sources, and none stays from before
        package = ROOT / "ssim_fused"
        for place in (*package.glob("_C_*.so"), *package.glob("_C_*.why")):
            place.unlink()
        shutil.rmtree(package / "kernels", ignore_errors=True)
        for name in self.files():
            (ROOT / name).parent.mkdir(exist_ok=True)
            shutil.copy2(Path(self.build_lib) / name, ROOT / name)

    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib) / name) for name in self.files()]


class BuildPython(build_py):
    """Without the modules that an earlier build has left and the sources have no more."""

    def run(self) -> None:
        """Removes them, then copies what is there."""
        built = Path(self.build_lib)
        for module in built.rglob("*.py"):
            if not (ROOT / module.relative_to(built)).exists():
                module.unlink()
        super().run()


class Wheel(bdist_wheel):
    """Any Python 3: the library uses no Python API."""

    def run(self) -> None:
        """Builds it without what a build that was cut short has left."""
        shutil.rmtree(self.bdist_dir, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def elsewhere() -> dict[str, dict[str, str]]:
    """Options that keep what is made out of a source folder that cannot be written."""
    if os.access(ROOT, os.W_OK):
        return {}
    scratch = tempfile.mkdtemp(prefix="ssim_fused-")
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return {"build": {"build_base": scratch}, "egg_info": {"egg_base": scratch}}


found = find_torch()
setup(
    options=elsewhere(),
    ext_modules=[Extension(name, sources=[]) for name in LIBRARIES],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative, "bdist_wheel": Wheel},
    # an isolated build takes the headers of the environment's torch; without one it needs its own
    setup_requires=[] if found and has_stable_abi(found) else ["torch>=2.10"],
)
