"""A pytest plugin: the fixture ``assert_images_similar``, which leaves a picture of what differs.

It is loaded in every test run where ssim_fused is installed, so it imports next to nothing itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

import pytest

_MOST_BYTES = 120  # of a name; some file systems take 143 and no more


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--image-diffs DIR``."""
    parser.getgroup("ssim_fused").addoption(
        "--image-diffs",
        default="image-diffs",
        metavar="DIR",
        help="where assert_images_similar leaves pictures of what differs (image-diffs)",
    )


@pytest.fixture
def assert_images_similar(request: pytest.FixtureRequest) -> Callable[..., float]:
    """A function that fails a test whose picture is not what is expected; it returns the SSIM.

    ``assert_images_similar(actual, expected, at_least=0.98, data_range=None, padding="same")``:
    pictures are paths, Pillow's, or what ``numpy.asarray`` takes, (H, W) or (H, W, C).
    ``data_range`` is 255, 65535 or 1 by their type, unless it is given. Where the SSIM is too low,
    both pictures and the SSIM map lie side by side in a PNG in ``--image-diffs``, named after the
    test.
    """
    folder = request.config.rootpath / request.config.getoption("image_diffs")
    name = _file_name(request.node.nodeid)
    taken = 0

    def check(
        actual: Any,
        expected: Any,
        at_least: float = 0.98,
        *,
        data_range: float | None = None,
        padding: str = "same",
    ) -> float:
        __tracebackhide__ = True
        from ssim_fused.evaluation.compare import Settings, compare
        from ssim_fused.evaluation.drawing import save_difference
        from ssim_fused.evaluation.pictures import picture_of

        nonlocal taken
        settings = Settings(data_range, padding).checked()
        if at_least > 1:
            raise ValueError(f"at_least must be at most 1, as SSIM is, got {at_least}")
        failure = None
        try:
            first, second = picture_of("actual", actual), picture_of("expected", expected)
            found = compare(first, second, settings)
        except ValueError as error:
            failure = f"images cannot be compared: {error}"
        if failure is not None:  # not inside except, whose error would be shown, too
            pytest.fail(failure)
        if found["ssim"] >= at_least:
            return found["ssim"]
        path = folder / (f"{name}-{taken}.png" if taken else f"{name}.png")
        taken += 1
        save_difference(path, first, second, found["data_range"], padding)
        pytest.fail(f"images differ: SSIM {found['ssim']:.6f} is below {at_least}; see {path}")

    return check


def _file_name(test: str) -> str:
    """A test's name as far as files may have it, and a hash, as others may come to the same."""
    encoded = test.encode(errors="backslashreplace")
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    readable = re.sub(r"[^\w.=-]+", "_", test).strip("_").encode(errors="replace")
    return f"{readable[:_MOST_BYTES].decode(errors='ignore')}-{digest}"
