"""The printed target: a ChArUco board, its geometry, and a PDF to print it in true scale.

Board frame: origin in the middle of the board, x to the right and y down as printed, z away from the viewer, metres.
The A4 and A3 boards use different markers, so that one cannot be taken for the other. Squares are as large as the paper
allows: a marker needs 3 px a bit, and at 0.65 m only big ones have that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..hand.arrays import Array
from ..hand.extras import to_get

PAPER_MM = {"a4": (297.0, 210.0), "a3": (420.0, 297.0)}  # landscape
MM_TO_POINT = 72 / 25.4
RULER_MM = 100
MARGIN_MM, FOOT_MM = 10, 14  # beside the board; above and below it, where the ruler and the note are
LETTER = 0.52  # Helvetica's mean width, of its size
FORM = "charuco:COLUMNSxROWSxSQUARE_MMxMARKER_MM[:DICTIONARY][:inverted]"


class TargetError(Exception):
    """The target is not known or does not fit the paper; one line."""


@dataclass(frozen=True)
class Target:
    """A ChArUco board: columns x rows squares; inverted if white is printed black."""

    name: str
    columns: int
    rows: int
    square_m: float
    marker_m: float
    dictionary: str = "DICT_4X4_50"
    first_id: int = 0
    inverted: bool = False

    @property
    def marker_count(self) -> int:
        return self.columns * self.rows // 2

    @property
    def size_m(self) -> tuple[float, float]:
        return self.columns * self.square_m, self.rows * self.square_m

    def corners_m(self) -> Array:
        """The inner corners (N, 3) m in the board frame, row by row, as OpenCV numbers them."""
        x = (np.arange(1, self.columns) - self.columns / 2) * self.square_m
        y = (np.arange(1, self.rows) - self.rows / 2) * self.square_m
        return np.stack([*np.meshgrid(x, y), np.zeros((self.rows - 1, self.columns - 1))], -1).reshape(-1, 3)


TARGETS = {
    "a4": Target("a4", 7, 5, 0.036, 0.027),
    "a3": Target("a3", 7, 5, 0.052, 0.039, first_id=17),
}


def find_target(text: str) -> Target:
    """A target by its name, a4 or a3, or a board of one's own as `FORM` says. Raises TargetError."""
    if text in TARGETS:
        return TARGETS[text]
    kind, *parts = text.split(":")
    found = re.fullmatch(r"(\d+)x(\d+)x([\d.]+)x([\d.]+)", parts[0]) if kind == "charuco" and parts else None
    names = [part for part in parts[1:] if part != "inverted"]
    if found is None or len(names) > 1:
        raise TargetError(f"target {text!r}: possible are {', '.join(TARGETS)} or {FORM}")
    inverted = "inverted" in parts[1:]
    try:
        square_m, marker_m = float(found[3]) / 1e3, float(found[4]) / 1e3
    except ValueError:
        raise TargetError(f"target {text!r}: {found[3]} and {found[4]} must be sizes in mm") from None
    columns, rows = int(found[1]), int(found[2])
    if not (min(columns, rows) >= 3 and 0 < marker_m < square_m):
        raise TargetError(f"target {text!r}: needs at least 3x3 squares, and a marker smaller than its square")
    dictionary = names[0] if names else "DICT_4X4_50"
    return Target(text, columns, rows, square_m, marker_m, dictionary, inverted=inverted)


def charuco_board(target: Target) -> Any:
    """OpenCV's board. Raises TargetError if OpenCV is missing or does not know the dictionary."""
    cv2 = import_opencv()
    number = getattr(cv2.aruco, target.dictionary, None)
    if number is None or not target.dictionary.startswith("DICT_"):
        raise TargetError(f"target {target.name}: OpenCV knows no dictionary {target.dictionary}")
    ids = np.arange(target.first_id, target.first_id + target.marker_count)
    markers = cv2.aruco.getPredefinedDictionary(number)
    if ids[-1] >= len(markers.bytesList):
        raise TargetError(f"target {target.name}: needs {len(ids)} markers, {target.dictionary} has fewer")
    return cv2.aruco.CharucoBoard((target.columns, target.rows), target.square_m, target.marker_m, markers, ids)


def import_opencv() -> Any:
    """The OpenCV module, or one line that says how to get it."""
    try:
        import cv2

        cv2.aruco.CharucoDetector  # noqa: B018  # in OpenCV's main modules since 4.7
    except (ImportError, AttributeError):
        raise TargetError(f"the board needs OpenCV 4.7 or newer: {to_get('calibration')}") from None
    return cv2


def black_rectangles_mm(target: Target) -> Array:
    """What is printed black: rectangles (N, 4) x, y, width, height in mm from the board's top left, y down."""
    cv2 = import_opencv()
    board = charuco_board(target)
    square, marker = target.square_m * 1e3, target.marker_m * 1e3
    found = [
        (column * square, row * square, square, square)
        for row in range(target.rows)
        for column in range(target.columns)
        if (row + column) % 2 == 0
    ]
    markers = board.getDictionary()
    bits = int(markers.markerSize) + 2  # with the black border
    for i, place in enumerate(board.getObjPoints()):
        image = cv2.aruco.generateImageMarker(markers, target.first_id + i, bits)
        left, top = np.asarray(place)[:, :2].min(0) * 1e3
        for row, column in np.argwhere(image == 0):
            cell = marker / bits
            found.append((left + column * cell, top + row * cell, cell, cell))
    return np.array(found)


def print_pdf(target: Target, paper: str) -> bytes:
    """One page with the board in its middle and a ruler below it: landscape, or upright if it fits only so. Raises
    TargetError."""
    board_w, board_h = target.size_m[0] * 1e3, target.size_m[1] * 1e3
    ways = [PAPER_MM[paper], PAPER_MM[paper][::-1]]
    fitting = [(w, h) for w, h in ways if w - board_w >= 2 * MARGIN_MM and h - board_h >= 2 * FOOT_MM]
    if not fitting:
        raise TargetError(f"target {target.name}: {board_w:g}x{board_h:g} mm do not fit {paper.upper()} with a margin")
    width_mm, height_mm = fitting[0]
    left, top = (width_mm - board_w) / 2, (height_mm - board_h) / 2
    if target.inverted:
        raise TargetError(f"target {target.name}: inverted boards are read, but not printed")
    lines = [f"{MM_TO_POINT:.9f} 0 0 {-MM_TO_POINT:.9f} 0 {height_mm * MM_TO_POINT:.6f} cm"]  # mm, y down
    lines += ["0 g", *(_rectangle(left + x, top + y, w, h) for x, y, w, h in black_rectangles_mm(target))]
    ruler = height_mm - top + 4
    lines.append(_rectangle(left, ruler, RULER_MM, 0.3))
    lines += [_rectangle(left + x - 0.1, ruler, 0.2, 3 if x % 10 == 0 else 1.5) for x in range(0, RULER_MM + 1, 5)]
    note = (
        f"This ruler is {RULER_MM} mm. Print at 100 % (no fit to page), measure it, glue the sheet on a flat plate. "
        f"{target.columns}x{target.rows} squares of {target.square_m * 1e3:g} mm, {target.dictionary}."
    )
    size = min(3.0, (width_mm - 2 * MARGIN_MM) / (LETTER * len(note)))
    place = f"{MARGIN_MM} {ruler + 6.5:.3f}"
    lines.append(f"BT /F1 {size:.2f} Tf 1 0 0 -1 {place} Tm ({note.translate(_ESCAPES)}) Tj ET")
    content = "\n".join(lines).encode("ascii")
    box = f"[0 0 {width_mm * MM_TO_POINT:.4f} {height_mm * MM_TO_POINT:.4f}]"
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R /ViewerPreferences << /PrintScaling /None >> >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            f"<< /Type /Page /Parent 2 0 R /MediaBox {box} /Contents 4 0 R "
            "/Resources << /Font << /F1 5 0 R >> >> >>".encode("ascii"),
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        ]
    )


_ESCAPES = str.maketrans({"(": r"\(", ")": r"\)", "\\": r"\\"})


def _rectangle(x: float, y: float, w: float, h: float) -> str:
    return f"{x:.4f} {y:.4f} {w:.4f} {h:.4f} re f"


def _pdf(objects: list[bytes]) -> bytes:
    """Objects 1, 2, ... as a file with its table of places; the first is the catalogue."""
    data, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    return data + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
