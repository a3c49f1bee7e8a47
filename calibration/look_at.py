"""Cameras and recordings in this process: every frame of each is tracked, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from ..edge.cameras import BadFrame, Camera, CameraError, EndOfStream, FrameTimeout, open_camera
from ..edge.clock import HOST, Clock
from ..edge.engines import open_engine
from ..edge.librealsense import LIBREALSENSE
from ..edge.recordings.recording import Recording
from .gather import Looker
from .observe import Sight, different
from .sight import clock_offsets_ns
from .sources import SILENCE_S


def open_depth(text: str, mode: str | None = None) -> tuple[Camera, bool]:
    """A recording, a folder of depth pictures, or KIND:SERIAL, a camera of this mode ("640x480@30"); and whether it is
    live. Raises CameraError."""
    if Path(text).exists():
        if mode is not None:
            raise CameraError(f"--mode is for cameras; {text} has the size and the rate that it was recorded with")
        if Path(text).suffix in LIBREALSENSE:
            made = f"edge-hand record --camera replay --source {text} {Path(text).with_suffix('.mcap')}"
            raise CameraError(f"{text} is librealsense's; make a recording of ours of it first: {made}")
        return open_camera("replay", text, deterministic=True), False
    kind, mark, serial = text.partition(":")
    if mark:
        return open_camera(kind, serial or None, mode=mode), True
    raise CameraError(f"{text} does not exist; a source is a recording, a folder of depth pictures or KIND:SERIAL")


def look_at(
    sources: Sequence[str],
    seconds: float,
    watch: Callable[[list[Sight]], bool],
    mode: str | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Sight]:
    """Track all sources, a frame of each in turn: recordings up to so many seconds, cameras until watch says
    enough, or until Ctrl-C.

    Recordings of several hosts are compared by their wall clocks, as `fuse` compares the hosts' daemons; of those that
    are longer, the seconds count from when all had begun. watch is called about twice a second of the frames' own time;
    say hears which engine it is, and of what recordings not all is looked at. Raises CameraError for a camera that
    gives no frames.
    """
    engine = open_engine(say=say)  # where it is a plan to build, minutes before a camera is open
    with ExitStack() as stack:
        cameras, kinds = [], set[bool]()
        for text in sources:
            camera, is_live = open_depth(text, mode)
            cameras.append(stack.enter_context(camera))
            kinds.add(is_live)
        live = True in kinds
        if len(kinds) > 1:
            raise CameraError("cameras and recordings have no moment in common: give one or the other")
        different([camera.name for camera in cameras], sources)
        lookers = [Looker(engine) for _ in cameras]
        offsets_ns = clock_offsets_ns([_wall_offset_ns(camera) for camera in cameras])
        begins_ns = _begins_ns(sources, offsets_ns, seconds, say)
        try:
            _look(cameras, lookers, offsets_ns, begins_ns, seconds, watch, live)
        except KeyboardInterrupt:  # of cameras this is what there is
            if not live:
                raise
    return [looker.collected.sight() for looker in lookers]


def _look(
    cameras: Sequence[Camera],
    lookers: Sequence[Looker],
    offsets_ns: Sequence[int],
    begins_ns: Sequence[int],
    seconds: float,
    watch: Callable[[list[Sight]], bool],
    live: bool,
) -> None:
    """A frame of each camera in turn, from when it begins until all end or watch says enough of live ones."""
    running, shown_s = list(range(len(cameras))), 0.0
    silent: dict[int, float] = {}  # since when a camera gives no frame
    while running:
        # The one that is furthest behind in its own time goes next, so that all end together.
        n = min(running, key=lambda i: _elapsed_s(lookers[i]))
        try:
            frame = cameras[n].read()
        except EndOfStream:
            running.remove(n)
            continue
        except (BadFrame, FrameTimeout) as error:
            if time.monotonic() - silent.setdefault(n, time.monotonic()) > SILENCE_S:
                raise CameraError(f"no frame that can be used for {SILENCE_S:g} s: {error}") from None
            continue
        silent.pop(n, None)
        if frame.t_ns + offsets_ns[n] < begins_ns[n]:
            continue
        lookers[n].look(replace(frame, t_ns=frame.t_ns + offsets_ns[n]))
        if _elapsed_s(lookers[n]) > seconds:
            running.remove(n)
        now_s = min(_elapsed_s(looker) for looker in lookers)
        if now_s >= shown_s + 0.5:
            shown_s = now_s
            enough = watch([looker.collected.sight() for looker in lookers])
            if enough and live:
                break


def _begins_ns(
    sources: Sequence[str], offsets_ns: Sequence[int], seconds: float, say: Callable[[str], None] | None
) -> list[int]:
    """When to begin with each source: with a recording that is longer than so many seconds when all have begun, or as
    late as leaves so many of it; 0 with others, and with recordings that end before another begins."""
    begins_ns, spans = [0] * len(sources), dict[int, tuple[int, int]]()
    for n, (text, offset_ns) in enumerate(zip(sources, offsets_ns, strict=True)):
        if Path(text).is_file():
            with Recording(Path(text)) as recording:
                first_ns, last_ns = recording.span_ns
            spans[n] = first_ns + offset_ns, last_ns + offset_ns
    for n, (first_ns, last_ns) in spans.items():
        if last_ns - first_ns < (seconds + 0.5) * 1e9:  # half a second more is nobody's loss
            continue
        all_ns = max(first for first, _ in spans.values())
        if all_ns < last_ns:
            begins_ns[n] = max(first_ns, min(all_ns, last_ns - round(seconds * 1e9)))
        if say:
            after_s = max(begins_ns[n] - first_ns, 0) * 1e-9
            whole_s = (last_ns - first_ns) * 1e-9
            say(f"{sources[n]}: {seconds:g} of its {whole_s:.1f} s, from {after_s:.1f} s on; --seconds looks at more")
    return begins_ns


def _wall_offset_ns(camera: Camera) -> int:
    """What to add to a camera's stamps for wall-clock time; of a recording, that of its host."""
    clock: Clock = getattr(camera, "clock", HOST)
    return clock.unix_ns() - clock.monotonic_ns()


def _elapsed_s(looker: Looker) -> float:
    times = looker.collected.times_s
    return times[-1] - times[0] if times else 0.0
