"""SSIMLoss and CVAELoss against the code that they replace."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
import traceback
from pathlib import Path

import pytest
import torch
from tables import pictures, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

import ssim_fused
from benchmarks import article
from ssim_fused import _paths


def latent(n=5, size=16, scale=0.01, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, size, generator=generator) for _ in range(2)]


def one_channel(n=3, dtype=torch.float64):
    return pictures((n, 1, 40, 44), dtype)


@pytest.mark.parametrize("arguments", [(), (7, 1.0), (11, 2.5)])
def test_ssim_loss_equals_the_articles(arguments):
    x, y = one_channel()
    # the article's 1e-12 in the denominator (about 1e-3 here) is a difference of 1e-9
    ours, theirs = ssim_fused.SSIMLoss(*arguments), article.SSIMLoss(*arguments)
    torch.testing.assert_close(ours(x, y), theirs(x, y), rtol=1e-7, atol=0)
    torch.testing.assert_close(
        ours(x, y, as_loss=False), theirs(x, y, as_loss=False), atol=1e-7, rtol=0
    )


def test_gradient_equals_the_articles():
    x, y = one_channel()
    x.requires_grad_()
    (ours,) = torch.autograd.grad(ssim_fused.SSIMLoss()(x, y), x)
    (theirs,) = torch.autograd.grad(article.SSIMLoss()(x, y), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-10)


def test_label_channels_behind_the_image_are_left_out():
    x, y = one_channel()
    labelled = torch.cat((y, torch.rand(3, 10, 40, 44, dtype=y.dtype)), dim=1)
    assert torch.equal(ssim_fused.SSIMLoss()(x, labelled), ssim_fused.SSIMLoss()(x, y))
    assert torch.equal(ssim_fused.SSIMLoss()(x[0], labelled[0]), ssim_fused.SSIMLoss()(x[0], y[0]))
    mu, logvar = latent(3)
    ours = ssim_fused.CVAELoss(return_terms=True)
    for found, expected in zip(ours(x, labelled, mu, logvar), ours(x, y, mu, logvar)):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("axes", "one", "more"),
    [(1, (1, 2, 64), (5, 2, 64)), (3, (2, 1, 20, 20), (2, 6, 20, 20))],
)
def test_of_signals_and_volumes_nothing_is_left_out(axes, one, more):
    with pytest.raises(ValueError, match=r"same shape, got \(.*\) and \("):
        ssim_fused.SSIMLoss(spatial_dims=axes)(torch.rand(one), torch.rand(more))
    x, y = one_channel()
    labelled = torch.cat((y, y), dim=1)
    loss = ssim_fused.SSIMLoss(spatial_dims=2)
    assert torch.equal(loss(x, labelled), loss(x, y))


def test_every_channel_is_compared():
    x, y = pictures((2, 3, 30, 30), torch.float64)
    loss = ssim_fused.SSIMLoss()
    each = torch.stack([loss(x[:, c : c + 1], y[:, c : c + 1]) for c in range(3)])
    torch.testing.assert_close(loss(x, y), each.mean(), rtol=1e-12, atol=0)


def test_black_against_black_costs_nothing():
    black = torch.zeros(1, 1, 20, 20)
    assert ssim_fused.SSIMLoss()(black, black.clone()).item() == 0.0
    assert article.SSIMLoss()(black, black.clone()).item() > 1e-5


def test_the_articles_printed_check():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 128, 128, generator=generator)
    mu, logvar = latent(5, 256)
    loss, mse, ssim, kl = ssim_fused.CVAELoss(return_terms=True)(0.8 * x, x, mu, logvar)
    assert loss.item() == pytest.approx(0.1054, abs=0.003)
    assert mse.item() == pytest.approx(0.040, abs=0.001)
    assert ssim.item() == pytest.approx(0.047, abs=0.001)
    # 256 latents of scale 0.01: 0.0192 expected, 0.0184 printed, 4 % of scatter
    assert kl.item() == pytest.approx(0.0192, abs=0.0016)
    assert loss.item() == pytest.approx((mse + ssim + kl).item(), rel=1e-6)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
@pytest.mark.parametrize("beta", [0, 1e-3, 1])
def test_cvae_loss_equals_the_articles(alpha, beta):
    x, y = one_channel()
    x.requires_grad_()
    mu, logvar = (t.double().requires_grad_() for t in latent(3, scale=1.0))
    ours = ssim_fused.MSE_SSIM_KL_Loss(alpha, beta)(x, y, mu, logvar)
    theirs = article.MSE_SSIM_KL_Loss(alpha, beta)(x, y, mu, logvar)
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=0)
    wanted = [x, mu, logvar] if beta else [x]
    for found, expected in zip(
        torch.autograd.grad(ours, wanted), torch.autograd.grad(theirs, wanted)
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


def test_a_term_of_weight_zero_is_not_computed(monkeypatch):
    x, y = one_channel()

    def fail(*arguments, **keywords):
        raise AssertionError("computed a term of weight 0")

    monkeypatch.setattr("ssim_fused._terms.to_request", fail)
    monkeypatch.setattr("ssim_fused.modules._kl_divergence", fail)
    mu, logvar = latent(3)
    loss = ssim_fused.CVAELoss(alpha=0, beta=0)(x, y, mu, logvar)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(x, y), rtol=1e-14, atol=0)
    with pytest.raises(AssertionError):
        ssim_fused.CVAELoss(alpha=1, beta=0)(x, y, mu, logvar)
    with pytest.raises(AssertionError):
        ssim_fused.CVAELoss(alpha=0, beta=1)(x, y, mu, logvar)


def test_terms_are_detached_and_add_up():
    x, y = one_channel()
    x.requires_grad_()
    mu, logvar = (t.double().requires_grad_() for t in latent(3, scale=1.0))
    loss, *terms = ssim_fused.CVAELoss(2.0, 0.5, return_terms=True)(x, y, mu, logvar)
    assert loss.requires_grad
    assert not any(term.requires_grad for term in terms)
    mse, ssim, kl = terms
    torch.testing.assert_close(loss.detach(), mse + 2 * ssim + 0.5 * kl)


def test_kl_keeps_its_digits_near_the_prior():
    scale = 1e-4
    mu, logvar = latent(4, scale=scale)
    true = -0.5 * (1 + logvar.double() - mu.double() ** 2 - logvar.double().exp()).sum(-1).mean()
    x, y = one_channel(dtype=torch.float32)
    kl = ssim_fused.CVAELoss(0, 1, return_terms=True)(x, y, mu, logvar)[3]
    assert kl.item() == pytest.approx(true.item(), rel=1e-3)
    naive = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(-1).mean()
    assert naive.item() != pytest.approx(true.item(), rel=1e-3)  # the usual form has lost them


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_of_half_precision_is_computed_in_float32(dtype):
    x, y = (image.to(dtype) for image in one_channel(4))
    generator = torch.Generator().manual_seed(3)
    mu, logvar = ((3e-3 * torch.randn(4, 64, generator=generator)).to(dtype) for _ in range(2))
    wanted = [t.double().requires_grad_() for t in (mu, logvar)]
    true = 0.5 * (wanted[0] ** 2 + torch.expm1(wanted[1]) - wanted[1]).sum(-1).mean()
    found = [t.requires_grad_() for t in (mu, logvar)]
    loss, *_, kl = ssim_fused.CVAELoss(0, 1, return_terms=True)(x, y, *found)
    assert {loss.dtype, kl.dtype} == {dtype}
    torch.testing.assert_close(kl, true.to(dtype))
    for gradient, expected in zip(
        torch.autograd.grad(loss, found), torch.autograd.grad(true, wanted)
    ):
        torch.testing.assert_close(gradient, expected.to(dtype), rtol=1e-2, atol=2**-24)


def test_kl_of_half_precision_is_weighted_before_it_is_rounded():
    x = one_channel(4, torch.float16)[0]
    mu, logvar = torch.full((4, 256), 30.0, dtype=torch.float16), torch.zeros(4, 256)
    for dtype in (torch.float16, torch.float32):
        loss = ssim_fused.CVAELoss(0, 1e-3)(x, x, mu, logvar.to(dtype))
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(0.5 * 256 * 900 * 1e-3, rel=1e-3)  # 115,200 unweighted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_under_autocast_is_computed_in_float32(dtype):
    x, y = (image.to(dtype) for image in one_channel(4))
    mu, logvar = (t.to(dtype).requires_grad_() for t in latent(4, scale=2**-6))
    with torch.autocast("cpu", dtype=dtype):
        loss, _, _, kl = ssim_fused.CVAELoss(0, 1, return_terms=True)(x, y, mu, logvar)
    assert {loss.dtype, kl.dtype} == {torch.float32}
    true = [t.detach().double().requires_grad_() for t in (mu, logvar)]
    true_kl = 0.5 * (true[0] ** 2 + torch.expm1(true[1]) - true[1]).sum(-1).mean()
    assert kl.item() == pytest.approx(true_kl.item(), rel=1e-5)
    found = torch.autograd.grad(loss, (mu, logvar))
    for a, b in zip(found, torch.autograd.grad(true_kl, true)):
        assert a.dtype == dtype
        assert relative_error(a, b) <= torch.finfo(dtype).eps / 2


def test_modules_copy_pickle_and_print():
    x, y = one_channel()
    mu, logvar = latent(3)
    ssim = ssim_fused.SSIMLoss(7, 1.0, data_range=2.0, padding="valid")
    cvae = ssim_fused.CVAELoss(0.5, 0.1, kernel_size=5, data_range=2.0)
    for clone in (copy.deepcopy(ssim), pickle.loads(pickle.dumps(ssim))):
        assert torch.equal(clone(x, y), ssim(x, y))
    for clone in (copy.deepcopy(cvae), pickle.loads(pickle.dumps(cvae))):
        assert torch.equal(clone(x, y, mu, logvar), cvae(x, y, mu, logvar))
    assert "kernel_size=7, sigma=1.0, data_range=2.0" in repr(ssim)
    assert "alpha=0.5, beta=0.1" in repr(cvae)
    assert not cvae.state_dict()


def test_reduction_of_the_module():
    x, y = one_channel()
    per_image = ssim_fused.SSIMLoss(reduction="image")(x, y)
    assert per_image.shape == (3,)
    torch.testing.assert_close(per_image.mean(), ssim_fused.SSIMLoss()(x, y), rtol=1e-12, atol=0)


@pytest.mark.skipif(_paths.cpu_reason is not None, reason=f"no native library: {_paths.cpu_reason}")
@pytest.mark.parametrize("as_loss", [True, False])
@pytest.mark.parametrize("needs_gradient", [True, False])
def test_the_way_of_a_call_is_the_documented_one(as_loss, needs_gradient):
    """CONTRIBUTING.md says which files a call goes through on its way to the operator."""
    package = Path(ssim_fused.__file__).parent
    ways = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "ssim_fused":
                files = (Path(frame.filename) for frame in traceback.extract_stack())
                names = [file.name for file in files if file.parent == package]
                ways.append([name for name, _ in itertools.groupby(names)])
            return function(*args, **(kwargs or {}))

    x, y = (image.float().requires_grad_(needs_gradient) for image in one_channel())
    with Watch():
        ssim_fused.SSIMLoss()(x, y, as_loss)
    between = [] if as_loss else ["_call.py"]
    assert ways == [["modules.py", "functional.py", *between, "_ops.py"]]
    contributing = Path(__file__).parents[1].joinpath("CONTRIBUTING.md").read_text(encoding="utf-8")
    documented = contributing.partition("## The way of a call")[2].partition("\n## ")[0]
    assert re.findall(r"ssim_fused/(\w+\.py) ", documented) == [*ways[0][:2], ways[0][-1]]
    assert "`ssim` has `compute_ssim` of `_call.py` between" in " ".join(documented.split())


def test_settings_may_be_set_later():
    x, y = pictures((2, 1, 20, 24))
    latent = torch.zeros(2, 3)
    for made, later, arguments in (
        (ssim_fused.SSIMLoss(data_range=2.0, window="uniform"), ssim_fused.SSIMLoss(), (x, y)),
        (
            ssim_fused.PhotometricLoss(data_range=2.0, window="uniform"),
            ssim_fused.PhotometricLoss(),
            (x, y),
        ),
        (
            ssim_fused.CVAELoss(kernel_size=7, data_range=2.0),
            ssim_fused.CVAELoss(),
            (x, y, latent, latent),
        ),
    ):
        assert made(*arguments) != later(*arguments)
        for name, value in made.settings().items():
            setattr(later, "kernel_size" if name == "window_size" else name, value)
        assert made(*arguments) == later(*arguments)
        assert repr(made) == repr(later)
