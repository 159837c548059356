"""ssim_fused.metrics: one value however images are split, and whoever sees them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tables import pictures

import ssim_fused

pytest.importorskip(
    "torchmetrics", reason="torchmetrics is not installed (pip install torchmetrics)"
)

from ssim_fused.metrics import MultiScaleStructuralSimilarity, StructuralSimilarity

SPLITS = [[8], [1] * 8, [2] * 4, [3, 5], [5, 1, 2]]


def images(size=(40, 44)):
    return pictures((8, 3, *size))


def updated(metric, x, y, split):
    for a, b in zip(x.split(split), y.split(split)):
        metric.update(a, b)
    return metric


@pytest.mark.parametrize(
    ("make", "value", "size"),
    [
        (StructuralSimilarity, ssim_fused.ssim, (40, 44)),
        (
            lambda: StructuralSimilarity(padding="reflect", window="uniform", window_size=7),
            lambda x, y: ssim_fused.ssim(x, y, padding="reflect", window="uniform", window_size=7),
            (40, 44),
        ),
        (MultiScaleStructuralSimilarity, ssim_fused.ms_ssim, (176, 180)),
        (
            lambda: MultiScaleStructuralSimilarity(betas=(0.5, 0.5), normalize="simple"),
            lambda x, y: ssim_fused.ms_ssim(x, y, betas=(0.5, 0.5), normalize="simple"),
            (40, 44),
        ),
    ],
)
def test_any_split_has_one_value(make, value, size):
    x, y = images(size)
    values = [updated(make(), x, y, split).compute().item() for split in SPLITS]
    assert values == pytest.approx([values[0]] * len(SPLITS), abs=1e-14)
    assert values[0] == pytest.approx(value(x.double(), y.double()).item(), abs=1e-6)


def test_state_is_two_numbers_and_a_mark_of_the_settings():
    metric = StructuralSimilarity()
    x, y = images()
    for _ in range(5):
        metric.update(x, y)
    state = metric.metric_state
    assert set(state) == {"loss", "images", "mark"}
    assert all(state[name].shape == () for name in ("loss", "images"))
    assert all(state[name].dtype == torch.float64 for name in ("loss", "images"))
    assert (state["mark"].shape, state["mark"].dtype) == ((16,), torch.uint8)
    assert state["images"] == 40
    metric.reset()
    assert metric.images == 0


@pytest.mark.parametrize("make", [StructuralSimilarity, MultiScaleStructuralSimilarity])
@pytest.mark.parametrize(
    "convert",
    [
        lambda metric: metric.to(torch.float16),
        lambda metric: torch.nn.ModuleList([metric]).to("cpu", torch.bfloat16)[0],
        lambda metric: metric.set_dtype(torch.float16),
        lambda metric: metric.half(),
    ],
)
def test_state_keeps_its_digits_in_a_model_of_another_dtype(make, convert):
    metric = updated(make(), *images((176, 180)), 8)
    metric.images += 70_000
    metric.loss += 29_400
    value = 1 - metric.loss / metric.images
    metric = convert(metric)
    assert (metric.images, metric.mark.dtype) == (70_008, torch.uint8)
    assert torch.equal(metric.compute(), value)
    assert convert(metric).compute().dtype == torch.float64  # what is kept of it, too
    metric.reset()
    assert metric.loss.dtype == metric.images.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [StructuralSimilarity, MultiScaleStructuralSimilarity])
def test_losses_of_half_images_are_not_rounded(make, dtype):
    x, y = (image[:2].to(dtype) for image in images((176, 180)))
    value, true = (
        updated(make(), *pair, 1).compute().item() for pair in ((x, y), (x.float(), y.float()))
    )
    assert value == pytest.approx(true, abs=1e-9)


def test_state_moves_to_another_device():
    metric = StructuralSimilarity().to("meta", torch.float16)
    assert {state.device.type for state in metric.metric_state.values()} == {"meta"}
    assert (metric.device.type, metric.images.dtype) == ("meta", torch.float64)


def test_forward_gives_the_batch_and_adds_it():
    x, y = images()
    metric = StructuralSimilarity(data_range=1.0)
    first, second = metric(x[:2], y[:2]), metric(x[2:], y[2:])
    assert first == pytest.approx(ssim_fused.ssim(x[:2], y[:2]).item(), abs=1e-6)
    assert metric.compute() == pytest.approx((2 * first + 6 * second).item() / 8, abs=1e-12)


def test_forward_has_a_gradient():
    x, y = images()
    x.requires_grad_()
    StructuralSimilarity()(x, y).backward()
    found, x.grad = x.grad, None
    ssim_fused.ssim(x, y).backward()
    assert torch.allclose(found, x.grad, rtol=1e-4, atol=1e-9)


def test_single_images_of_any_size_count_once():
    metric = StructuralSimilarity()
    pairs = [[image[0] for image in pictures((1, 3, *size))] for size in ((20, 30), (61, 17))]
    for x, y in pairs:
        metric.update(x, y)
    expected = sum(ssim_fused.ssim(x, y).item() for x, y in pairs) / 2
    assert metric.compute() == pytest.approx(expected, abs=1e-6)


def test_masked_images():
    x, y = images()
    mask = torch.ones(8, 1, 40, 44, dtype=torch.bool)
    mask[:, :, 20:] = False
    metric = StructuralSimilarity(mask_threshold=0.9)
    for a, b, m in zip(x.split(3), y.split(3), mask.split(3)):
        metric.update(a, b, mask=m)
    expected = ssim_fused.ssim(x, y, mask=mask, mask_threshold=0.9, reduction="image").mean()
    assert metric.compute() == pytest.approx(expected.item(), abs=1e-6)


def test_bytes_have_their_range():
    x, y = ((255 * image.clamp(0, 1)).byte() for image in images())
    metric = StructuralSimilarity()
    metric.update(x, y)
    assert metric.compute() == pytest.approx(ssim_fused.ssim(x, y).item(), abs=1e-6)


def test_copies_and_pickles():
    x, y = images()
    metric = updated(StructuralSimilarity(sigma=2.0), x, y, [4, 4])
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        other.update(x, y)
        assert other.compute() == pytest.approx(metric.compute().item(), abs=1e-14)
    assert metric.images == 8


def test_beside_other_metrics():
    from torchmetrics import MeanSquaredError, MetricCollection

    metrics = MetricCollection([StructuralSimilarity(), MeanSquaredError()])
    assert set(metrics(*images())) == {"StructuralSimilarity", "MeanSquaredError"}


def test_a_collection_by_the_names_of_other_metrics():
    from torchmetrics import MeanSquaredError, MetricCollection

    x, y = images()
    mask = torch.ones(8, 1, 40, 44, dtype=torch.bool)
    mask[:, :, 20:] = False
    metrics = MetricCollection([StructuralSimilarity(), MeanSquaredError()])
    expected = metrics(x, y)
    metrics.reset()
    assert metrics(preds=x, target=y) == expected
    metrics.reset()
    metrics.update(preds=x, target=y, mask=mask)
    alone = StructuralSimilarity()
    alone.update(input=x, target=y, mask=mask)
    assert metrics.compute()["StructuralSimilarity"] == alone.compute()


@pytest.mark.parametrize("make", [StructuralSimilarity, MultiScaleStructuralSimilarity])
def test_plots(make):
    pytest.importorskip("matplotlib").use("agg")
    x, y = images((176, 180))
    metric = make()
    values = [metric(x[:2], y[:2]), metric(x[2:], y[2:])]
    for given in ((), (values,)):
        _, axes = metric.plot(*given)
        assert axes.has_data()


def test_a_collection_merges_equal_settings_alone():
    """Its first batch of equal images has a loss of 0, whatever the settings."""
    from torchmetrics import MetricCollection

    def make():
        return {
            "ssim": StructuralSimilarity(),
            "same": StructuralSimilarity(),
            "ms_ssim": MultiScaleStructuralSimilarity(),
            "uniform": StructuralSimilarity(window="uniform"),
            "taps": StructuralSimilarity(window=torch.tensor([0.25, 0.5, 0.25])),
        }

    x, y = images((176, 180))
    metrics, alone = MetricCollection(make()), make()
    for batch in ((x, x), (x, y)):
        metrics.update(*batch)
        for metric in alone.values():
            metric.update(*batch)
    assert metrics.compute() == {name: metric.compute() for name, metric in alone.items()}
    assert sorted(map(sorted, metrics.compute_groups.values())) == [
        ["ms_ssim"],
        ["same", "ssim"],
        ["taps"],
        ["uniform"],
    ]


def test_a_state_without_a_mark_is_loaded():
    x, y = images()
    metric, other = StructuralSimilarity(), StructuralSimilarity()
    for each in (metric, other):
        each.persistent(True)
    metric.update(x, y)
    state = metric.state_dict()
    del state["mark"]
    other.load_state_dict(state, strict=False)
    other.update(x, x)
    metric.update(x, x)
    assert other.compute() == metric.compute()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: StructuralSimilarity(window_size=8), ValueError, "window_size must be odd"),
        (lambda: StructuralSimilarity(padding="zeros"), ValueError, "padding must be one of"),
        (lambda: StructuralSimilarity(reduction="sum"), TypeError, "not a setting of a metric"),
        (lambda: StructuralSimilarity(sigmas=2), TypeError, "sigmas"),
        (lambda: MultiScaleStructuralSimilarity(betas=()), TypeError, "betas"),
        (lambda: MultiScaleStructuralSimilarity(pooling="none"), ValueError, "pooling"),
        (lambda: StructuralSimilarity(data_range=-1.0), ValueError, "data_range.*-1.0"),
    ],
)
def test_bad_settings(make, error, message):
    with pytest.raises(error, match=message):
        make()


def _of_rank(rank, folder):
    """One process of two: its own images, three and five; the value of all."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    x, y = images((176, 180))
    mine = slice(0, 3) if rank == 0 else slice(3, 8)
    found = []
    for metric in (StructuralSimilarity(), MultiScaleStructuralSimilarity()):
        updated(metric, x[mine], y[mine], 2)
        found.append(metric.compute())
    torch.save(torch.stack(found), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_value_of_one(tmp_path):
    torch.multiprocessing.spawn(_of_rank, (str(tmp_path),), nprocs=2)
    x, y = images((176, 180))
    alone = [
        updated(metric, x, y, 8).compute().item()
        for metric in (StructuralSimilarity(), MultiScaleStructuralSimilarity())
    ]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").tolist() == pytest.approx(alone, abs=1e-14)


def test_a_setting_that_a_metric_lacks_is_named():
    with pytest.raises(TypeError, match=r"StructuralSimilarity has no argument 'kernel_size'.*"):
        StructuralSimilarity(kernel_size=7)
    with pytest.raises(TypeError, match=r"MultiScale.* 'mask_threshold'"):
        MultiScaleStructuralSimilarity(mask_threshold=0.5)
    with pytest.raises(TypeError, match="mask_threshold"):
        StructuralSimilarity(mask_threshold="a")
    StructuralSimilarity(term="luminance", mask_threshold=0.2, sync_on_compute=False)


@pytest.mark.parametrize("metric", [StructuralSimilarity, MultiScaleStructuralSimilarity])
def test_what_is_no_pair_of_images_is_refused(metric):
    x = torch.rand(1, 1, 180, 180)
    with pytest.raises(TypeError, match=r"input must be a torch.Tensor, got str"):
        metric().update("a", x)
    for other in (torch.bfloat16, torch.float32):
        with pytest.raises(TypeError, match=r"must have one dtype, got torch.float16 and"):
            metric().update(x.half(), x.to(other))
