"""Checked reading of a message's fields: each gives what the contract says, or raises a one-line `WireError`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arrays import Float32
from .camera import Intrinsics
from .frames import Side
from .messages import WireError

MAX_NAME = 64  # characters of a camera or a stage
MAX_TEXT = 400  # characters of the status message, engine and model


def get(m: dict[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    """A value of this type; nothing else counts, None least of all."""
    value = m.get(key)
    if not isinstance(value, kind):
        what = "missing" if value is None else type(value).__name__
        raise WireError(f"{key} is {what}, expected {kind.__name__ if isinstance(kind, type) else kind[0].__name__}")
    return value


def whole(m: dict[str, Any], key: str, low: int = 0) -> int:
    """A whole number from low on, of 63 bits."""
    value = m.get(key)
    if type(value) is not int or not low <= value < 1 << 63:
        raise WireError(f"{key} is {short(value)}, expected a whole number from {low}")
    return value


def number(m: dict[Any, Any], key: Any) -> float:
    """A finite number."""
    value: Any = m.get(key)  # a whole number counts: JavaScript packs 3.0 as 3
    if type(value) not in (int, float) or not math.isfinite(value):
        raise WireError(f"{short(key)} is {short(value)}, expected a finite number")
    return float(value)


def float_array(m: dict[str, Any], key: str, shape: tuple[int, ...]) -> Float32:
    """A read-only view of finite float32 of this shape; -1 is any length."""
    data = get(m, key, bytes)
    row = 4 * math.prod(n for n in shape if n > 0)
    if len(data) % row if -1 in shape else len(data) != row:
        expected = f"a multiple of {row} (float32 Vx3)" if -1 in shape else f"{row} (float32 {size_text(shape)})"
        raise WireError(f"{key} has {len(data)} bytes, expected {expected}")
    array = np.frombuffer(data, "<f4").reshape(shape)
    if not np.isfinite(array).all():
        raise WireError(f"{key} has a number that is not finite")
    return array


def intrinsics_of(m: dict[str, Any]) -> Intrinsics:
    """A camera's intrinsics: width and height, fx, fy, cx, cy px, and the five coefficients of distortion."""
    bent = get(m, "distortion", (list, tuple))
    if len(bent) != 5:
        raise WireError(f"distortion has {len(bent)} numbers, expected 5")
    k1, k2, p1, p2, k3 = (number(dict(enumerate(bent)), i) for i in range(5))
    lens = {key: number(m, key) for key in ("fx", "fy", "cx", "cy")}
    try:
        return Intrinsics(whole(m, "width", 1), whole(m, "height", 1), **lens, distortion=(k1, k2, p1, p2, k3))
    except ValueError as error:
        raise WireError(one_line(str(error))) from None


def side_of(m: dict[str, Any]) -> Side:
    """The hand's side."""
    side = m.get("side")
    if side not in ("left", "right", "unknown"):
        raise WireError(f"side is {short(side)}, expected left, right or unknown")
    return side


def text_of(m: dict[str, Any], key: str) -> str:
    """One printable line of at most MAX_TEXT characters."""
    text: str = get(m, key, str)
    if len(text) > MAX_TEXT or not text.isprintable():
        raise WireError(f"{key} is {short(text)}, expected one printable line of at most {MAX_TEXT} characters")
    return text


def name_of(name: object, what: str) -> str:
    """A name of at most MAX_NAME printable characters without spaces."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or " " in name:
        raise WireError(f"{what} is {short(name)}, expected 1 to {MAX_NAME} printable characters without spaces")
    return name


def short(value: object) -> str:
    """A value as a message may quote it: 40 characters at most."""
    text = ascii(value) if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."


def size_text(shape: tuple[int | None, ...]) -> str:
    """A shape as text; None is any length."""
    return "x".join("V" if n is None else str(n) for n in shape) or "one number"


def one_line(text: str) -> str:
    """Text as one printable line of at most MAX_TEXT characters."""
    return printable(text)[:MAX_TEXT]


def printable(text: str) -> str:
    """Text as one printable line."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
