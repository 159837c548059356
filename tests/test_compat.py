"""ssim_fused.compat against the libraries it stands in for, as they come from PyPI.

The original's value is taken in float64, where its own rounding does not count, and that of
pytorch-msssim with a window in float64, too: its own is float32, and moves values by up to 5e-6. In
float32 a stand-in may be as far from that as the original itself, or as `VALUE`. A library that is
not installed, or in another version, is skipped with a reason. fused-ssim is not on PyPI and needs
a GPU, fussim needs one: both are compared with their documented behaviour.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import pickle
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tables import oracle_map, relative_error

import ssim_fused
from benchmarks import originals
from benchmarks.originals import shim
from ssim_fused import compat
from ssim_fused._windows import gaussian_window

VALUE = 1e-6  # of a value, absolute: similarities are of the order of 1
MAP = 5e-5  # of a float32 map, absolute: each pixel keeps the rounding of its window
GRADIENT = 1e-9  # relative, float64


def _shim(library: str, name: str) -> Any:
    return getattr(shim(library), name)


def original(library: str, name: str) -> Any:
    """What the library itself has under that name; skips where it is not installed."""
    if reason := originals.missing(library):
        pytest.skip(reason)
    found = originals.load(library, name)
    if library == "frame_analytics":  # its code, without minutes of compiling
        importlib.import_module("frame_analytics").set_compile_enabled(False)
    return found


# ---- pictures ----


def _photo(name: str) -> torch.Tensor:
    """(3, H, W) in [0, 1], float64."""
    from sklearn.datasets import load_sample_image

    return torch.from_numpy(np.array(load_sample_image(name))).permute(2, 0, 1).double() / 255


def _worse(image: torch.Tensor) -> torch.Tensor:
    """Blurred, paler, noisy, still in [0, 1]."""
    generator = torch.Generator().manual_seed(7)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    taps = torch.ones(image.shape[-3], 1, 3, 3, dtype=torch.float64) / 9
    flat = image.reshape(-1, *image.shape[-3:])
    blurred = F.conv2d(flat, taps, padding=1, groups=image.shape[-3]).reshape(image.shape)
    return (0.9 * blurred + 0.04 + 0.04 * noise).clamp(0, 1)


def _pictures(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Two photographs and their worse copies, float64 in [0, 1] or [0, 255]."""
    china, flower = _photo("china.jpg"), _photo("flower.jpg")
    if kind == "volume":  # (2, 1, D, H, W): what a window sees that moves over the photograph
        frames = [
            torch.stack([p[:1, 100 + 2 * d : 126 + 2 * d, 200 + d : 228 + d] for d in range(24)], 1)
            for p in (china, flower)
        ]
        x = torch.stack(frames)
    elif kind == "deep":  # as large as pytorch-msssim's MS-SSIM asks for, flat in depth
        x = torch.stack([china[:1, d : 161 + d, 20:185] for d in range(12)], 1)[None]
    else:
        rows, columns = {"wide": (180, 197), "large": (391, 400)}.get(kind, (61, 70))
        x = torch.stack([p[:, 30 : 30 + rows, 150 : 150 + columns] for p in (china, flower)])
    y = _worse(x)
    return (255 * x, 255 * y) if kind == "bytes" else (x, y)


_CACHE: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}


def pictures(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    if kind not in _CACHE:
        _CACHE[kind] = _pictures(kind)
    return _CACHE[kind]


# ---- every mode ----


class Case(NamedTuple):
    library: str
    name: str
    kind: str  # which pictures
    settings: dict


def _cases(library: str, *rows: tuple) -> list[Case]:
    return [Case(library, *row) for row in rows]


WIN = {"win_size": 7, "win_sigma": 1.1}
K = {"K": (0.02, 0.05)}
BETAS = (0.2, 0.3, 0.5)
CASES = [
    *_cases(
        "pytorch_msssim",
        ("ssim", "bytes", {}),
        ("ssim", "small", {"data_range": 1.0}),
        ("ssim", "small", {"data_range": 1, "size_average": False, **K}),
        ("ssim", "small", {"data_range": 1, "nonnegative_ssim": True, **WIN}),
        ("ssim", "small", {"data_range": 1, "nonnegative_ssim": True, "size_average": False}),
        (
            "ssim",
            "small",
            {"data_range": 1, "win": torch.full((3, 1, 1, 5), 0.2, dtype=torch.float64)},
        ),
        ("ssim", "volume", {"data_range": 1}),
        ("ssim", "volume", {"data_range": 1, "size_average": False, "win_size": 25}),
        ("SSIM", "bytes", {}),
        ("SSIM", "small", {"data_range": 1, "size_average": False, **WIN, **K}),
        ("SSIM", "small", {"data_range": 1, "nonnegative_ssim": True}),
        ("SSIM", "volume", {"data_range": 1, "channel": 1, "spatial_dims": 3}),
        ("ms_ssim", "wide", {"data_range": 1}),
        ("ms_ssim", "wide", {"size_average": False, **K}),
        ("ms_ssim", "wide", {"data_range": 1, "weights": list(BETAS), **WIN}),
        (
            "ms_ssim",
            "wide",
            {"data_range": 1, "win": torch.full((3, 1, 1, 5), 0.2, dtype=torch.float64)},
        ),
        ("ms_ssim", "deep", {"data_range": 1}),
        ("MS_SSIM", "wide", {"data_range": 1}),
        ("MS_SSIM", "wide", {"size_average": False, "weights": list(BETAS), **WIN, **K}),
    ),
    *_cases(
        "torchmetrics",
        *(
            ("structural_similarity_index_measure", kind, settings)
            for kind, settings in (
                ("small", {}),
                ("bytes", {"data_range": 255.0}),
                ("small", {"data_range": (0.2, 0.7)}),
                ("small", {"data_range": 1.0, "sigma": (0.8, 2.0), "k1": 0.02, "k2": 0.05}),
                ("small", {"data_range": 1.0, "kernel_size": 33}),
                ("small", {"data_range": 1.0, "gaussian_kernel": False, "kernel_size": (5, 9)}),
                ("small", {"data_range": 1.0, "reduction": "sum"}),
                ("small", {"data_range": 1.0, "reduction": "none"}),
                ("small", {"reduction": None, "return_full_image": True}),
                ("small", {"data_range": 1.0, "return_full_image": True, "sigma": 1.0}),
                ("small", {"data_range": 1.0, "return_contrast_sensitivity": True}),
                ("volume", {"data_range": 1.0}),
                ("volume", {"return_contrast_sensitivity": True, "reduction": "sum"}),
                ("volume", {"data_range": 1.0, "return_full_image": True}),
                ("volume", {"data_range": 1.0, "gaussian_kernel": False, "kernel_size": (3, 5, 7)}),
            )
        ),
        *(
            ("multiscale_structural_similarity_index_measure", kind, settings)
            for kind, settings in (
                ("wide", {"data_range": 1.0}),
                ("wide", {}),
                ("wide", {"data_range": 1.0, "normalize": "simple", "reduction": "none"}),
                ("wide", {"data_range": 1.0, "normalize": None, "reduction": "sum"}),
                (
                    "wide",
                    {"data_range": (0.0987, 0.9013), "betas": BETAS, "sigma": 1.0, "k2": 0.05},
                ),
                ("wide", {"data_range": 1.0, "gaussian_kernel": False, "kernel_size": 7}),
            )
        ),
    ),
    *_cases(
        "piq",
        ("ssim", "small", {}),
        ("ssim", "bytes", {"data_range": 255}),
        ("ssim", "large", {}),
        ("ssim", "large", {"downsample": False}),
        ("ssim", "large", {"full": True}),
        ("ssim", "small", {"full": True, "reduction": "none"}),
        ("ssim", "small", {"reduction": "sum", "k1": 0.02, "k2": 0.05}),
        ("ssim", "small", {"kernel_size": 7, "kernel_sigma": 1.0, "reduction": "none"}),
        ("SSIMLoss", "small", {}),
        ("SSIMLoss", "large", {"kernel_size": 7, "k1": 0.02}),
        ("SSIMLoss", "bytes", {"data_range": 255, "reduction": "none"}),
        ("multi_scale_ssim", "wide", {}),
        ("multi_scale_ssim", "wide", {"reduction": "none", "k2": 0.05}),
        ("multi_scale_ssim", "wide", {"reduction": "sum", "scale_weights": torch.tensor(BETAS)}),
        ("multi_scale_ssim", "wide", {"kernel_size": 7, "kernel_sigma": 1.0}),
        ("MultiScaleSSIMLoss", "wide", {}),
        ("MultiScaleSSIMLoss", "wide", {"reduction": "none", "scale_weights": torch.ones(3)}),
    ),
    *_cases(
        "kornia",
        ("ssim", "small", {"window_size": 11}),
        ("ssim", "small", {"window_size": 5, "padding": "valid"}),
        ("ssim", "bytes", {"window_size": 7, "max_val": 255.0}),
        ("ssim", "small", {"window_size": 7, "max_val": 0.5, "eps": 0.0}),
        ("SSIM", "small", {"window_size": 11, "padding": "VALID"}),
        ("ssim3d", "volume", {"window_size": 7}),
        ("ssim3d", "volume", {"window_size": 5, "padding": "valid"}),
        ("SSIM3D", "volume", {"window_size": 7}),
        ("ssim_loss", "small", {"window_size": 11}),
        ("ssim_loss", "small", {"window_size": 5, "padding": "valid", "reduction": "none"}),
        ("ssim_loss", "bytes", {"window_size": 7, "max_val": 255.0}),
        ("SSIMLoss", "small", {"window_size": 11, "reduction": "none"}),
        ("ssim3d_loss", "volume", {"window_size": 7}),
        ("SSIM3DLoss", "volume", {"window_size": 5, "padding": "valid", "reduction": "none"}),
    ),
    *_cases(
        "monai",
        ("SSIMLoss", "small", {"spatial_dims": 2}),
        ("SSIMLoss", "bytes", {"spatial_dims": 2, "data_range": 255.0, "reduction": "none"}),
        ("SSIMLoss", "small", {"spatial_dims": 2, "reduction": "sum", "k1": 0.02, "k2": 0.05}),
        ("SSIMLoss", "small", {"spatial_dims": 2, "kernel_type": "uniform", "win_size": 7}),
        ("SSIMLoss", "small", {"spatial_dims": 2, "win_size": (5, 9), "kernel_sigma": (1, 2)}),
        ("SSIMLoss", "volume", {"spatial_dims": 3}),
        ("SSIMLoss", "volume", {"spatial_dims": 3, "win_size": [3, 5, 7], "reduction": "none"}),
        ("SSIMLoss", "volume", {"spatial_dims": 3, "kernel_type": "uniform", "win_size": 5}),
        (
            "compute_ssim_and_cs",
            "small",
            {"spatial_dims": 2, "kernel_size": (7, 7), "kernel_sigma": (1.5, 1.5)},
        ),
        ("compute_ms_ssim", "wide", {"spatial_dims": 2}),
        ("compute_ms_ssim", "wide", {"spatial_dims": 2, "weights": BETAS, "kernel_size": 7}),
        ("compute_ms_ssim", "wide", {"spatial_dims": 2, "kernel_type": "uniform"}),
    ),
    *_cases(
        "frame_analytics",
        ("ssim", "small", {}),
        ("ssim", "bytes", {"data_range": 255}),
        ("ssim", "small", {"reduction": "none", "K": (0.02, 0.05)}),
        ("ssim", "small", {"win_size": 7, "sigma": 1.0}),
        ("ssim", "small", {"return_map": True}),
        ("ssim", "large", {"downsample": True}),
        ("ssim", "small", {"luma": True}),
        ("ssim", "small", {"luma": "bt709", "crop_border": 4}),
        ("ssim", "small", {"luma": "matlab", "return_map": True}),
        ("ssim", "small", {"dtype": torch.float64}),
        ("ms_ssim", "wide", {}),
        ("ms_ssim", "wide", {"reduction": "none", "luma": True}),
        ("ms_ssim", "wide", {"weights": BETAS, "win_size": 7, "sigma": 1.0, "crop_border": 3}),
        ("SSIM", "small", {"reduction": "none"}),
        ("MSSSIM", "wide", {"K": (0.02, 0.05)}),
    ),
]


def _id(case: Case) -> str:
    settings = [
        f"{name}={'tensor' if isinstance(value, torch.Tensor) else value}"
        for name, value in case.settings.items()
    ]
    return " ".join([case.library, case.name, case.kind, *settings])


def _call(function: Any, settings: dict, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """A function, or a class, on two images: a list of what it returns."""
    dtype = x.dtype if x.is_floating_point() else torch.float32
    settings = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) else value
        for name, value in settings.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pytorch-msssim warns of short axes, and so do we
        if isinstance(function, type):
            found = function(**settings).to(dtype)(x, y)
        else:
            found = function(x, y, **settings)
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _distance(found: torch.Tensor, true: torch.Tensor) -> float:
    return (found.double() - true.double()).abs().max().item()


def _exact(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict]:
    """The original and its settings, in float64 where it is float32 whatever it is given."""
    theirs, settings = original(case.library, case.name), dict(case.settings)
    if case.library == "monai":
        regression = importlib.import_module("monai.metrics.regression")
        monkeypatch.setattr(regression, "convert_data_type", lambda image, **_: (image,))
        monkeypatch.setattr(torch, "float", torch.float64)  # of the weights of scales
        monkeypatch.setattr(regression, "_gaussian_kernel", _outer_products)
        monkeypatch.setattr(torch, "ones", functools.partial(torch.ones, dtype=torch.float64))
    elif case.library == "torchmetrics":
        betas = torch.tensor
        monkeypatch.setattr(
            torch, "tensor", lambda x, **s: betas(x, **{"dtype": torch.float64} | s)
        )
    elif case.library == "pytorch_msssim":
        size, sigma = settings.pop("win_size", 11), settings.pop("win_sigma", 1.5)
        channels, axes = (1, 3) if case.kind in ("volume", "deep") else (3, 2)
        taps = torch.tensor(gaussian_window(size, sigma), dtype=torch.float64)
        win = taps.expand(channels, *(1,) * axes, size)
        if not isinstance(theirs, type):
            return theirs, {"win": win} | settings
        windows = importlib.import_module("pytorch_msssim.ssim")
        monkeypatch.setattr(windows, "_fspecial_gauss_1d", lambda size, sigma: taps.view(1, 1, -1))
    return theirs, settings


def _outer_products(axes: int, channels: int, sizes: Any, sigmas: Any) -> torch.Tensor:
    kernel = torch.ones((), dtype=torch.float64)
    for size, sigma in zip(sizes, sigmas):
        taps = torch.tensor(gaussian_window(size, sigma), dtype=torch.float64)
        kernel = kernel.unsqueeze(-1) * taps
    return kernel.expand(channels, 1, *kernel.shape)


def _slopes(values: list, *images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(sum((value**2).mean() for value in values), images)


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_value_shape_dtype_and_gradients_are_those_of_the_original(case, monkeypatch):
    ours, theirs = (f(case.library, case.name) for f in (_shim, original))
    x, y = (image.clone().requires_grad_() for image in pictures(case.kind))
    with monkeypatch.context() as patched:
        true = _call(*_exact(case, patched), x, y)
        true_slopes = _slopes(true, x, y)
    if case.library != "monai":
        found = _call(ours, case.settings, x, y)
        # kornia's eps, 1e-12, is not ours
        close, close_slope = (2e-5, 1e-5) if case.library == "kornia" else (1e-9, 1e-9)
        for a, b in zip(found, true):
            assert a.dtype == b.dtype
            assert _distance(a, b) <= (close if a.dim() > 2 else min(close, VALUE))
        for a, b in zip(_slopes(found, x, y), true_slopes):
            assert relative_error(a, b) <= close_slope

    x, y = (image.detach().float().requires_grad_() for image in (x, y))
    found, single = (_call(f, case.settings, x, y) for f in (ours, theirs))
    assert len(found) == len(single)
    for a, b, c in zip(found, single, true):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert _distance(a, c) <= max(MAP if a.dim() > 2 else VALUE, _distance(b, c))
    for a, c in zip(_slopes(found, x, y), true_slopes):
        assert relative_error(a, c) <= 1e-4


# ---- scikit-image: arrays ----


def _arrays(dtype: Any, axes: int, channels: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = pictures("volume" if axes == 3 else "small")
    pair = []
    for image in (x, y):
        array = image[0].movedim(0, -1).numpy()  # channels last
        if axes == 1:
            array = array[20]
        array = array if channels else array[..., 0]
        pair.append((array * 255).round().astype(dtype) if np.dtype(dtype).kind != "f" else array)
    return pair[0].astype(dtype), pair[1].astype(dtype)


SKIMAGE = [
    (np.uint8, 2, {}),
    (np.uint8, 2, {"gaussian_weights": True, "use_sample_covariance": False}),
    (np.uint8, 2, {"channel_axis": -1}),
    (np.uint8, 2, {"channel_axis": 2, "full": True, "gaussian_weights": True}),
    (np.uint8, 2, {"full": True, "win_size": 11, "K1": 0.02, "K2": 0.05}),
    (np.int16, 2, {}),
    (np.bool_, 2, {}),
    (np.float32, 2, {"data_range": 1.0}),
    (np.float32, 2, {"data_range": 1.0, "channel_axis": -1, "gaussian_weights": True}),
    (np.float16, 2, {"data_range": 1.0, "full": True}),
    (">f4", 2, {"data_range": 1.0, "full": True}),
    (np.float64, 2, {"data_range": 1.0, "gaussian_weights": True, "sigma": 2.0}),
    (np.float64, 2, {"data_range": 1.0, "gaussian_weights": True, "win_size": 7}),
    (np.float64, 2, {"data_range": 1.0, "gaussian_weights": True, "win_size": 15, "full": True}),
    (np.float64, 2, {"data_range": 1.0, "gradient": True, "use_sample_covariance": False}),
    (
        np.float64,
        2,
        {
            "data_range": 1.0,
            "gradient": True,
            "full": True,
            "channel_axis": -1,
            "gaussian_weights": True,
            "use_sample_covariance": False,
        },
    ),
    (np.float32, 2, {"data_range": 1.0, "gradient": True, "use_sample_covariance": False}),
    (np.float64, 1, {"data_range": 1.0, "full": True}),
    (np.uint8, 3, {}),
    (np.float64, 3, {"data_range": 1.0, "gaussian_weights": True, "full": True}),
    (np.float64, 3, {"data_range": 1.0, "channel_axis": -1, "win_size": 5}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("dtype", "axes", "settings"), SKIMAGE, ids=str)
def test_scikit_image(dtype, axes, settings):
    theirs = original("skimage", "structural_similarity")
    x, y = _arrays(dtype, axes, "channel_axis" in settings)
    single = np.dtype(dtype).itemsize < 8 and np.dtype(dtype).kind == "f"
    true, found = (f(x, y, **settings) for f in (theirs, shim("skimage").structural_similarity))
    pair = (true, found) if isinstance(true, tuple) else ((true,), (found,))
    assert len(pair[0]) == len(pair[1])
    for a, b in zip(*pair):
        assert a.dtype == b.dtype
        assert np.shape(a) == np.shape(b)
    # in half and single precision the original rounds, too
    exact = theirs(x.astype(np.float64), y.astype(np.float64), **settings) if single else true
    exact = exact if isinstance(exact, tuple) else (exact,)
    for a, b, c in zip(pair[1], pair[0], exact):
        scale = np.abs(c).max()
        floor = VALUE if np.ndim(c) == 0 else (MAP if single else 1e-10) * scale
        assert np.abs(a - c).max() <= max(floor, np.abs(b - c).max())


def test_scikit_image_gradient_counts_sample_covariance():
    """The original leaves it out, although it is its default."""
    x, y = _arrays(np.float64, 2, False)
    settings = {"data_range": 1.0, "gradient": True}
    _, found = shim("skimage").structural_similarity(x, y, **settings)
    step = np.zeros_like(y)
    step[30, 30] = 1e-5

    def mean_of_map(image):
        return shim("skimage").structural_similarity(x, image, data_range=1.0, full=True)[1].mean()

    slope = (mean_of_map(y + step) - mean_of_map(y - step)) / 2e-5
    assert found[30, 30] == pytest.approx(slope, rel=1e-5)
    _, theirs = original("skimage", "structural_similarity")(x, y, **settings)
    assert theirs[30, 30] != pytest.approx(slope, rel=1e-3)


def test_scikit_image_refuses():
    x, y = _arrays(np.uint8, 2, False)
    similarity = shim("skimage").structural_similarity
    with pytest.raises(TypeError, match="multichannel"):
        similarity(x, y, multichannel=True)
    with pytest.raises(NotImplementedError, match="4 axes"):
        similarity(x[None, None], y[None, None])
    with pytest.raises(ValueError, match="data_range"):
        similarity(x / 255.0, y / 255.0)
    with pytest.raises(ValueError, match="win_size"):
        similarity(x[:5], y[:5])
    with pytest.raises(ValueError, match="win_size 1 needs use_sample_covariance=False"):
        similarity(x, y, win_size=1)
    settings = {"win_size": 1, "use_sample_covariance": False}
    theirs = original("skimage", "structural_similarity")(x, y, **settings)
    assert similarity(x, y, **settings) == pytest.approx(theirs, abs=VALUE)


# ---- fused-ssim and fussim, as documented ----


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("name", ["fused_ssim", "fused_ssim2d"])
def test_fused_ssim(padding, name):
    x, y = (image.clone().requires_grad_() for image in pictures("small"))
    function = getattr(shim("fused_ssim"), name)
    value, true = function(x, y, padding), oracle_map(x, y, padding=padding).mean()
    assert _distance(value, true) <= 1e-10
    found, expected = (torch.autograd.grad(v, x, create_graph=True)[0] for v in (value, true))
    assert relative_error(found, expected) <= 1e-9
    # a second derivative, which the original gets wrong without a word
    found, expected = (torch.autograd.grad((g**2).sum(), x)[0] for g in (found, expected))
    assert relative_error(found, expected) <= 1e-7
    assert not function(x, y, padding, train=False).requires_grad


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_fused_ssim_of_volumes(padding):
    x, y = pictures("volume")
    value = shim("fused_ssim").fused_ssim3d(x, y, padding)
    around = [F.pad(image, (5,) * 6) if padding == "same" else image for image in (x, y)]
    win = torch.tensor(gaussian_window(11, 1.5), dtype=torch.float64).expand(1, 1, 1, 1, 11)
    true = original("pytorch_msssim", "ssim")(*around, data_range=1.0, win=win)
    assert _distance(value, true) <= 1e-10


def test_fused_ssim_refuses():
    x, y = pictures("small")
    with pytest.raises(AssertionError, match="padding"):
        shim("fused_ssim").fused_ssim(x, y, "reflect")
    with pytest.raises(ValueError, match="5 axes"):
        shim("fused_ssim").fused_ssim3d(x, y)


@pytest.mark.parametrize("size", [7, 9, 11])
def test_fussim(size):
    x, y = pictures("small")
    module = shim("fussim")
    for padding in ("same", "valid"):
        true = oracle_map(x, y, (size, 1.5), padding).mean()
        assert _distance(module.fused_ssim(x, y, padding, window_size=size), true) <= 1e-10
    true = oracle_map(x, y, (size, 1.5), "valid")
    assert _distance(module.ssim(255 * x, 255 * y, win_size=size), true.mean()) <= 1e-10
    each = module.SSIM(1.0, size_average=False, win_size=size, nonnegative_ssim=True)(x, y)
    assert _distance(each, true.clamp(min=0).mean((1, 2, 3))) <= 1e-10
    with pytest.raises(NotImplementedError, match="win="):
        module.ssim(x, y, win=torch.ones(3, 1, 1, 11))


# ---- signatures ----

NAMES = [
    (library, target, name)
    for library in compat.LIBRARIES
    for target, names in importlib.import_module(f"ssim_fused.compat.{library}").STANDS_FOR.items()
    for name in names
]


@pytest.mark.parametrize(("library", "target", "name"), NAMES)
def test_signature_is_that_of_the_original(library, target, name):
    theirs = original(library, name)
    theirs = getattr(importlib.import_module(target), name)
    ours = getattr(shim(library), name)
    if not callable(theirs):
        assert theirs == ours
        return
    parameters = inspect.signature(ours).parameters
    assert list(parameters) == list(inspect.signature(theirs).parameters)
    for key, parameter in inspect.signature(theirs).parameters.items():
        assert parameters[key].kind == parameter.kind
        assert parameters[key].default == parameter.default


# ---- where the originals are wrong ----


@pytest.mark.parametrize(
    ("library", "name", "settings"),
    [
        ("pytorch_msssim", "ms_ssim", {"data_range": 1.0}),
        ("piq", "multi_scale_ssim", {}),
        ("torchmetrics", "multiscale_structural_similarity_index_measure", {"data_range": 1.0}),
        ("monai", "compute_ms_ssim", {"spatial_dims": 2}),
        ("frame_analytics", "ms_ssim", {}),
    ],
)
def test_ms_ssim_of_anti_correlated_images_is_0_and_flat(library, name, settings):
    """As the originals have it; ssim_fused.ms_ssim_loss does not, unless it is told to."""
    x = pictures("wide")[0].float()
    for function in (getattr(shim(library), name), original(library, name)):
        image = (1 - x).requires_grad_()
        value = function(x, image, **settings).mean()
        (slope,) = torch.autograd.grad(value, image)
        assert value == 0
        assert (slope == 0).all()


def test_torchmetrics_ms_ssim_without_normalization_is_a_number():
    x = pictures("wide")[0]
    name, settings = "multiscale_structural_similarity_index_measure", {"normalize": None}
    settings["data_range"] = 1.0
    y = (1 - x).requires_grad_()
    value = getattr(shim("torchmetrics"), name)(x, y, **settings)
    assert value.isfinite()
    assert torch.autograd.grad(value, y)[0].isfinite().all()
    assert original("torchmetrics", name)(x, 1 - x, **settings).isnan()


def test_torchmetrics_map_of_volumes_has_their_size():
    x, y = pictures("volume")
    name = "structural_similarity_index_measure"
    settings = {"data_range": 1.0, "sigma": (1.5, 1.5, 0.8), "return_full_image": True}
    assert getattr(shim("torchmetrics"), name)(x, y, **settings)[1].shape == x.shape
    assert original("torchmetrics", name)(x, y, **settings)[1].shape != x.shape


@pytest.mark.parametrize("name", ["SSIMLoss", "MultiScaleSSIMLoss"])
def test_piq_sum_is_the_sum_of_losses(name):
    x, y = pictures("wide")
    ours = getattr(shim("piq"), name)
    assert _distance(ours(reduction="sum")(x, y), ours(reduction="none")(x, y).sum()) <= 1e-12
    theirs = original("piq", name)(reduction="sum")(x, y)
    assert _distance(ours(reduction="sum")(x, y), theirs + len(x) - 1) <= VALUE


def test_kornia_adds_eps_to_black():
    black = torch.zeros(1, 1, 20, 20, dtype=torch.float64)
    assert shim("kornia").ssim(black, black, 11).min() == 1
    theirs = original("kornia", "ssim")(black, black, 11)
    assert _distance(theirs, torch.ones_like(theirs)) == pytest.approx(1.1e-5, rel=0.02)


# ---- what is refused ----


def test_refused():
    x, y = pictures("small")
    volume = pictures("volume")
    refused = [
        (lambda: shim("piq").ssim(torch.stack((x, x), -1), torch.stack((y, y), -1)), "complex"),
        (lambda: shim("kornia").ssim(x, y, 11, eps=1e-6), "eps=1e-06"),
        (lambda: shim("kornia").ssim(x, y, 8), "even"),
        (lambda: shim("monai").SSIMLoss(2, win_size=8)(x, y), "even"),
        (lambda: shim("frame_analytics").ssim(x, y, win_size=8), "even"),
        (
            lambda: shim("pytorch_msssim").ssim(x, y, win=torch.rand(3, 1, 1, 5)),
            "differs from channel",
        ),
        (
            lambda: shim("pytorch_msssim").ssim(
                x, y, win=torch.tensor([0.5, 0.3, 0.2]).expand(3, 1, 1, 3)
            ),
            "not symmetric",
        ),
        (
            lambda: shim("pytorch_msssim").ssim(
                x, y, win=torch.tensor([-0.25, 1.5, -0.25]).expand(3, 1, 1, 3)
            ),
            "negative",
        ),
    ]
    for call, message in refused:
        with pytest.raises(NotImplementedError, match=message):
            call()
    with pytest.raises(AssertionError, match="larger than 160"):
        shim("pytorch_msssim").ms_ssim(x, y)
    with pytest.raises(ValueError, match="at least 161"):
        shim("piq").multi_scale_ssim(x, y)
    with pytest.raises(ValueError, match="at least 176"):
        shim("torchmetrics").multiscale_structural_similarity_index_measure(x, y)
    with pytest.raises(ValueError, match="4 axes"):
        shim("monai").SSIMLoss(2)(*volume)
    for return_map in (False, True):
        with pytest.raises(ValueError, match=r"reduction must be .*'bad'"):
            shim("frame_analytics").ssim(x, y, return_map=return_map, reduction="bad")


@pytest.mark.parametrize(
    ("library", "name", "settings"),
    [
        ("pytorch_msssim", "ssim", {}),
        ("pytorch_msssim", "ms_ssim", {}),
        ("torchmetrics", "structural_similarity_index_measure", {}),
        ("torchmetrics", "multiscale_structural_similarity_index_measure", {}),
        ("monai", "SSIMLoss", {"spatial_dims": 2}),
    ],
)
def test_data_range_that_asks_for_a_gradient_is_refused(library, name, settings):
    x, y = pictures("wide")
    data_range = torch.tensor(1.0)
    _call(_shim(library, name), {"data_range": data_range, **settings}, x, y)
    asks = torch.tensor(1.0, dtype=x.dtype, requires_grad=True)
    with pytest.raises(ValueError, match="data range must not require a gradient"):
        _call(_shim(library, name), {"data_range": asks, **settings}, x, y)


@pytest.mark.parametrize("load", [_shim, original])
def test_losses_are_losses_to_torch_and_check_their_kernel(load):
    made = [load("monai", "SSIMLoss")(2)]
    for name in ("SSIMLoss", "MultiScaleSSIMLoss"):
        loss = load("piq", name)
        made.append(loss())
        with pytest.raises(AssertionError, match="odd"):
            loss(kernel_size=10)
    assert all(isinstance(loss, torch.nn.modules.loss._Loss) for loss in made)


def test_torchmetrics_sizes_are_checked_for_each_side():
    name = "multiscale_structural_similarity_index_measure"
    x, y = (image[..., :64, :180] for image in pictures("wide"))
    settings = {"data_range": 1.0, "gaussian_kernel": False, "kernel_size": (3, 11)}
    found, true = (load("torchmetrics", name)(x, y, **settings) for load in (_shim, original))
    assert _distance(found, true) <= VALUE
    with pytest.raises(ValueError, match="at least 48 x 176"):
        shim("torchmetrics").multiscale_structural_similarity_index_measure(
            x[..., :170], y[..., :170], **settings
        )


@pytest.mark.parametrize("name", ["ssim", "SSIMLoss", "multi_scale_ssim"])
def test_piq_takes_bytes_beside_floats(name):
    x, y = ((255 * image).round() for image in pictures("wide"))
    for pair in ((x.byte(), y.float()), (x.float(), y.byte())):
        found, true = (
            _call(load("piq", name), {"data_range": 255}, *pair)[0] for load in (_shim, original)
        )
        assert found.dtype == true.dtype
        assert _distance(found, true) <= MAP


def test_monai_gives_plain_tensors_for_its_own_and_for_arrays():
    x, y = (image.float() for image in pictures("small"))
    if reason := originals.missing("monai"):
        pytest.skip(reason)
    meta = importlib.import_module("monai.data").MetaTensor
    settings = {"spatial_dims": 2, "kernel_size": (7, 7), "kernel_sigma": (1.5, 1.5)}
    for load in (original, _shim):
        similarity = load("monai", "compute_ssim_and_cs")
        for pair in ((meta(x), meta(y)), (x.numpy(), y.numpy())):
            assert all(type(each) is torch.Tensor for each in similarity(*pair, **settings))
        assert type(load("monai", "SSIMLoss")(2)(meta(x), meta(y))) is torch.Tensor


WHOLE = [torch.uint8, torch.uint16, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
@pytest.mark.parametrize(
    ("library", "name", "kind", "settings"),
    [
        ("pytorch_msssim", "ssim", "small", {}),
        ("pytorch_msssim", "ms_ssim", "wide", {}),
        ("torchmetrics", "structural_similarity_index_measure", "small", {"data_range": 255.0}),
        ("torchmetrics", "structural_similarity_index_measure", "small", {"data_range": (9, 99)}),
        ("torchmetrics", "structural_similarity_index_measure", "small", {}),
        ("torchmetrics", "multiscale_structural_similarity_index_measure", "wide", {}),
        ("piq", "ssim", "small", {"data_range": 255}),
        ("piq", "ssim", "large", {"data_range": 255}),
        ("piq", "SSIMLoss", "small", {"data_range": 255}),
        ("piq", "multi_scale_ssim", "wide", {"data_range": 255}),
        ("kornia", "ssim", "small", {"window_size": 11, "max_val": 255.0}),
        ("monai", "SSIMLoss", "small", {"spatial_dims": 2, "data_range": 255.0}),
        ("frame_analytics", "ssim", "small", {"data_range": 255}),
    ],
)
def test_integer_images_have_a_value(library, name, kind, settings, dtype):
    most = 1 if dtype == torch.bool else 127 if dtype == torch.int8 else 255
    x, y = ((most * image).round() for image in pictures(kind))
    whole = x.to(dtype), y.to(dtype)
    (found,) = _call(getattr(shim(library), name), settings, *whole)
    (same,) = _call(getattr(shim(library), name), settings, x.float(), y.float())
    assert _distance(found, same) <= 1e-6
    # the other originals have none, or that of a window of zeros
    signed = dtype in (torch.int16, torch.int32, torch.int64)
    if signed and library not in ("pytorch_msssim", "torchmetrics"):
        (theirs,) = _call(original(library, name), settings, *whole)
        # their float32 has few digits, and kornia's map fewer
        assert _distance(found.mean(), theirs.mean()) <= MAP
        assert found.dtype == theirs.dtype


def test_frame_analytics_has_a_range_for_bytes():
    x, y = ((255 * image).round() for image in pictures("small"))
    bytes_ = shim("frame_analytics").ssim(x.byte(), y.byte())
    assert _distance(bytes_, shim("frame_analytics").ssim(x, y, data_range=255)) <= MAP


@pytest.mark.parametrize(("name", "kind"), [("SSIM", "small"), ("MSSSIM", "wide")])
def test_frame_analytics_settings_are_attributes(name, kind):
    x, y = pictures(kind)
    values = []
    for load in (original, _shim):
        module = load("frame_analytics", name)(dtype=torch.float32)
        found = [module.data_range, module.win_size, module.K, module.dtype_]
        module.data_range, module.reduction, module.dtype_ = 3.0, "none", torch.float64
        values.append((found, module(x, y)))
    assert values[0][0] == values[1][0]
    assert _distance(values[0][1], values[1][1]) <= 1e-9


@pytest.mark.parametrize(("name", "kind"), [("SSIM", "small"), ("MS_SSIM", "wide")])
def test_pytorch_msssim_modules_have_their_window_to_read_and_to_set(name, kind):
    x, y = pictures(kind)
    modules = [load("pytorch_msssim", name)(data_range=1.0) for load in (original, _shim)]
    assert modules[0].win.shape == modules[1].win.shape
    assert _distance(modules[1].win, modules[0].win) <= 1e-7
    before = modules[1](x, y)
    for module in modules:
        module.win = torch.full((3, 1, 1, 11), 1 / 11, dtype=torch.float64)
    assert _distance(modules[0](x, y), modules[1](x, y)) <= 1e-9
    assert _distance(modules[1](x, y), before) > 1e-3


# ---- the Metric classes of torchmetrics ----


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("StructuralSimilarityIndexMeasure", "small", {"data_range": 1.0}),
        ("StructuralSimilarityIndexMeasure", "small", {"reduction": "sum", "sigma": 1.0}),
        ("StructuralSimilarityIndexMeasure", "small", {"reduction": "none"}),
        ("StructuralSimilarityIndexMeasure", "small", {"return_full_image": True}),
        ("StructuralSimilarityIndexMeasure", "small", {"return_contrast_sensitivity": True}),
        ("MultiScaleStructuralSimilarityIndexMeasure", "wide", {"data_range": 1.0}),
        ("MultiScaleStructuralSimilarityIndexMeasure", "wide", {"reduction": None}),
        ("MultiScaleStructuralSimilarityIndexMeasure", "wide", {"normalize": "simple"}),
    ],
)
def test_metric_classes(name, kind, settings):
    x, y = pictures(kind)
    metrics = [original("torchmetrics", name)(**settings)]
    metrics.append(getattr(shim("torchmetrics"), name)(**settings))
    values = []
    for metric in metrics:
        first = metric(x, y)
        metric.update(x[:1], y[:1])
        found = [first, metric.compute()]
        values.append([v for f in found for v in (f if isinstance(f, tuple) else (f,))])
    assert len(values[0]) == len(values[1])
    for a, b in zip(*values):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert _distance(a, b) <= (VALUE if a.dtype == torch.float32 else 1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "kind", "settings", "others"),
    [
        (
            "StructuralSimilarityIndexMeasure",
            "small",
            {"data_range": 1.0, "k1": 0.02},
            {"data_range": 2.0, "sigma": 1.0, "k1": 0.03, "k2": 0.05},
        ),
        (
            "StructuralSimilarityIndexMeasure",
            "small",
            {"return_full_image": True},
            {"gaussian_kernel": False, "kernel_size": 7, "data_range": 1.0},
        ),
        (
            "MultiScaleStructuralSimilarityIndexMeasure",
            "wide",
            {"reduction": "sum"},
            {"data_range": 2.0, "betas": BETAS, "normalize": "simple", "sigma": 1.0},
        ),
    ],
)
def test_metric_classes_have_their_settings_to_read_and_to_set(name, kind, settings, others):
    x, y = pictures(kind)
    theirs, ours = original("torchmetrics", name), getattr(shim("torchmetrics"), name)
    made = [function(**settings) for function in (theirs, ours)]
    names = [each for each in inspect.signature(theirs).parameters if each != "kwargs"]
    assert {*others} < {*names}
    for each in names:
        assert getattr(made[1], each) == getattr(made[0], each)
    before = [metric(x, y) for metric in made]
    values = []
    for metric in made:
        metric.reset()
        for each, value in others.items():
            setattr(metric, each, value)
        values.append(metric(x, y))
    if isinstance(values[0], tuple):
        before, values = (next(zip(*pairs)) for pairs in (before, values))
    assert _distance(*values) <= VALUE
    assert _distance(before[0], values[0]) > 1e-3


@pytest.mark.parametrize("settings", [{"betas": [0.5]}, {"betas": (1,)}, {"normalize": "no"}])
def test_a_metric_class_checks_what_it_is_made_with(settings):
    for load in (_shim, original):
        made = load("torchmetrics", "MultiScaleStructuralSimilarityIndexMeasure")
        with pytest.raises(ValueError, match=next(iter(settings))):
            made(**settings)


# ---- install ----


@pytest.fixture
def clean():
    modules, finders = dict(sys.modules), list(sys.meta_path)
    yield
    for library in compat.LIBRARIES:
        if library in compat._installed:
            compat.uninstall(library)
    assert sys.meta_path == finders
    for name, module in modules.items():
        assert sys.modules.get(name) is module


def test_install_pytorch_msssim(clean):
    original("pytorch_msssim", "ssim")  # its modules are there, and must not be found
    with compat.install("pytorch_msssim"):
        import pytorch_msssim
        from pytorch_msssim import MS_SSIM, ssim

        assert ssim is shim("pytorch_msssim").ssim
        assert MS_SSIM is shim("pytorch_msssim").MS_SSIM
        with pytest.raises(
            NotImplementedError, match=r"pytorch_msssim\.gaussian_filter, only MS_S"
        ):
            _ = pytorch_msssim.gaussian_filter
        with pytest.raises(NotImplementedError, match="gaussian_filter"):
            from pytorch_msssim import gaussian_filter  # noqa: F401
        with pytest.raises(ImportError, match=r"the module pytorch_msssim\.other"):
            import pytorch_msssim.other
        with pytest.raises(ValueError, match="already"):
            compat.install("pytorch_msssim")
    with pytest.raises(ValueError, match="not installed"):
        compat.uninstall("pytorch_msssim")
    theirs = original("pytorch_msssim", "ssim")
    assert theirs is not shim("pytorch_msssim").ssim


@pytest.mark.parametrize("library", compat.LIBRARIES)
def test_install_offers_each_name_where_it_was(clean, library):
    if library == "torchmetrics":
        original(library, "StructuralSimilarityIndexMeasure")  # the classes need it
    compat.install(library)
    for target, names in shim(library).STANDS_FOR.items():
        module = importlib.import_module(target)
        for name in names:
            assert getattr(module, name) is getattr(shim(library), name)
        with pytest.raises(NotImplementedError, match="no_such_name"):
            _ = module.no_such_name
    compat.uninstall(library)
    assert library not in compat._installed
    for target in shim(library).STANDS_FOR:
        assert not isinstance(sys.modules.get(target), compat._StandIn)


@pytest.mark.parametrize("library", ["pytorch_msssim", "skimage"])
def test_a_stand_in_answers_what_is_asked_of_any_module(clean, library):
    target = next(iter(shim(library).STANDS_FOR))
    with compat.install(library):
        module = importlib.import_module(target)
        assert not hasattr(module, "no_such_name")
        assert getattr(module, "no_such_name", None) is None
        with pytest.raises(AttributeError, match="no_such_name, only") as caught:
            _ = module.no_such_name
        assert (caught.value.name, caught.value.obj) == ("no_such_name", module)
        with pytest.raises(ImportError, match="no_such_name, only"):
            exec(f"from {target} import no_such_name")
        assert importlib.util.find_spec(target) is module.__spec__
        assert module.__spec__.name == target
        names = {name: getattr(module, name) for name in module.__all__}
        assert importlib.reload(module) is module
        assert {name: getattr(module, name) for name in module.__all__} == names
        assert not hasattr(module, "no_such_name")


def test_install_leaves_the_rest_of_a_library(clean):
    original("torchmetrics", "structural_similarity_index_measure")
    with compat.install("torchmetrics"):
        import torchmetrics
        from torchmetrics.functional import structural_similarity_index_measure
        from torchmetrics.functional.image.ssim import structural_similarity_index_measure as same

        assert torchmetrics.MeanMetric()(torch.ones(1)) == 1
        assert structural_similarity_index_measure is same
        assert torchmetrics.image.StructuralSimilarityIndexMeasure.__module__.startswith(
            "ssim_fused"
        )
        with pytest.raises(NotImplementedError, match="_ssim_update"):
            from torchmetrics.functional.image.ssim import _ssim_update  # noqa: F401
    from torchmetrics.image import PeakSignalNoiseRatio

    assert torchmetrics.image is sys.modules["torchmetrics.image"]
    assert torchmetrics.image.PeakSignalNoiseRatio is PeakSignalNoiseRatio
    theirs = torchmetrics.functional.structural_similarity_index_measure
    assert theirs.__module__.startswith("torchmetrics")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "line"),
    [
        ("skimage", "from skimage.restoration import calibrate_denoiser"),
        ("skimage", "from skimage.metrics import peak_signal_noise_ratio"),
        ("torchmetrics", "from torchmetrics.image import PeakSignalNoiseRatio"),
        ("torchmetrics", "from torchmetrics.image.psnr import PeakSignalNoiseRatio"),
        ("kornia", "from kornia.losses import PSNRLoss"),
        ("monai", "from monai.metrics import DiceMetric"),
        ("monai", "from monai.losses.dice import DiceLoss"),
        ("frame_analytics", "from frame_analytics import psnr"),
    ],
)
def test_install_leaves_what_has_nothing_to_do_with_ssim(clean, library, line):
    if reason := originals.missing(library):
        pytest.skip(reason)
    inside, after = {}, {}
    with compat.install(library):
        exec(line, inside)
    exec(line, after)
    name = line.split()[-1]
    assert inside[name] is after[name]


def test_install_offers_modules_that_are_imported_meanwhile_to_the_original(clean):
    theirs = originals.load("skimage", "structural_similarity")
    with compat.install("skimage"):
        import skimage.metrics.set_metrics as inside
    import skimage.metrics

    assert skimage.metrics.set_metrics is inside
    assert skimage.metrics.structural_similarity is theirs


@pytest.mark.parametrize(
    ("library", "name", "kind", "settings"),
    [
        ("pytorch_msssim", "SSIM", "small", {"data_range": 1, "win_size": 7, "win_sigma": 1.0}),
        ("pytorch_msssim", "MS_SSIM", "wide", {"data_range": 1}),
        ("piq", "SSIMLoss", "small", {"kernel_size": 7}),
        ("kornia", "SSIMLoss", "small", {"window_size": 7}),
        ("frame_analytics", "MSSSIM", "wide", {}),
    ],
)
def test_a_module_of_the_original_is_unpickled_under_install(clean, library, name, kind, settings):
    module = original(library, name)(**settings)
    pickled = pickle.dumps(module)
    with compat.install(library):
        found = pickle.loads(pickled)
    assert isinstance(found, _shim(library, name))
    assert _distance(found(*pictures(kind)), module(*pictures(kind))) <= 1e-5


def test_install_unknown():
    with pytest.raises(ValueError, match=r"one of frame_analytics, .*got 'lpips'"):
        ssim_fused.compat.install("lpips")
    with pytest.raises(ValueError, match="library must be one of"):
        ssim_fused.compat.uninstall("lpips")


def test_install_without_the_library(clean, monkeypatch):
    """A stand-in serves where the library itself is not there."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("monai", "piq")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for library, target in (("monai", "monai.losses"), ("piq", "piq")):
        with compat.install(library):
            module = importlib.import_module(target)
            assert module.SSIMLoss is shim(library).SSIMLoss
        assert target not in sys.modules
    monkeypatch.undo()


def test_stand_ins_import_nothing_but_torch():
    """In a process of its own: no peer, and numpy only for scikit-image's."""
    import subprocess

    names = [name for name in compat.LIBRARIES if name != "skimage"]
    code = (
        "import importlib, sys\n"
        "class Refuse:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name in {compat.LIBRARIES!r}: raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse)\n"
        f"for name in {names!r}: importlib.import_module('ssim_fused.compat.' + name)\n"
        "import ssim_fused.compat.skimage\n"
        "try: ssim_fused.compat.torchmetrics.StructuralSimilarityIndexMeasure\n"
        "except ImportError as error: print(error)\n"
        "try: import ssim_fused.metrics\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("needs torchmetrics: pip install torchmetrics") == 2


def test_versions_are_those_that_are_compared():
    shims = {library: originals.shim(library) for library in originals.PINNED}
    said = {name: shim.__version__ for name, shim in shims.items() if hasattr(shim, "__version__")}
    assert said
    assert said == {name: originals.PINNED[name][1] for name in said}
