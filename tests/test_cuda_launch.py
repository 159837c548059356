"""The launchers of the CUDA kernels, with a driver that stands in for CUDA's.

It writes down the calls and runs the kernels in the emulator, so that everything between an
operator and a kernel is seen: checks, geometry, strides, arguments, names. It has not met a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading

import cuda_standin
import pytest
import torch
from cuda_emulator import coverage_of, random_mask
from tables import MAP_TOLERANCE, TOLERANCE, pictures, relative_error

from ssim_fused import _cuda, _kernel_cache, _kernels, _nvrtc, _paths
from ssim_fused._request import KINDS, MEAN, PLANE, SUM
from ssim_fused._windows import gaussian_window

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(_paths.cpu_reason is not None, reason="no native library"),
]


OPERATORS = (
    "loss",
    "loss_and_gradients",
    "loss_map",
    "loss_backward",
    "loss_and_pool",
    "unpool",
    "unpool_",
)


@pytest.fixture(scope="module")
def kernel_folder(tmp_path_factory):
    """The kernels' headers, where an installed package has them."""
    folder = tmp_path_factory.mktemp("kernels")
    for path in (cuda_standin.CSRC).glob("*.h"):
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def libraries():
    """The stand-in driver, and its operators beside the CPU's."""
    driver = cuda_standin.Driver()
    patch = pytest.MonkeyPatch()
    patch.setattr(_cuda, "_driver", lambda: driver.library)
    patch.setattr(_cuda, "_torch_cuda", lambda: driver.library)
    definitions = torch.library.Library("ssim_fused_standin", "DEF")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.ssim_fused, name).default._schema)
        definitions.define(schema.removeprefix("ssim_fused::"))
    _cuda.load(cuda_standin.build_operators())
    yield driver
    patch.undo()


@pytest.fixture
def driver(libraries, kernel_folder, tmp_path, monkeypatch):
    """The stand-in driver with an empty record, and kernels of a compiler that does nothing."""
    monkeypatch.setenv(_kernel_cache.VARIABLE, str(tmp_path / "cache"))
    made = _kernels.Kernels(kernel_folder)
    made.nvrtc_path = kernel_folder / "libnvrtc.so.0"
    made.nvrtc = cuda_standin.NoCompiler()
    made.source = _kernels.Source(kernel_folder)
    monkeypatch.setattr(_cuda, "kernels", lambda: made)
    _cuda._capability.cache_clear()
    libraries.reset()
    libraries.kernels = made
    return libraries


def settings(windows=((11, 1.5),), valid=False, kind="ssim", data_range=1.0) -> tuple:
    """The operators' arguments from `window` to `kind`."""
    taps = [gaussian_window(*window) for window in windows]
    flat = [tap for window in taps for tap in window]
    return flat, [len(window) for window in taps], data_range, 0.01, 0.03, valid, KINDS.index(kind)


def both(name: str, *arguments):
    """What the CPU's operator and the launcher make of the same arguments."""
    made = (getattr(space, name) for space in (torch.ops.ssim_fused, torch.ops.ssim_fused_standin))
    return [
        result if isinstance(result, tuple) else (result,)
        for op in made
        for result in [op(*arguments)]
    ]


def check(name: str, *arguments, tolerance=None):
    """The launcher's results are the CPU's, within what both promise."""
    dtype = arguments[1].dtype if name == "loss_backward" else arguments[0].dtype
    value, gradient = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    cpu, launched = both(name, *arguments)
    for i, (expected, found) in enumerate(zip(cpu, launched, strict=True)):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        limit = tolerance or 2 * (gradient if name == "loss_backward" or i > 0 else value)
        if expected.numel():
            assert relative_error(found, expected.double()) < limit, (name, i)


NEEDS = [(False, False), (True, True), (True, False), (False, True)]
SHAPES = [(1, 2, 20, 24), (2, 1, 37, 140), (1, 1, 5, 3)]
CALLS = {
    "same": {},
    "valid": {"valid": True},
    "any window": {"windows": ((7, 1.5), (5, 1.0))},
    "contrast-structure": {"kind": "contrast_structure"},
    "data_range 255": {"data_range": 255.0},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", SHAPES)
def test_images(driver, shape, call):
    if CALLS[call].get("valid") and min(shape[2:]) < 11:
        pytest.skip("the window is larger than the images")
    x, y = (image * CALLS[call].get("data_range", 1.0) for image in pictures(shape))
    how = settings(**CALLS[call])
    for reduction in (MEAN, SUM, PLANE):
        check("loss", x, y, None, None, None, *how, reduction, [])
    check("loss", x, y, None, None, None, *how, MEAN, [0.8, 20.0, 0.2])
    for needs in NEEDS:
        check("loss_and_gradients", x, y, None, None, None, *how, MEAN, [], *needs)
    check("loss_map", x, y, None, None, *how, tolerance=MAP_TOLERANCE[torch.float32])
    weight = torch.rand_like(torch.ops.ssim_fused.loss_map(x, y, None, None, *how))
    check("loss", x, y, weight, None, None, *how, SUM, [])
    for needs in NEEDS:
        check("loss_backward", weight, x, y, None, None, *how, *needs)
    assert driver.calls("launch")


@pytest.mark.parametrize("offset", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("call", CALLS)
def test_one_scale_of_ms_ssim(driver, call, offset):
    span = CALLS[call].get("data_range", 1.0)
    how = settings(**CALLS[call])
    for shape in ((2, 3, 21, 25), (1, 1, 36, 138)):
        x, y = (image * span for image in pictures(shape))
        x = x.to(memory_format=torch.channels_last)
        for needs in NEEDS:
            check("loss_and_pool", x, y, offset, *how, *needs)
        made = torch.ops.ssim_fused.loss_and_pool(x, y, offset, *how, True, False)
        planes, half, _, grad, _ = made
        for carried in (half.mT.contiguous().mT, None):
            check("unpool", grad, planes, carried, offset)
            expected, found = grad.clone(), grad.clone()
            torch.ops.ssim_fused.unpool_(expected, planes, carried, offset)
            torch.ops.ssim_fused_standin.unpool_(found, planes, carried, offset)
            assert relative_error(found, expected.double()) < 1e-6
    assert driver.calls("launch")


def test_strides(driver):
    """Channels last, every second column, a plane for all channels, a weight for all rows."""
    x, y = pictures((2, 3, 20, 24))
    x, y = x.to(memory_format=torch.channels_last), torch.cat([y, y], 3)[..., ::2]
    how = settings()
    check("loss_and_gradients", x, y, None, None, None, *how, MEAN, [], True, True)
    check("loss", x[:, :1].expand(-1, 3, -1, -1), y, None, None, None, *how, PLANE, [])
    weight = torch.rand(2, 3, 1, 24).expand(-1, -1, 20, -1)
    check("loss_backward", weight, x, y, None, None, *how, True, False)


def test_volumes(driver):
    x, y = pictures((2, 1, 13, 20, 17))
    for windows in (((11, 1.5),), ((3, 0.8), (5, 1.0), (7, 1.5))):
        how = settings(windows)
        for reduction in (MEAN, SUM, PLANE):
            check("loss", x, y, None, None, None, *how, reduction, [])
        check("loss_and_gradients", x, y, None, None, None, *how, MEAN, [], True, True)
        check("loss_map", x, y, None, None, *how, tolerance=MAP_TOLERANCE[torch.float32])
        weight = torch.rand_like(x)
        check("loss_backward", weight, x, y, None, None, *how, False, True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.uint8])
def test_types(driver, dtype):
    x, y = pictures((1, 2, 20, 24), torch.float64)
    scale = 255 if dtype == torch.uint8 else 1
    x, y = ((image.clamp(0, 1) * scale).to(dtype) for image in (x, y))
    how = settings(data_range=float(scale))
    for reduction in (MEAN, PLANE):
        check("loss", x, y, None, None, None, *how, reduction, [])
    check(
        "loss_map", x, y, None, None, *how, tolerance=max(TOLERANCE.get(dtype, (2e-5,))[0], 1e-12)
    )
    if dtype != torch.uint8:
        check("loss_and_gradients", x, y, None, None, None, *how, MEAN, [], True, False)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("valid", [False, True])
def test_masks_and_weights(driver, axes, valid):
    x, y = pictures((2, 3, 21, 40) if axes == 2 else (1, 2, 12, 13, 15))
    how = settings(valid=valid)
    one_for_all = random_mask((x.shape[0], 1, *x.shape[2:])).expand(x.shape)
    for mask in (one_for_all, random_mask(x.shape)):
        beside = (mask, coverage_of(mask, (11, 1.5), valid).float())
        check("loss_map", x, y, *beside, *how, tolerance=MAP_TOLERANCE[torch.float32])
        weight = torch.rand_like(torch.ops.ssim_fused.loss_map(x, y, *beside, *how))
        for share in (None, weight):
            for reduction in (SUM, PLANE):
                check("loss", x, y, share, *beside, *how, reduction, [])
            for needs in ((True, True), (False, True)):
                check("loss_and_gradients", x, y, share, *beside, *how, SUM, [], *needs)
        check("loss_backward", weight, x, y, *beside, *how, True, True)
    check("loss_and_gradients", x, y, weight, None, None, *how, SUM, [], True, False)


def test_volumes_of_bytes(driver):
    x, y = ((image.clamp(0, 1) * 255).byte() for image in pictures((2, 1, 12, 13, 17)))
    how = settings(data_range=255.0)
    ops = torch.ops.ssim_fused, torch.ops.ssim_fused_standin
    expected, found = (
        op.loss(*images, None, None, None, *how, MEAN, [])
        for op, images in zip(ops, ((x.float(), y.float()), (x, y)))
    )
    assert relative_error(found, expected.double()) < 1e-6
    expected, found = (
        op.loss_map(*images, None, None, *how)
        for op, images in zip(ops, ((x.float(), y.float()), (x, y)))
    )
    assert relative_error(found, expected.double()) < MAP_TOLERANCE[torch.float32]


def test_what_a_launch_says_to_the_driver(driver):
    x, y = pictures((1, 1, 64, 64))
    torch.ops.ssim_fused_standin.loss(x, y, None, None, None, *settings(), SUM, [])
    driver.reset()
    for _ in range(2):  # the kernel and the counter are there from before
        torch.ops.ssim_fused_standin.loss(x, y, None, None, None, *settings(), SUM, [])
    first, second = driver.calls()
    assert first == second
    assert first.what == "launch"
    assert first.threads % 32 == 0
    assert 0 < first.shared <= 48 * 1024


def test_a_graph_has_a_counter_of_its_own(driver):
    """Not torch's memory outside a graph, where mode="reduce-overhead" looks for what it keeps."""
    x, y = pictures((1, 1, 16, 16))
    loss = torch.ops.ssim_fused_standin.loss_and_gradients
    # its parts of the terms are as small as the counter, whose memory they might be given
    arguments = (x, y, None, None, None, *settings(), MEAN, [1.0, 0.5, 0.5], True, False)
    expected = loss(*arguments)
    driver.reset()
    driver.capture(True)
    try:
        found = loss(*arguments)
    finally:
        driver.capture(False)
    assert [call.what for call in driver.calls()] == ["memset", "launch"]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_where_torch_holds_all_memory_a_launch_counts_in_torchs(driver):
    x, y = pictures((1, 1, 16, 16))
    loss = torch.ops.ssim_fused_standin.loss_and_gradients
    arguments = (x, y, None, None, None, *settings(), MEAN, [1.0, 0.5, 0.5], True, False)
    expected = loss(*arguments)
    driver.reset()
    driver.change_stream(2)  # which has no counter yet
    try:
        driver.be_scarce(1)
        for calls in (
            ["allocate", "memset", "launch"],
            ["allocate", "memset", "launch"],
            ["launch"],
        ):
            found = loss(*arguments)
            assert all(torch.equal(a, b) for a, b in zip(found, expected))
            assert [call.what for call in driver.calls()] == calls  # the second one is kept
            driver.reset()
    finally:
        driver.be_scarce(0)
        driver.change_stream(1)


def test_a_thread_without_a_context_gets_one(driver):
    x, y = pictures((1, 1, 16, 16))
    values = []

    def work():
        values.append(
            torch.ops.ssim_fused_standin.loss(x, y, None, None, None, *settings(), SUM, [])
        )

    work()
    driver.reset()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert values[0] == values[1]
    assert [call.what for call in driver.calls()] == ["retain", "launch"]


# ---- where a kernel comes from ----


def find(expression: str, header: str = _kernels.IMAGES) -> str | None:
    """Look for a kernel as the library does; None, or what was wrong."""
    import ctypes

    function, error = ctypes.c_void_p(), ctypes.create_string_buffer(4096)
    address = ctypes.cast(error, ctypes.c_void_p)
    failed = _cuda._find_kernel(
        0, header.encode(), expression.encode(), ctypes.pointer(function), address, 4096
    )
    assert failed or function.value
    return error.value.decode() if failed else None


NAME = "ssim_fused::ssim_kernel<float, ssim_fused::Layout::tile, ssim_fused::Task::value, false>"


@pytest.fixture
def context(driver):
    """A current context, which a launch makes sure of."""
    x, y = pictures((1, 1, 16, 16))
    torch.ops.ssim_fused_standin.loss(x, y, None, None, None, *settings(), SUM, [])
    driver.reset()
    driver.kernels.nvrtc.compiled.clear()
    return driver


def test_what_interrupts_a_compilation_is_said(context, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(_kernels.Kernels, "compiled", interrupted)
    assert find(NAME) == "KeyboardInterrupt"


CONNECTED = """
import ctypes, sys, threading
sys.path[:0] = sys.argv[1:]
import torch, cuda_standin
from ssim_fused import _cuda, _paths
driver = cuda_standin.Driver()
_cuda._driver = _cuda._torch_cuda = lambda: driver.library
definitions = torch.library.Library("ssim_fused_standin", "DEF")
definitions.define(str(torch.ops.ssim_fused.unpool.default._schema).removeprefix("ssim_fused::"))
real = _cuda._connect
_cuda._connect = _cuda._Connect(lambda *_: 0)  # as if ended before its first line
path = cuda_standin.build_operators()
_cuda.load(path)
arguments = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1), None, (0, 0)
try:
    torch.ops.ssim_fused_standin.unpool(*arguments)
except RuntimeError as error:
    print(str(error).splitlines()[0])
ctypes.CDLL(str(path)).ssim_fused_cuda_connect(real)
try:
    torch.ops.ssim_fused_standin.unpool(*arguments)
except RuntimeError as error:
    print(str(error).splitlines()[0])
"""


def test_an_interrupted_connection_is_said_and_made_again(driver):
    """Ctrl-C as a callback of Python begins leaves its result to chance."""
    folders = [str(cuda_standin.ROOT / "tests"), str(cuda_standin.ROOT)]
    command = [sys.executable, "-c", CONNECTED, *folders]
    done = subprocess.run(command, capture_output=True, text=True)
    first, *rest = done.stdout.splitlines()
    assert "ssim_fused: interrupted" in first, done.stderr
    assert "interrupted" not in "".join(rest)


def test_torch_gives_memory_back_for_a_kernel(context, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    context.be_scarce(1)
    assert find(NAME) is None
    assert emptied == [True]
    context.be_scarce(2)
    assert "loading a kernel failed" in find(NAME)
    context.be_scarce(0)


def test_the_list_of_kernels_is_what_the_launchers_choose_from(driver):
    names = [expression for _, expression in _kernels.names()]
    assert len(names) == len(set(names))
    assert set(map(cuda_standin.plain, names)) == driver.kernel_names()


def test_a_kernel_is_compiled_once_and_kept(context):
    assert find(NAME) is None
    assert find(NAME) is None
    compiled = context.kernels.nvrtc.compiled
    assert len(compiled) <= 1  # 0: the launch of the fixture made it
    entries = list(context.kernels.cache.place.glob("*.kernel"))
    assert len(entries) >= 1
    assert not list(context.kernels.cache.place.glob(".*"))  # nothing half written is left


def test_a_damaged_entry_is_compiled_again(context):
    assert find(NAME) is None
    for path in context.kernels.cache.place.glob("*.kernel"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    context.kernels.nvrtc.compiled.clear()
    assert find(NAME) is None
    assert context.kernels.nvrtc.compiled == [NAME]
    context.kernels.nvrtc.compiled.clear()
    assert find(NAME) is None
    assert context.kernels.nvrtc.compiled == []


def put_ahead(driver, folder, architecture, source=None):
    """Kernels for an architecture, as a wheel has them."""
    made = _nvrtc.Compiled(cuda_standin.written_out(NAME), b"ahead")
    source = source or driver.kernels.source
    _kernels.write_archive(_kernels.archive(architecture, folder), source, (12, 9), {NAME: made})
    driver.kernels.folder, driver.kernels.built_in = folder, _kernels.built_in(folder)


def test_a_kernel_compiled_ahead_is_taken_first(context, tmp_path):
    put_ahead(context, tmp_path, 90)
    assert find(NAME) is None
    assert context.kernels.nvrtc.compiled == []
    assert context.kernels.describe(90) == "built in, sm_90"
    assert "built in for sm_90; others compiled at first use" in context.kernels.describe()


@pytest.mark.parametrize("problem", ["other GPU", "older driver", "other source", "damaged"])
def test_where_what_is_ahead_does_not_serve_it_is_compiled(context, tmp_path, problem):
    shutil.rmtree(context.kernels.cache.place, ignore_errors=True)
    source = None
    if problem == "other source":
        source = _kernels.Source(tmp_path)
    put_ahead(context, tmp_path, 80 if problem == "other GPU" else 90, source)
    if problem == "older driver":
        context.reset(refuse=1)
    if problem == "damaged":
        path = _kernels.archive(90, tmp_path)
        path.write_bytes(path.read_bytes()[:-40])
    assert find(NAME) is None
    assert context.kernels.nvrtc.compiled == [NAME]


def test_what_is_said_where_no_kernel_can_be_had(context, kernel_folder, monkeypatch):
    context.reset(refuse=1)
    assert "loading a kernel failed: device kernel image is invalid (200)" in find(NAME)
    context.reset(capability_major=7)
    _cuda._capability.cache_clear()
    assert "knows no GPU of compute capability 7.0" in find(NAME)
    monkeypatch.setattr(_nvrtc, "find", lambda *_: None)
    without = _kernels.Kernels(kernel_folder)
    monkeypatch.setattr(_cuda, "kernels", lambda: without)
    assert _cuda.reason() == "no kernels are built in, and NVRTC is not found"
    assert "NVRTC is not found (pip install" in find(NAME)
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint16)  # no other test has such
    arguments = (image, image, None, None, None, *settings(), SUM, [])
    with pytest.raises(RuntimeError, match=r"no kernel ssim_fused::ssim_kernel<uint16.*not found"):
        torch.ops.ssim_fused_standin.loss(*arguments)


def test_nvrtc_itself(context, tmp_path, monkeypatch):
    """From the header to a launch with what NVRTC makes of it."""
    path = _nvrtc.find(12) or _nvrtc.find()
    if path is None:
        pytest.skip("no NVRTC (pip install nvidia-cuda-nvrtc-cu12)")
    real = _kernels.Kernels(context.kernels.folder)
    real.nvrtc_path = path
    monkeypatch.setattr(_cuda, "kernels", lambda: real)
    assert find("ssim_fused::reduce_kernel<float>") is None
    assert [call.name for call in context.calls("function")] == ["ssim_fused::reduce_kernel<float>"]
    (entry,) = real.cache.place.glob("*.kernel")
    kept = _kernel_cache.unpack(entry.read_bytes())
    assert kept.image[:4] == b"\x7fELF"
    assert "no_such_kernel" in find("ssim_fused::no_such_kernel<float>")


def test_the_launchers_check_what_python_does(driver):
    x, y = pictures((1, 1, 16, 16))
    with pytest.raises(RuntimeError, match="differ in dtype"):
        torch.ops.ssim_fused_standin.loss(x, y.double(), None, None, None, *settings(), SUM, [])
    loss = torch.ops.ssim_fused_standin.loss
    for beside, message in (
        ((x, None), "a mask comes with its coverage"),
        ((x[..., 1:], x), "mask has the wrong shape"),
        ((x, x[..., 1:]), "coverage has the wrong shape"),
        ((x.double(), x), "mask must be of the accumulation type"),
    ):
        with pytest.raises(RuntimeError, match=message):
            loss(x, y, None, *beside, *settings(), SUM, [])
    with pytest.raises(RuntimeError, match="without a mask"):
        loss(x, y, None, x, x, *settings(), MEAN, [1.0, 1.0, 0.0])


@pytest.mark.parametrize("size", [(2**31 - 1) // 3 + 1, 10**9])
def test_sides_whose_cut_would_overflow_are_refused(driver, size):
    image = torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(1, 1, size, 1)
    with pytest.raises(RuntimeError, match="too large along axis 2"):
        torch.ops.ssim_fused_standin.loss(image, image, None, None, None, *settings(), SUM, [])


def test_the_launchers_check_what_is_halved(driver):
    ops = torch.ops.ssim_fused_standin
    image, factor, half = torch.rand(1, 2, 16, 16), torch.rand(1, 2), torch.rand(1, 2, 8, 8)
    volume = image[:, :, None].expand(-1, -1, 16, -1, -1)
    with pytest.raises(RuntimeError, match="only images are pooled"):
        ops.loss_and_pool(volume, volume, (0, 0), *settings(), False, False)
    with pytest.raises(RuntimeError, match="pool_offset must be two numbers, each 0 or 1"):
        ops.loss_and_pool(image, image, (0, 2), *settings(), False, False)
    for unpool in (ops.unpool, ops.unpool_):
        for arguments, message in (
            ((image[0], factor, half, (0, 0)), "grad must be"),
            ((image.half(), factor, half, (0, 0)), "grad must be"),
            ((image[..., :0], factor, None, (0, 0)), "no pixels"),
            ((image, factor[0], half, (0, 0)), "factor"),
            ((image, factor.double(), half, (0, 0)), "factor"),
            ((image, factor, half[..., 1:], (0, 0)), "grad_pooled"),
            ((image, factor, half, (1,)), "pool_offset"),
        ):
            with pytest.raises(RuntimeError, match=message):
                unpool(*arguments)
    with pytest.raises(RuntimeError, match="pixels of grad must not share memory"):
        ops.unpool_(image[:, :1].expand(-1, 2, -1, -1), factor, half, (0, 0))


def test_structures_have_one_layout_in_both_compilers(tmp_path, kernel_folder):
    """What the host's compiler and NVRTC make of the structures that are handed over."""
    path = _nvrtc.find(12) or _nvrtc.find()
    if path is None:
        pytest.skip("no NVRTC (pip install nvidia-cuda-nvrtc-cu12)")
    kinds = (("Problem", "Geometry"), ("VolumeProblem", "VolumeGeometry"))
    structures = [f"{kind}<{dtype}>" for kind, _ in kinds for dtype in ("float", "double")]
    structures += [geometry for _, geometry in kinds]
    structures += ["Unpooling<float>", "Unpooling<double>"]
    lines = [f"{what}(ssim_fused::{of})" for of in structures for what in ("sizeof", "alignof")]
    program = tmp_path / "sizes.cpp"
    headers = (_kernels.IMAGES, _kernels.VOLUMES, _kernels.UNPOOLING)
    includes = "".join(f'#include "{header}"\n' for header in headers)
    prints = "".join(f'std::printf("%zu\\n", {what});' for what in lines)
    program.write_text(
        f"#include <cstdio>\n#include <initializer_list>\n{includes}int main() {{ {prints} }}"
    )
    built = tmp_path / "sizes"
    command = ["c++", "-std=c++20", f"-I{kernel_folder}", program, "-o", built]
    subprocess.run([str(word) for word in command], check=True)
    sizes = subprocess.run([built], capture_output=True, text=True, check=True).stdout.split()
    checks = "".join(f"static_assert({what} == {size});\n" for what, size in zip(lines, sizes))
    headers = {p.name: p.read_text() for p in kernel_folder.glob("*.h")}
    headers["checked.h"] = includes + checks
    nvrtc = _nvrtc.Nvrtc(path)
    expression = "ssim_fused::reduce_kernel<float>"
    nvrtc.compile(headers, "checked.h", expression, 80, _kernels.OPTIONS)
    headers["checked.h"] += f"static_assert({lines[0]} != {sizes[0]});\n"
    with pytest.raises(RuntimeError, match="static assertion failed"):
        nvrtc.compile(headers, "checked.h", expression, 80, _kernels.OPTIONS)
