"""ssim_fused.explain says which code computes a call, and what it says is so."""

from __future__ import annotations

import pytest
import torch

import ssim_fused
from ssim_fused import _paths, reference

X = torch.rand(2, 3, 20, 24)
MASK = X[:, :1] > 0.3
native = pytest.mark.skipif(
    _paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}"
)
# images, settings, what is said of a CPU, and of CUDA where its library is there
CASES = {
    "plain": (X, {}, "native", "native"),
    "bfloat16": (X.bfloat16(), {}, "native", "native"),
    "border": (X, {"padding": "reflect"}, 'border "reflect"', "native"),
    "window 7 in half precision": (
        X.half(),
        {"window_size": 7},
        "float16, converted to float32",
        "native",
    ),
    "window 35": (X, {"window_size": 35, "padding": "same"}, "native", "at most 33 taps"),
    "mask": (X, {"mask": MASK}, "native", "native"),
    "volume": (X[:, :, None], {"padding": "same", "window_size": 15}, "native", "native"),
    "volume, window 17": (
        X[:, :, None],
        {"padding": "same", "window_size": 17},
        "native",
        "for volumes serve windows of at most 15 taps",
    ),
    "bytes": ((X * 255).byte(), {}, "native", "native"),
    "signal": (X[0], {"spatial_dims": 1}, "native", "native"),
}


@native
@pytest.mark.parametrize("name", CASES)
def test_words(name, monkeypatch):
    image, settings, on_cpu, on_cuda = CASES[name]
    said = ssim_fused.explain(image, **settings)
    assert on_cpu in said
    assert said.startswith(f"native, {torch.ops.ssim_fused.cpu_isa()}; ")
    monkeypatch.setattr(_paths, "cuda_reason", None)
    said = ssim_fused.explain(image, device="cuda", **settings)
    assert on_cuda in said
    assert said.startswith(("native, CUDA; ", "fallback (plain PyTorch): "))


@native
def test_a_gpu_that_is_too_old_is_named_before_anything_is_there(monkeypatch):
    monkeypatch.setattr(_paths, "cuda_reason", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(_paths, "gpu_reason", {3: "it is too old"}.get)
    assert ssim_fused.explain(X, device="cuda").startswith(
        "fallback (plain PyTorch): it is too old"
    )


@native
@pytest.mark.parametrize("name", CASES)
def test_what_is_called_native_does_not_touch_the_reference(name, monkeypatch):
    image, settings, _, _ = CASES[name]

    def refuse(*_):
        raise AssertionError("the reference was asked")

    monkeypatch.setattr(reference, "reduced_loss", refuse)
    monkeypatch.setattr(reference, "reduced_loss", refuse)
    ssim_fused.ssim_loss(image, image, **settings)
    monkeypatch.setattr(_paths, "cpu_reason", "it was taken away")
    with pytest.raises(AssertionError, match="asked"):
        ssim_fused.ssim_loss(image, image, **settings)
    assert "fallback (plain PyTorch): it was taken away" in ssim_fused.explain(image, **settings)


def test_what_else_is_said(monkeypatch):
    volume = X[:, :, None].expand(-1, -1, 12, -1, -1)
    two_passes = "gradients in two passes"
    assert (two_passes in ssim_fused.explain(volume)) == (_paths.cpu_reason is None)
    assert two_passes not in ssim_fused.explain(X)
    assert two_passes not in ssim_fused.explain((volume * 255).byte())  # a value alone
    monkeypatch.setattr(_paths, "cpu_reason", "it was taken away")
    for dtype in (torch.float32, torch.float64, torch.float16, torch.uint8):
        converts = dtype not in (torch.float32, torch.float64)
        assert ("converted to float32" in ssim_fused.explain((X * 9).to(dtype))) == converts
        assert two_passes not in ssim_fused.explain((volume * 9).to(dtype))


def test_other_devices_and_transforms():
    meta = X.to("meta")
    assert "no native code for device 'meta'" in ssim_fused.explain(meta)
    said = []

    def loss(x):
        said.append(ssim_fused.explain(x))
        return ssim_fused.ssim_loss(x, X)

    torch.func.jvp(loss, (X,), (X,))
    assert _paths.cpu_reason is not None or "forward-mode" in said[0]


@pytest.mark.parametrize("kind", ["cpu", "cuda", "meta"])
def test_a_device_has_many_names(kind, monkeypatch):
    monkeypatch.setattr(_paths, "cuda_reason", None)
    expected = ssim_fused.explain(X, device=kind)
    assert (f"no native code for device '{kind}'" in expected) == (kind == "meta")
    for device in (f"{kind}:0", torch.device(kind), torch.device(kind, 0)):
        assert ssim_fused.explain(X, device=device) == expected


@pytest.mark.parametrize("device", ["gpu", "cuda:first", "", 1.5])
def test_a_device_that_there_is_not_is_named(device):
    with pytest.raises(ValueError, match=f"device must be .*, got {device!r}"):
        ssim_fused.explain(X, device=device)


def test_wrong_calls_raise_what_the_loss_raises():
    with pytest.raises(ValueError, match="window_size"):
        ssim_fused.explain(X, window_size=4)
    with pytest.raises(ValueError, match="mask"):
        ssim_fused.explain(X, mask=MASK[..., 1:])
    with pytest.raises(TypeError, match="explain has no argument 'betas'; it has window_size, "):
        ssim_fused.explain(X, betas=(0.5, 0.5))
