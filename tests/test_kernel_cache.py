"""Compiled CUDA kernels on disk: many processes, damaged entries, folders not to be written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssim_fused import _kernel_cache, _kernels, _nvrtc, _paths
from ssim_fused._kernel_cache import Cache
from ssim_fused._nvrtc import Compiled

PACKAGE = Path(_kernels.__file__).parent
KERNEL = Compiled("_Z6kernelv", bytes(range(256)) * 40)


def test_what_is_stored_is_loaded(tmp_path):
    cache = Cache(tmp_path / "new" / "folder")
    assert cache.load("a") is None
    cache.store("a", KERNEL)
    assert cache.load("a") == KERNEL
    assert Cache(cache.place).load("a") == KERNEL
    assert cache.load("b") is None
    assert cache.place.stat().st_mode & 0o077 == 0  # nobody else's business
    assert [path.name for path in cache.place.iterdir()] == ["a.kernel"]


@pytest.mark.parametrize("position", [0, 5, 15, 60, 150, -1])
def test_a_changed_byte_is_noticed(tmp_path, position):
    cache = Cache(tmp_path)
    cache.store("a", KERNEL)
    path = tmp_path / "a.kernel"
    entry = bytearray(path.read_bytes())
    entry[position] ^= 1
    path.write_bytes(entry)
    assert cache.load("a") is None
    cache.store("a", KERNEL)
    assert cache.load("a") == KERNEL


@pytest.mark.parametrize("length", [0, 1, 50, 200, 5000])
def test_an_entry_that_ends_early_is_noticed(tmp_path, length):
    cache = Cache(tmp_path)
    cache.store("a", KERNEL)
    path = tmp_path / "a.kernel"
    path.write_bytes(path.read_bytes()[:length])
    assert cache.load("a") is None


def gives_up(cache: Cache, reason: str) -> None:
    """One warning, and then nothing is kept and nothing said."""
    with pytest.warns(UserWarning, match=f"kernels are not kept in .*{reason}.*SSIM_FUSED_CACHE"):
        cache.store("a", KERNEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.store("a", KERNEL)
        assert cache.load("a") is None


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    gives_up(Cache(tmp_path / "file" / "cache"), "Not a directory")


def test_a_warning_that_is_an_error_stops_no_launch(tmp_path):
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.store("a", KERNEL)
    assert cache.place is None


@pytest.mark.skipif(os.name != "posix", reason="modes are posix's")
def test_a_folder_is_shared_with_its_group(tmp_path, monkeypatch):
    Cache(tmp_path).store("a", KERNEL)
    entry = tmp_path / "a.kernel"
    assert entry.stat().st_mode & 0o777 == 0o644

    def another_users(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    cache = Cache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(_kernel_cache.Path, "read_bytes", another_users)
        assert cache.load("a") is None
    cache.store("a", KERNEL)
    assert cache.load("a") == KERNEL


def test_an_entry_that_another_machine_replaces_is_missing_once(tmp_path, monkeypatch):
    def stale(path):
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    cache = Cache(tmp_path)
    cache.store("a", KERNEL)
    with monkeypatch.context() as patch:
        patch.setattr(_kernel_cache.Path, "read_bytes", stale)
        assert cache.load("a") is None
    assert cache.load("a") == KERNEL


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    gives_up(Cache(tmp_path), "Permission denied")


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_read_only_or_full(tmp_path, monkeypatch, number):
    """What a file system says is brought about at the call that it would fail."""

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    where = "fdopen" if number == errno.ENOSPC else "replace"
    with monkeypatch.context() as patch:
        patch.setattr(_kernel_cache.os, where, fail)
        gives_up(Cache(tmp_path), os.strerror(number))
    assert list(tmp_path.iterdir()) == []  # nothing half written is left
    other = Cache(tmp_path)
    other.store("a", KERNEL)
    assert other.load("a") == KERNEL


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_for_real(tmp_path, monkeypatch):
    real = _kernel_cache.tempfile.mkstemp

    def on_a_full_disk(**settings):
        handle, name = real(**settings)
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), name

    monkeypatch.setattr(_kernel_cache.tempfile, "mkstemp", on_a_full_disk)
    gives_up(Cache(tmp_path), "No space left")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes are posix's")
def test_a_folder_that_anyone_may_write_is_not_read(tmp_path):
    Cache(tmp_path).store("a", KERNEL)
    tmp_path.chmod(0o777)
    with pytest.warns(UserWarning, match="anyone may write there"):
        assert Cache(tmp_path).load("a") is None


def test_without_a_folder_nothing_is_kept():
    cache = Cache(None)
    cache.store("a", KERNEL)
    assert cache.load("a") is None


@pytest.mark.skipif(sys.platform == "win32", reason="variables are posix's")
def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.delenv("SSIM_FUSED_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _kernel_cache.folder() == tmp_path / ".cache" / "ssim_fused"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert _kernel_cache.folder() == tmp_path / "xdg" / "ssim_fused"
    monkeypatch.setenv("SSIM_FUSED_CACHE", str(tmp_path / "own"))
    assert _kernel_cache.folder() == tmp_path / "own"
    monkeypatch.setenv("SSIM_FUSED_CACHE", "")
    assert _kernel_cache.folder() is None


WRITER = """
import sys, types
package = types.ModuleType("ssim_fused")
package.__path__ = [sys.argv[1]]
sys.modules["ssim_fused"] = package
from pathlib import Path
from ssim_fused._kernel_cache import Cache
from ssim_fused._nvrtc import Compiled
cache, seen = Cache(Path(sys.argv[2])), 0
for i in range(300):
    made = Compiled(f"kernel{sys.argv[3]}", bytes([int(sys.argv[3])]) * (1000 + 97 * i))
    cache.store("same", made)
    found = cache.load("same")
    assert found is not None, "a reader saw half an entry"
    assert set(found.image) == {int(found.symbol[-1])}
    seen += found.symbol != made.symbol
print(seen)
"""


def test_processes_that_write_one_entry_at_once(tmp_path):
    """A reader sees one writer's entry, whole, however they overlap."""
    command = [sys.executable, "-c", WRITER, str(PACKAGE), str(tmp_path)]
    running = [
        subprocess.Popen([*command, str(i)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for i in range(4)
    ]
    ended = [process.communicate() for process in running]
    assert not any(process.returncode for process in running), ended
    assert sum(int(out) for out, _ in ended) > 0  # they did overlap
    assert [path.name for path in tmp_path.iterdir()] == ["same.kernel"]


# ---- the key, and what is compiled ahead ----


def test_a_key_is_of_source_kernel_architecture_and_version(tmp_path):
    (tmp_path / "a.h").write_text("int a;")
    source = _kernels.Source(tmp_path)
    keys = {
        source.key("kernel", 90, (12, 9)),
        source.key("other", 90, (12, 9)),
        source.key("kernel", 80, (12, 9)),
        source.key("kernel", 90, (13, 0)),
    }
    (tmp_path / "a.h").write_text("int b;")
    keys.add(_kernels.Source(tmp_path).key("kernel", 90, (12, 9)))
    assert len(keys) == 5
    (tmp_path / "a.h").write_text("int a;")
    assert _kernels.Source(tmp_path).key("kernel", 90, (12, 9)) in keys


def test_an_archive_holds_what_was_put_into_it(tmp_path):
    (tmp_path / "a.h").write_text("int a;")
    source = _kernels.Source(tmp_path)
    path = _kernels.archive(90, tmp_path)
    _kernels.write_archive(path, source, (12, 9), {"kernel": KERNEL})
    first = path.read_bytes()
    _kernels.write_archive(path, source, (12, 9), {"kernel": KERNEL})
    assert path.read_bytes() == first  # reproducible
    assert _kernels.built_in(tmp_path) == [90]
    assert _kernels.read_archive(path, source, "kernel") == KERNEL
    assert _kernels.read_archive(path, source, "other") is None
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):  # wherever it is damaged: missing, or unharmed
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        assert _kernels.read_archive(path, source, "kernel") in (None, KERNEL)
    path.write_bytes(whole)
    (tmp_path / "a.h").write_text("int b;")
    assert _kernels.read_archive(path, _kernels.Source(tmp_path), "kernel") is None


@pytest.mark.parametrize(
    ("capability", "best"), [(75, 75), (80, 80), (87, None), (89, 89), (103, 100), (110, None)]
)
def test_a_gpu_runs_its_major_version_alone(capability, best):
    """CUDA C++ Programming Guide, "Binary Compatibility": a cubin of X.y runs on X.z, z >= y; not
    between a Tegra, as 8.7 is, and other GPUs.
    """
    assert _kernels.serving(capability, [75, 80, 86, 89, 90, 100, 120]) == best
    # as NVRTC 12.8 has them, with Tegra's
    every = [75, 80, 86, 87, 89, 90, 100, 101, 120]
    assert _kernels.serving(capability, every) == (87 if capability == 87 else best)


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        (61, "the kernels need a GPU of compute capability 7.0, this one has 6.1"),
        (90, None),
        (
            80,
            "no kernels for sm_80 are built in, and NVRTC is not found "
            "(pip install nvidia-cuda-nvrtc-cu12, or -cu13)",
        ),
    ],
)
def test_why_a_gpu_has_no_kernels(tmp_path, monkeypatch, capability, reason):
    monkeypatch.setattr(_nvrtc, "find", lambda *_: None)
    source = _kernels.Source(tmp_path)
    _kernels.write_archive(_kernels.archive(90, tmp_path), source, (12, 9), {"kernel": KERNEL})
    kernels = _kernels.Kernels(tmp_path)
    assert kernels.reason(capability) == reason
    assert kernels.describe(capability) == (f"none: {reason}" if reason else "built in, sm_90")


def test_plain_pytorch_serves_a_gpu_without_kernels(monkeypatch):
    monkeypatch.setattr(_paths, "cuda_reason", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    capabilities = [(6, 1), (9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    monkeypatch.setattr(_paths, "no_kernel", lambda *_: None)
    monkeypatch.setattr(_kernels.Kernels, "architecture", lambda self, capability: capability)
    _paths._find_gpu_reason.cache_clear()
    try:
        old, new = (SimpleNamespace(device=torch.device("cuda", i), is_cuda=True) for i in range(2))
        reason = _paths.why_reference(SimpleNamespace(input=old, target=old))
        assert reason == "the kernels need a GPU of compute capability 7.0, this one has 6.1"
        assert _paths.why_reference(SimpleNamespace(input=new, target=new)) is None
    finally:
        _paths._find_gpu_reason.cache_clear()
