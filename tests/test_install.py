"""Installing: with a compiler, without, and with a library that does not load. And one file, two
versions of torch.
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
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from ssim_fused import _paths
from ssim_fused.__main__ import report

ROOT = Path(__file__).resolve().parent.parent
OTHER_PYTHON = os.environ.get("SSIM_FUSED_OTHER_PYTHON")
native = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)
STEP = (
    "import torch, ssim_fused; x = torch.rand(1, 1, 20, 20, requires_grad=True); "
    "ssim_fused.ssim_loss(x, torch.rand(1, 1, 20, 20)).backward(); print(x.grad.norm().item())"
)


def run(command, cwd, **environment):
    """What a command prints; its whole output where it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
SOURCES += ("pytest_ssim_fused.py",)


@pytest.fixture
def sources(tmp_path):
    """A copy of what the package is built from, in a path that is not easy."""
    copy = tmp_path / "a path with spaces é"
    copy.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, copy)
    for name in ("csrc", "release", "ssim_fused"):
        ignored = shutil.ignore_patterns("*.so", "*.why", "kernels", "__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    (copy / "tests").mkdir()
    (copy / "tests" / "test_any.py").touch()
    return copy


def install(sources, *options, **environment):
    """`pip install .` into a folder; what pip said, and the folder."""
    target = sources.parent / "installed"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-v", *options]
    return run([*command, "--target", target, "."], sources, **environment), target


def info(package):
    return run([sys.executable, "-m", "ssim_fused"], package)


@native
def test_report_names_the_instruction_set():
    assert f"native, {torch.ops.ssim_fused.cpu_isa()}" in report()
    assert torch.__version__ in report()


def test_info_tells_what_the_cuda_kernels_leave_to_plain_pytorch(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.9")
    monkeypatch.setattr(_paths, "cuda_reason", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    left = "windows of more than 33 taps (volumes: 15) by the fallback"
    assert left in report()


def test_info_tells_why_there_is_no_cuda_path_in_the_words_of_explain(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(_paths, "cuda_reason", "this test has taken it away")
    assert re.search(r"^cuda +none: this test has taken it away$", report(), re.M)


@native
def test_install_with_a_compiler(sources):
    settings = {"SSIM_FUSED_REQUIRE_NATIVE": "1", "CXXFLAGS": "-O0"}  # a tenth of the time
    _, package = install(sources, "--no-build-isolation", **settings)
    assert (package / "ssim_fused" / "_C_cpu.so").exists()
    assert (package / "ssim_fused" / "py.typed").exists()
    assert "native, " in info(package)
    run([sys.executable, "-c", STEP], package)


def test_install_without_a_compiler(sources):
    said, package = install(sources, "--no-build-isolation", CXX="no-such-compiler")
    assert "installing without _C_cpu.so: no C++ compiler (no-such-compiler" in said
    assert not list(package.rglob("_C_*.so"))
    found = info(package)
    assert "fallback" in found
    assert "no C++ compiler" in found
    run([sys.executable, "-c", STEP], package)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_a_torch_without_cuda_and_then_one_with_it(sources, quick_compiler):
    """The words of the day are not those of the installation; and what pip keeps is told."""
    said, package = install(sources, "--no-build-isolation", CXX=quick_compiler)
    reason = "the torch it was built beside had no CUDA; with one that has, install again"
    again = "pip install --no-cache-dir --force-reinstall --no-deps"
    assert f"installing without _C_cuda.so: {reason} (to try again: {again} ...)" in said
    assert (package / "ssim_fused" / "_C_cuda.why").read_text() == f"{reason}\n"


def test_install_with_a_compiler_that_fails(sources):
    said, package = install(sources, "--no-build-isolation", CXX="false")
    assert "does not compile C++20" in said
    assert "fallback" in info(package)
    run([sys.executable, "-c", STEP], package)


@pytest.mark.parametrize(
    ("program", "settings", "reason"),
    [
        ("#!/nowhere/sh\n", {"CXX": "FOUND"}, "{} cannot be started (No such file or directory)"),
        ("no ELF", {"CXX": "FOUND"}, "{} cannot be started (Exec format error)"),
        ("", {"CXX": "g++ '"}, "CXX cannot be read: No closing quotation"),
        ("", {"CXXFLAGS": "-DX='"}, "CXXFLAGS cannot be read: No closing quotation"),
    ],
)
def test_a_compiler_that_cannot_be_started(sources, program, settings, reason):
    found = sources.parent / "g++"
    found.write_text(program)
    found.chmod(0o755)
    settings = {name: value.replace("FOUND", str(found)) for name, value in settings.items()}
    said, package = install(sources, "--no-build-isolation", **settings)
    assert f"installing without _C_cpu.so: {reason.format(found)}" in said
    assert reason.format(found) in info(package)


def test_a_ninja_that_cannot_be_started(sources, quick_compiler):
    ninja = sources.parent / "bin" / "ninja"
    ninja.parent.mkdir()
    ninja.write_text("#!/nowhere/sh\n")
    ninja.chmod(0o755)
    path = f"{ninja.parent}{os.pathsep}{os.environ['PATH']}"
    said, _ = install(sources, "--no-build-isolation", CXX=quick_compiler, PATH=path)
    reason = f"{ninja} cannot be started (No such file or directory)"
    assert f"installing without _C_cpu.so: {reason}" in said


def test_a_build_that_must_be_native_fails_without_a_compiler(sources):
    with pytest.raises(AssertionError, match="cannot be built"):
        install(
            sources,
            "--no-build-isolation",
            CXX="no-such-compiler",
            SSIM_FUSED_REQUIRE_NATIVE="1",
        )


@pytest.fixture
def quick_compiler(tmp_path):
    """Says what it was asked, and makes libraries that hold nothing, in no time."""
    script = tmp_path / "quick c++"
    script.write_text(
        "#!/bin/sh\n"
        'out=; last=; for word in "$@"; do [ "$last" = -o ] && out="$word"; last="$word"; done\n'
        'case "$*" in *-shared*) echo "int x;" | cc -x c -shared -o "$out" -;;\n'
        '*) : > "$out";; esac\n'
    )
    script.chmod(0o755)
    return shlex.quote(str(script))


def test_a_compiler_that_is_too_old_is_named(sources):
    old = sources.parent / "g++"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo "g++ (GCC) 8.5.0"; exit 0;; esac\n'
        "echo \"g++: error: unrecognized command line option '-std=c++20'\" >&2; exit 1\n"
    )
    old.chmod(0o755)
    said, package = install(sources, "--no-build-isolation", CXX=shlex.quote(str(old)))
    reason = "g++ (GCC) 8.5.0 does not compile C++20; gcc 11, clang 19 or newer do (CXX)"
    assert f"installing without _C_cpu.so: {reason}" in said
    assert reason in info(package)


@pytest.fixture
def compiler_that(quick_compiler, tmp_path):
    """The quick one, with some lines of shell before."""

    def make(text):
        script = tmp_path / "other c++"
        script.write_text(f'#!/bin/sh\n{text}\nexec {quick_compiler} "$@"\n')
        script.chmod(0o755)
        return shlex.quote(str(script))

    return make


def test_a_compiler_that_fails_at_the_sources_is_cited(sources, compiler_that):
    errors = "echo note; echo x.cpp:1:2: error: no such thing; echo x.cpp:9: error: another"
    fails = compiler_that(f'case "$*" in *ssim_cpu.cpp*) {errors}; exit 1;; esac')
    said, package = install(sources, "--no-build-isolation", CXX=fails)
    reason = "the compiler failed: x.cpp:1:2: error: no such thing"
    assert f"installing without _C_cpu.so: {reason} (" in said
    assert "x.cpp:9: error: another" in said
    assert (package / "ssim_fused" / "_C_cpu.why").read_text() == f"{reason}\n"


def test_a_compiler_that_fails_without_an_error(sources, compiler_that):
    fails = compiler_that('case "$*" in *ssim_cpu.cpp*) exit 3;; esac')
    said, _ = install(sources, "--no-build-isolation", CXX=fails)
    assert "installing without _C_cpu.so: the compiler failed (exit code 1) (" in said


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor")
def test_a_clang_that_does_not_know_f16c_is_named(sources, compiler_that):
    """clang 14 to 16 know C++20 and not __builtin_cpu_supports("f16c")."""
    old = compiler_that(
        'case "$*" in *--version*) echo clang version 16; exit 0;; esac\n'
        'for word; do case "$word" in *.cpp) grep \'"f16c"\' "$word" && exit 1;; esac; done'
    )
    said, _ = install(sources, "--no-build-isolation", CXX=old)
    assert "clang version 16 does not compile C++20; gcc 11, clang 19 or newer do (CXX)" in said


def test_an_empty_cxx_counts_as_none(sources, quick_compiler):
    default = sources.parent / "bin" / "c++"
    default.parent.mkdir()
    default.symlink_to(shlex.split(quick_compiler)[0])
    settings = {"CXX": "", "PATH": f"{default.parent}{os.pathsep}{os.environ['PATH']}"}
    install(sources, "--no-build-isolation", SSIM_FUSED_REQUIRE_NATIVE="1", **settings)


def test_a_compiler_by_its_relative_path(sources, quick_compiler):
    compiler = os.path.relpath(shlex.split(quick_compiler)[0], sources)
    settings = {"CXX": shlex.quote(compiler), "SSIM_FUSED_REQUIRE_NATIVE": "1"}
    install(sources, "--no-build-isolation", **settings)


def test_a_dollar_in_the_path_of_torch(sources, compiler_that):
    torch = sources.parent / "a $in x" / "torch"
    torch.mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("__version__ = '2.10.0'\n")
    wanted = shlex.quote(f"-L{torch / 'lib'}")
    asks = f'case "$*" in *-shared*) for w; do [ "$w" = {wanted} ] && found=1; done;'
    settings = {"CXX": compiler_that(f"{asks} [ $found ] || exit 1;; esac")}
    settings |= {"PYTHONPATH": str(torch.parent), "SSIM_FUSED_REQUIRE_NATIVE": "1"}
    install(sources, "--no-build-isolation", **settings)


def test_cxxflags_do_not_choose_the_standard(sources, compiler_that):
    """g++ takes the last one."""
    asks = compiler_that(
        'for word; do case "$word" in -std=*) std="$word";; esac; done\n'
        'case "$*" in *ssim_cpu.cpp*) [ "$std" = -std=c++20 ] || exit 1;; esac'
    )
    settings = {"CXX": asks, "CXXFLAGS": "-std=c++17", "SSIM_FUSED_REQUIRE_NATIVE": "1"}
    install(sources, "--no-build-isolation", **settings)


@pytest.mark.parametrize(("version", "asked"), [("2.9.1", ["torch>=2.10"]), ("2.10.0+cpu", [])])
def test_a_torch_that_is_too_old_is_named(sources, tmp_path, version, asked):
    """Not by the compiler, which misses its headers; an isolated build fetches another."""
    torch = tmp_path / "environment" / "torch"
    (torch / "include").mkdir(parents=True)
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text(f"__version__ = '{version}'\n")
    script = "import setuptools.build_meta as b; print(b.get_requires_for_build_wheel())"
    said = run([sys.executable, "-c", script], sources, PYTHONPATH=str(torch.parent))
    assert said.splitlines()[-1] == str(asked)
    if asked:
        said, _ = install(sources, "--no-build-isolation", PYTHONPATH=str(torch.parent))
        assert f"without _C_cpu.so: the torch in {torch.parent} is older than 2.10" in said


def test_a_wheel_has_no_module_that_was_removed(sources):
    script = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    module = sources / "ssim_fused" / "removed.py"
    module.touch()
    for is_there in (True, False):
        run([sys.executable, "-c", script], sources, CXX="no-such-compiler")
        (wheel,) = (sources / "dist").glob("*.whl")
        assert ("ssim_fused/removed.py" in zipfile.ZipFile(wheel).namelist()) == is_there
        module.unlink(missing_ok=True)


def test_a_wheel_is_built_after_one_that_was_cut_short(sources):
    script = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"
    left = sources / "build" / f"bdist.{sysconfig.get_platform()}" / "wheel"
    (left / "ssim_fused").mkdir(parents=True)
    (left / "ssim_fused" / "__init__.py").touch()
    (left / "stale.txt").touch()
    run([sys.executable, "-c", script], sources, CXX="no-such-compiler")
    (wheel,) = (sources / "dist").glob("*.whl")
    assert "stale.txt" not in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize("environment", ["no nvcc", "nvcc of CUDA 11", "TORCH_CUDA_ARCH_LIST"])
def test_the_cuda_library_asks_for_nothing_of_cuda(sources, quick_compiler, environment):
    settings = {"SSIM_FUSED_CUDA": "1", "CXX": quick_compiler, "CUDA_HOME": "/nowhere"}
    if environment == "nvcc of CUDA 11":
        nvcc = sources.parent / "bin" / "nvcc"
        nvcc.parent.mkdir()
        nvcc.write_text("#!/bin/sh\necho release 11.8; exit 1\n")
        nvcc.chmod(0o755)
        settings["PATH"] = f"{nvcc.parent}:{os.environ['PATH']}"
    if environment == "TORCH_CUDA_ARCH_LIST":
        settings["TORCH_CUDA_ARCH_LIST"] = "nonsense"
    _, package = install(sources, "--no-build-isolation", **settings)
    assert (package / "ssim_fused" / "_C_cuda.so").exists()
    headers = {path.name for path in (package / "ssim_fused" / "kernels").iterdir()}
    assert headers == {
        "dtypes.h",
        "ssim_cuda_geometry.h",
        "ssim_cuda_kernel.h",
        "ssim_cuda_unpool_kernel.h",
        "ssim_cuda_volume_geometry.h",
        "ssim_cuda_volume_kernel.h",
        "ssim_math.h",
    }


def test_an_architecture_that_nvrtc_does_not_know(sources, quick_compiler):
    settings = {"CXX": quick_compiler, "SSIM_FUSED_CUDA_ARCHITECTURES": "nonsense"}
    with pytest.raises(AssertionError, match="cannot be built: no kernels for nonsense, see above"):
        install(sources, "--no-build-isolation", SSIM_FUSED_CUDA="1", **settings)


def test_kernels_that_are_not_compiled_ahead_leave_the_library(sources, quick_compiler):
    """What launches NVRTC's kernels is there, and so are the headers."""
    version = sources.parent / "environment" / "torch" / "version.py"
    version.parent.mkdir(parents=True)
    (version.parent / "__init__.py").touch()
    version.write_text("__version__ = '2.10.0'\ncuda: str = '12.9'\n")
    settings = {"CXX": quick_compiler, "SSIM_FUSED_CUDA_ARCHITECTURES": "nonsense"}
    settings["PYTHONPATH"] = str(version.parent.parent)
    said, package = install(sources, "--no-build-isolation", **settings)
    assert (
        "ssim_fused: no kernels for nonsense, see above; NVRTC compiles them at first use" in said
    )
    assert (package / "ssim_fused" / "_C_cuda.so").exists()
    assert (package / "ssim_fused" / "kernels" / "ssim_math.h").exists()


@pytest.mark.parametrize("name", ["SSIM_FUSED_CUDA", "SSIM_FUSED_REQUIRE_NATIVE"])
def test_a_setting_that_is_neither_0_nor_1(sources, name):
    with pytest.raises(AssertionError, match=f"ssim_fused: {name} is 'yes'; it can be 0 or 1"):
        install(sources, "--no-build-isolation", **{name: "yes"})


def test_an_sdist_has_what_the_build_needs(sources):
    (sources / "csrc" / "left.o").touch()
    script = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    run([sys.executable, "-c", script], sources)
    (sdist,) = (sources / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").iterdir()}
    assert needed | {"setup.py", "pyproject.toml", "LICENSE", "release/prebuild.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".why", ".o"))]
    assert not [name for name in names if name.startswith("tests")]  # they need this repository


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("setup_under_test", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    spec.loader.exec_module(module)
    return module


def test_commands_are_quoted_as_the_system_reads_them(setup, monkeypatch):
    words = ["C:\\a b\\clang++.exe", "-DX=$Y", "plain"]
    monkeypatch.setattr(sys, "platform", "linux")
    assert setup.command_line(words) == "'C:\\a b\\clang++.exe' '-DX=$$Y' plain"
    monkeypatch.setattr(sys, "platform", "win32")
    assert setup.command_line(words) == '"C:\\a b\\clang++.exe" -DX=$$Y plain'


def test_what_is_made_for_a_folder_that_cannot_be_written(setup, monkeypatch):
    """`make install-matrix` installs from a read-only mount; here, where the options point."""
    assert setup.elsewhere() == {}
    monkeypatch.setattr(setup.os, "access", lambda *_: False)
    options = setup.elsewhere()
    places = {options["build"]["build_base"], options["egg_info"]["egg_base"]}
    assert not any(Path(place).is_relative_to(ROOT) for place in places)


# ---- what the native files ask of others ----


def symbols():
    """release/symbols.py as a module."""
    spec = importlib.util.spec_from_file_location("symbols", ROOT / "release/symbols.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "version", "wrong"),
    [
        ("aoti_torch_get_numel", "", None),
        ("torch_call_dispatcher", "", None),
        ("memcpy", "GLIBC_2.14", None),
        ("_ZSt20__throw_length_errorPKc", "GLIBCXX_3.4", None),
        ("__gmon_start__", "", None),
        ("_ZN3c105ErrorC1Ev", "", "no part of the stable set"),
        ("_ZN5torch8autograd5emptyE", "", "no part of the stable set"),
        ("torchvision", "", "no part of the stable set"),
        ("PyList_New", "", "no part of the stable set"),
        ("cudaMalloc", "libcudart.so.13", "no part of the stable set"),
        ("__libc_single_threaded", "GLIBC_2.32", "newer than manylinux_2_28"),
        ("_ZSt28__throw_bad_array_new_lengthv", "GLIBCXX_3.4.29", "newer than manylinux_2_28"),
    ],
)
def test_symbols_outside_the_stable_set_are_faults(name, version, wrong):
    found = symbols().fault(name, version)
    assert found is None if wrong is None else wrong in found


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_a_file_that_needs_torchs_cpp_is_refused(tmp_path):
    source = tmp_path / "needs.cpp"
    source.write_text(
        "namespace c10 { struct Error { Error(); }; }\n"
        'extern "C" int aoti_torch_get_numel();\n'
        "int f() { c10::Error e; return aoti_torch_get_numel(); }"
    )
    built = tmp_path / "needs.so"
    run(["c++", "-shared", "-fPIC", source, "-o", built], tmp_path)
    check = symbols()
    assert check.faults(built) == ["needs.so: _ZN3c105ErrorC1Ev is no part of the stable set"]
    assert check.main([str(built)]) == 1


@native
@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_the_installed_library_calls_no_cpp_of_torchs():
    check = symbols()
    names = [name for name, _ in check.undefined(_paths.LIBRARY)]
    assert any(check.STABLE.fullmatch(name) for name in names)
    assert not [name for name in names if "c10" in name or "5torch" in name]


@pytest.fixture
def package(tmp_path):
    """The package's Python files alone, to put a library beside them."""
    ignored = shutil.ignore_patterns("*.so", "*.why", "__pycache__")
    shutil.copytree(ROOT / "ssim_fused", tmp_path / "ssim_fused", ignore=ignored)
    return tmp_path


def test_sources_that_were_not_built_are_told_from_an_installed_package(package):
    assert "it was not built: reason unknown" in info(package)
    (package / "setup.py").touch()
    found = info(package)
    said = f"sources that were not built: leave {package}, or 'pip install -e .' there"
    assert f"it was not built: these are {said}" in found
    assert re.search(rf"^from +{re.escape(str(package / 'ssim_fused'))}$", found, re.M)


def test_a_library_that_does_not_load(package):
    (package / "ssim_fused" / "_C_cpu.so").write_bytes(b"\x7fELF and then nothing")
    found = info(package)
    assert "fallback" in found
    assert "it does not load" in found
    run([sys.executable, "-c", STEP], package)


def test_a_library_without_operators(package):
    library = package / "ssim_fused" / "_C_cpu.so"
    (package / "x.c").write_text("int x;")
    run(["cc", "-shared", package / "x.c", "-o", library], package)
    assert "it does not load: " in info(package)


@native
@pytest.mark.skipif(OTHER_PYTHON is None, reason="SSIM_FUSED_OTHER_PYTHON names no other torch")
def test_the_built_file_serves_another_torch(package):
    shutil.copy(_paths.LIBRARY, package / "ssim_fused")
    found = run([OTHER_PYTHON, "-m", "ssim_fused"], package)
    assert "native, " in found
    assert torch.__version__ not in found
    values = [
        run([python, "-c", f"import torch; torch.manual_seed(0); {STEP}"], package)
        for python in (sys.executable, OTHER_PYTHON)
    ]
    assert values[0] == values[1]


@pytest.mark.skipif(OTHER_PYTHON is None, reason="SSIM_FUSED_OTHER_PYTHON names no other torch")
def test_the_environment_leaves_gpus_to_pytorch(package):
    found = run([OTHER_PYTHON, "-m", "ssim_fused"], package, SSIM_FUSED_CUDA="0")
    assert "because SSIM_FUSED_CUDA=0 is set" in found
    assert "SSIM_FUSED_CUDA=0" not in run([OTHER_PYTHON, "-m", "ssim_fused"], package)
