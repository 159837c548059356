"""The luma of red, green and blue: one number a pixel, as it looks in grey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# weights of red, green and blue (ITU-R BT.601 and BT.709); what is added, in data ranges. "matlab"
# is MATLAB's rgb2ycbcr: BT.601 from 16/255 to 235/255 of the range.
_WEIGHTS = {
    "bt601": ((0.299, 0.587, 0.114), 0.0),
    "bt709": ((0.2126, 0.7152, 0.0722), 0.0),
    "matlab": ((65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255),
}
LUMAS = tuple(_WEIGHTS)


def luma_of(colours: Sequence[Any], kind: str, data_range: float) -> Any:
    """Luma of red, green and blue, tensors or arrays of floating-point numbers, in their units."""
    weights, offset = _WEIGHTS[kind]
    red, green, blue = (weight * colour for weight, colour in zip(weights, colours))
    return red + green + blue + offset * data_range
