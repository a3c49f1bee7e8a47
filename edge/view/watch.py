"""A live view of the hands in the terminal: `edge-hand watch`, and `edge-hand run` on a terminal.

The picture is made of half blocks (▀), two square pixels a character, in 24-bit colour; no library is needed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import numpy as np

from ...hand.arrays import Array
from ...hand.frames import DepthFrame
from ...hand.skeleton import ANGLE_LIMITS_RAD, ANGLE_NAMES, FINGERS, IS_FLEXION
from ...hand.wire import HandJoints, JointsMessage, StatusMessage
from ..client import forbidden, subscribe
from ..publish import ADDRESS

Colour = tuple[int, int, int]
Segment = tuple[str, Colour]

FINGER_COLOURS: tuple[Colour, ...] = ((255, 107, 107), (255, 190, 70), (105, 219, 124), (77, 171, 247), (204, 120, 255))
PALM, TEXT, DIM, WARN, BACK = (206, 212, 218), (222, 226, 230), (134, 142, 150), (255, 169, 77), (15, 17, 23)
# Which of the 20 angles bend each finger.
CURL_ANGLES = [np.flatnonzero(IS_FLEXION & [name.startswith(finger) for name in ANGLE_NAMES]) for finger in FINGERS]
# (from, to, finger or -1 for the palm)
BONES = [
    *[(a, b, -1) for a, b in ((0, 1), (0, 5), (0, 17), (5, 9), (9, 13), (13, 17))],
    *[(4 * f + k, 4 * f + k + 1, f) for f in range(5) for k in (1, 2, 3)],
]
DRAW_S, LINE_S, HINT_S, STALE_S = 1 / 15, 1.0, 3.0, 1.0
SILENT_S = 3.0  # a daemon tells of itself once a second


def watch(
    address: str = ADDRESS, camera: str | None = None, frames: int | None = None, keys: Path | None = None
) -> None:
    """Show what a running `edge-hand run` publishes until Ctrl-C, or for so many joints messages.

    Without a camera the first one seen is shown. keys as in `subscribe`. Raises SubscribeError, KeysError and
    WireError, one line each.
    """
    topics = [f"joints.{camera}" if camera else "joints", "status"]  # of all: who else is there
    asked = camera is not None
    message: JointsMessage | None = None
    seen = 0
    started = last = told = time.monotonic()
    others: set[str] = set()
    hinted = False
    with subscribe(address, topics, timeout_s=0.25, keys=keys) as messages, Screen() as screen:
        try:
            while frames is None or seen < frames:
                try:
                    new = next(messages)
                except TimeoutError:
                    new = None
                now = time.monotonic()
                camera = camera or getattr(new, "camera", None)
                if new is not None and getattr(new, "camera", camera) != camera:
                    others.add(new.camera)  # type: ignore[union-attr]
                    if not asked:
                        screen.note = f"showing {camera}; also here: {', '.join(sorted(others))} (--camera NAME)"
                elif isinstance(new, JointsMessage):
                    message, last, seen = new, now, seen + 1
                    screen.show(message)
                    continue
                elif isinstance(new, StatusMessage):
                    screen.status, told = new, now
                if now - last > STALE_S and message is not None:  # an old hand is never shown as if it were there
                    state = screen.status.state if screen.status and now - told < SILENT_S else "silent"
                    note = f"{state}: no frame for {now - last:.0f} s" + (screen.note and f"; {screen.note}")
                    screen.show(replace(message, hands=()), note, count=0)
                elif now - started > HINT_S and message is None and not hinted:
                    what = f"of {camera} at {address}" if camera else f"at {address}"
                    why = f": {no}" if (no := forbidden(address)) else _why_silent(screen.status, others, keys)
                    screen.say(f"nothing {what}{why} (still waiting)")
                    hinted = True
        except KeyboardInterrupt:
            pass


def _why_silent(status: StatusMessage | None, others: set[str], keys: Path | None) -> str:
    if status is not None:
        return f" but its status, {status.state}"
    if others:
        return f"; there is {', '.join(sorted(others))}"
    if keys is not None:
        return " to hear with these keys: does it know them, does `edge-hand run` run there?"
    return ": start `edge-hand run`, or give --keys NAME.key_secret if it runs with --keys"


class Screen:
    """Owns the terminal while `with` lasts: alternate screen, no cursor, both given back on the way out.

    Where the output is no terminal, has no half blocks, or NO_COLOR is set, it prints one line a second instead.
    `show` may be called at any rate and draws 15 times a second; a terminal that does not read blocks it, so a loop
    that must not wait shows from a thread of its own. status, if given, is shown below the hands, and note under it.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.live = _draws(self.stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.status: StatusMessage | None = None
        self.note = ""
        self._size = (0, 0)
        self._due = 0.0
        self._count, self._since = 0, time.monotonic()
        self._fps: float | None = None  # not known in the first second

    def __enter__(self) -> Screen:
        if self.live:
            self._write("\x1b[?1049h\x1b[?25l\x1b[2J")
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            with suppress(OSError):  # the terminal was closed
                self._write("\x1b[0m\x1b[?25h\x1b[?1049l")

    def show(self, message: JointsMessage, note: str = "", frame: DepthFrame | None = None, *, count: int = 1) -> None:
        """Count a message (or so many that came since), and draw it if it is time to."""
        now = time.monotonic()
        self._count += count
        if now - self._since >= 1.0:
            self._fps, self._count, self._since = self._count / (now - self._since), 0, now
        if now < self._due:
            return
        self._due = now + (DRAW_S if self.live else LINE_S)
        note = note or self._status_text() or self.note
        if not self.live:
            self._write(summary(message, self._fps, note) + "\n")
            return
        size = shutil.get_terminal_size()
        clear = "\x1b[2J" if size != self._size else ""
        self._size = size
        picture = draw(message, size.columns, size.lines, frame=frame, fps=self._fps, note=note)
        self._write(f"\x1b[?2026h{clear}\x1b[H{picture}\x1b[?2026l")

    def say(self, text: str) -> None:
        """One line, at once."""
        self._write(f"\x1b[H\x1b[2J{text}" if self.live else f"{text}\n")

    def _status_text(self) -> str:
        s = self.status
        if s is None or s.state in ("tracked", "lost"):
            return ""
        return f"{s.state}: {s.message}" if s.message else s.state

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _draws(stream: TextIO) -> bool:
    """Whether it is a terminal, with an encoding that has what is drawn."""
    try:
        "▀█▏·".encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return stream.isatty()


def summary(message: JointsMessage, fps: float | None = None, note: str = "") -> str:
    """The message as one plain line; fps None is not known."""
    hands = [
        f"#{h.id} {h.side} {h.state} {h.score:.2f} age {h.age_ms:.0f} ms wrist {_millimetres(h.T_camera_wrist[:3, 3])}"
        for h in message.hands
    ]
    head = (
        f"{message.camera} seq {message.seq} {'' if fps is None else f'{fps:.1f} fps '}"
        f"latency {message.latency_ms:.1f} ms dropped {message.dropped}"
    )
    return " | ".join([head, *(hands or ["no hand"]), *([note] if note else [])])


def draw(
    message: JointsMessage,
    columns: int,
    rows: int,
    *,
    frame: DepthFrame | None = None,
    fps: float | None = None,
    note: str = "",
) -> str:
    """One screen of columns x rows characters: the hands as the camera sees them, and what is known of them.

    frame is the depth image the hands were found in; it becomes the background. Lines are joined by newlines and
    end with the colours reset.
    """
    columns, rows = max(columns, 20), max(rows, 8)
    lines = _text_lines(message, fps, note, columns)
    height = max(rows - len(lines), 1)
    canvas = _picture(message.hands, columns, 2 * height, frame)  # (2 * height, columns, 3)
    text = [_coloured(line, columns) for line in lines[: rows - height]]
    return "\n".join([*_half_blocks(canvas), *text])


# --- the picture


def _picture(hands: tuple[HandJoints, ...], width: int, height: int, frame: DepthFrame | None) -> Array:
    """(height, width, 3) uint8: the view holds all hands with a margin, or the whole frame if there is none."""
    points = np.concatenate([h.joints_m for h in hands]) if hands else np.zeros((0, 3), np.float32)  # (21 N, 3)
    points = points[points[:, 2] > 0.01]
    if len(points):
        xy = points[:, :2] / points[:, 2:]
        low, high = xy.min(0), xy.max(0)
    elif frame is not None:
        i = frame.intrinsics
        low = np.array([-i.cx / i.fx, -i.cy / i.fy])
        high = np.array([(i.width - i.cx) / i.fx, (i.height - i.cy) / i.fy])
    else:
        low, high = np.array([-0.5, -0.5]), np.array([0.5, 0.5])
    pixel = float(max((high - low) / (width - 1, height - 1))) * (1.2 if len(points) else 1.0)
    pixel = 2 ** (np.ceil(4 * np.log2(max(pixel, 1e-5))) / 4)  # steps of 19 %, so that the view stands still
    step = 4 * pixel
    centre = np.round((low + high) / 2 / step) * step
    origin = centre - 0.5 * pixel * np.array([width - 1, height - 1])

    canvas = np.full((height, width, 3), BACK, np.float32)
    if frame is not None:
        _paint_depth(canvas, frame, origin, pixel, float(points[:, 2].min()) - 0.05 if len(points) else None)
    for hand in hands:
        _paint_hand(canvas, hand, origin, pixel)
    image: Array = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return image


def _paint_depth(canvas: Array, frame: DepthFrame, origin: Array, pixel: float, near_m: float | None) -> None:
    """Depth as grey-blue, bright at near_m (the nearest there is, if None) and dark from half a metre behind it."""
    height, width = canvas.shape[:2]
    x, y = np.meshgrid(origin[0] + pixel * np.arange(width), origin[1] + pixel * np.arange(height))
    uv = np.rint(frame.intrinsics.project(np.stack([x, y, np.ones_like(x)], -1))).astype(int)  # (h, w, 2)
    u, v = uv[..., 0], uv[..., 1]
    high, wide = frame.depth.shape
    inside: Array = (u >= 0) & (u < wide) & (v >= 0) & (v < high)
    z = frame.depth[np.where(inside, v, 0), np.where(inside, u, 0)] * frame.depth_unit_m  # (h, w) m
    valid = inside & (z > 0)
    if near_m is None:
        near_m = float(np.percentile(z[valid], 2)) if valid.any() else 0.0
    shade = np.where(valid, np.clip(1 - (z - near_m) / 0.5, 0.1, 1.0), 0.0)[..., None]
    canvas[:] = BACK + shade * (np.array([104, 113, 130]) - BACK)


def _paint_hand(canvas: Array, hand: HandJoints, origin: Array, pixel: float) -> None:
    joints = hand.joints_m
    if joints[:, 2].min() <= 0.01:
        return  # behind the camera: nothing to see from it
    p = (joints[:, :2] / joints[:, 2:] - origin) / pixel  # (21, 2) canvas px
    size = float(np.linalg.norm(np.ptp(p, axis=0)))
    thick = min(max(size / 60, 0.7), 4.0)
    faint = 0.45 if hand.state == "predicted" else 1.0
    span = float(np.ptp(joints[:, 2])) or 1.0
    near = 1 - (joints[:, 2] - joints[:, 2].min()) / max(span, 0.04)  # (21,) 1 nearest to the camera
    for a, b, finger in sorted(BONES, key=lambda bone: -float(joints[bone[0], 2] + joints[bone[1], 2])):
        colour = np.array(PALM if finger < 0 else FINGER_COLOURS[finger], np.float32)
        light = 0.6 + 0.4 * float(near[a] + near[b]) / 2
        _stroke(canvas, p[a], p[b], thick * (0.6 if finger < 0 else 1.0), colour * light, faint)
    for j in np.argsort(-joints[:, 2]):
        colour = np.array(PALM if j == 0 else FINGER_COLOURS[(j - 1) // 4], np.float32)
        hidden = hand.visible is not None and hand.visible[j] == 0
        bright = 0.55 * colour if hidden else colour + 0.45 * (255 - colour)
        _stroke(canvas, p[j], p[j], thick * (1.9 if j == 0 else 1.45), bright, faint)


def _stroke(canvas: Array, a: Array, b: Array, radius: float, colour: Array, opacity: float) -> None:
    """A line with round ends from a to b, px, blended in with a one-pixel soft edge."""
    height, width = canvas.shape[:2]
    x0, y0 = np.maximum(np.floor(np.minimum(a, b) - radius - 1), 0).astype(int)
    x1 = min(int(max(a[0], b[0]) + radius + 2), width)
    y1 = min(int(max(a[1], b[1]) + radius + 2), height)
    if x0 >= x1 or y0 >= y1:
        return
    x, y = np.meshgrid(np.arange(x0, x1), np.arange(y0, y1))
    dx, dy = (b - a).tolist()
    t = np.clip(((x - a[0]) * dx + (y - a[1]) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    distance = np.hypot(x - a[0] - t * dx, y - a[1] - t * dy)
    cover = (np.clip(radius + 0.5 - distance, 0, 1) * opacity)[..., None]
    canvas[y0:y1, x0:x1] += cover * (colour - canvas[y0:y1, x0:x1])


def _half_blocks(canvas: Array) -> list[str]:
    """(2 R, C, 3) to R lines; a colour code only where the colour changes."""
    lines = []
    for top_row, bottom_row in zip(canvas[::2].tolist(), canvas[1::2].tolist(), strict=True):
        out, fore, back = [], None, None
        for top, bottom in zip(top_row, bottom_row, strict=True):
            if bottom != back:
                out.append("\x1b[48;2;{};{};{}m".format(*bottom))
                back = bottom
            if top == bottom:
                out.append(" ")
                continue
            if top != fore:
                out.append("\x1b[38;2;{};{};{}m".format(*top))
                fore = top
            out.append("▀")
        lines.append("".join(out) + "\x1b[0m")
    return lines


# --- the text


def _text_lines(message: JointsMessage, fps: float | None, note: str, columns: int) -> list[list[Segment]]:
    """4 to 6 lines: the stream, two for each of at most two hands, a note. What does not fit is left out whole."""
    rate = "" if fps is None else f"  {fps:.1f} fps"
    lines: list[list[Segment]] = [
        [
            (f" {message.camera}", TEXT),
            (f"  seq {message.seq}{rate}  latency {message.latency_ms:.1f} ms  dropped {message.dropped}", DIM),
        ]
    ]
    for hand in message.hands[:2]:
        tracked = hand.state == "tracked"
        fit = "" if hand.fit_mm is None else f"  fit {hand.fit_mm:.1f} mm"
        speed = "" if hand.motion is None else f"  {np.linalg.norm(hand.motion.velocity_m_s):.2f} m/s"
        hidden = "" if hand.visible is None else f"  hidden {int((hand.visible == 0).sum())}"
        line: list[Segment] = [
            (f" #{hand.id} {hand.side:<7}", TEXT),
            (f" {hand.state:<9}", FINGER_COLOURS[2] if tracked else WARN),
            (f" {hand.score:.2f}", DIM),
            (f"  wrist {_millimetres(hand.T_camera_wrist[:3, 3])}", TEXT),
        ]
        room = columns - sum(len(text) for text, _ in line)
        for text in (fit, f"  age {hand.age_ms:.0f} ms", speed, hidden):
            if len(text) <= room:
                line.append((text, DIM))
                room -= len(text)
        lines.append(line)
        curls: list[Segment] = [(" ", DIM)]
        for finger, curl in enumerate(_curls(hand.angles_rad)):
            curls += [(f"{FINGERS[finger]} ", DIM), (_bar(curl, 6), FINGER_COLOURS[finger]), ("  ", DIM)]
        lines.append(curls)
    if not message.hands:
        lines += [[(" no hand", WARN)], []]
    more = f"{len(message.hands) - 2} more hands  " if len(message.hands) > 2 else ""
    return [*lines, [(f" {more}{note}", WARN)]]


def _curls(angles_rad: Array) -> list[float]:
    """How far each finger is closed, 0 straight to 1 all its joints at their limits, from the (20,) angles."""
    return [
        min(max(float(angles_rad[which].sum() / ANGLE_LIMITS_RAD[which, 1].sum()), 0.0), 1.0) for which in CURL_ANGLES
    ]


def _bar(value: float, width: int) -> str:
    eighths = round(8 * width * value)
    full, rest = divmod(eighths, 8)
    bar = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return bar + "·" * (width - len(bar))


def _millimetres(point_m: Array) -> str:
    x, y, z = (1000 * point_m).tolist()
    return f"{x:+.0f} {y:+.0f} {z:+.0f} mm"


def _coloured(segments: list[Segment], columns: int) -> str:
    out, left = [], columns
    for text, (r, g, b) in segments:
        out.append(f"\x1b[38;2;{r};{g};{b}m{text[:left]}")
        left -= len(text[:left])
    return "".join(out) + "\x1b[0m\x1b[K"
