"""A recording as something to subscribe to: what was published then, or else what the tracker finds in it now."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ...hand.frames import DepthFrame
from ...hand.messages import JointsMessage, MeshMessage, WireError
from ...hand.whole import refusal
from ...hand.wire import Header, decode
from ..cameras import CameraError, open_camera
from ..cli.shell import CommandError, say
from ..cloud import Clouds
from ..loop import Loop, topology
from ..networks.card import ModelError
from ..publish import Publisher
from ..recordings.play import Player, topology_of
from ..recordings.recording import CHUNK_NS, MAX_NS, Recording, RecordingError


@contextmanager
def published(
    source: str, model: Path, engine: str = "auto", threads: int = 1, tracks: Callable[[], None] = lambda: None
) -> Iterator[str]:
    """Publish a recording over and over, at its own rate, to this user alone; gives the address.

    A recording made by `edge-hand run --record` is played, any other that `--camera replay` reads is tracked with the
    model, of which tracks is told. Raises CameraError, RecordingError, ModelError and CommandError.
    """
    over = threading.Event()
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-hand-view-"))
        except OSError as error:  # a read-only system has no place for it
            raise CommandError(f"a socket's folder cannot be made: {refusal(error)}; name one with TMPDIR=") from None
        address = f"ipc://{folder}/recording"
        if _has_messages(Path(source)):
            run = _played(stack, source, address)
        else:
            tracks()
            run = _tracked(stack, source, address, model, engine, threads)
        thread = threading.Thread(target=_to_the_end, args=(run, over.is_set), name="recording", daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(over.set)
        yield address


def _to_the_end(run: Callable[[Callable[[], bool]], object], stop: Callable[[], bool]) -> None:
    """What a thread does; of what ends it earlier it says one line."""
    try:
        run(stop)
    except (CameraError, ModelError, RecordingError, WireError) as error:
        say(f"edge-hand: {error}")


def _tracked(
    stack: ExitStack, source: str, address: str, model: Path, engine: str, threads: int
) -> Callable[[Callable[[], bool]], object]:
    from ..engines import open_engine
    from ..finder import open_finder
    from ..tracker import Tracker

    camera = stack.enter_context(open_camera("replay", source, loop=True))
    tracker = Tracker(open_engine(engine, model, threads, say=say, at_once=True), open_finder(threads=threads))
    return Loop(camera, tracker, stack.enter_context(Publisher(address, topology=topology()))).run


def _played(stack: ExitStack, source: str, address: str) -> Callable[[Callable[[], bool]], object]:
    recording, depth = (stack.enter_context(Recording(Path(source))) for _ in range(2))
    publisher = stack.enter_context(_WithClouds(address, depth, topology_of(recording)))
    player = Player(recording, publisher, keep_stamps=True)  # by its time a message finds the frame it is of
    return lambda stop: player.run(stop, loop=True)


def _has_messages(path: Path) -> bool:
    """Whether messages were recorded beside the frames."""
    if path.suffix != ".mcap" or not os.path.isfile(path):
        return False
    with Recording(path) as recording:
        return recording.holds_messages()


class _WithClouds(Publisher):
    """Adds to each mesh of a recording the cloud of its frame; clouds are too large to be recorded."""

    def __init__(self, address: str, recording: Recording, triangles: list[bytes] | None = None) -> None:
        super().__init__(address, topology=triangles)
        self._recording, self._clouds = recording, Clouds()
        self._frames: Iterator[DepthFrame] = iter(())
        self._frame: DepthFrame | None = None  # the last one read
        self._asked_ns = MAX_NS
        self._tracked: set[int] = set()

    def publish(self, parts: list[bytes]) -> bool:
        """Hand over one message, and the cloud that belongs to it."""
        kind = parts[0].partition(b".")[0]
        sent = super().publish(parts)
        if kind in (b"joints", b"mesh") and self.wants(f"cloud.{self._recording.camera}"):
            message = decode(parts)
            if isinstance(message, JointsMessage):
                self._tracked = {hand.id for hand in message.hands if hand.state == "tracked"}
            elif isinstance(message, MeshMessage):
                self._add_cloud(message)
        return sent

    def _add_cloud(self, mesh: MeshMessage) -> None:
        frame = self._frame_at(mesh.t_capture_ns)
        if frame is not None:
            header = Header(mesh.camera, mesh.seq, mesh.t_capture_ns, mesh.t_capture_unix_ns, mesh.t_publish_ns)
            meshes = [(hand.id, hand.vertices_m if hand.id in self._tracked else None) for hand in mesh.hands]
            super().publish(self._clouds.message_of(header, frame, meshes))

    def _frame_at(self, t_ns: int) -> DepthFrame | None:
        """The frame captured then; frames are read forwards, and from there anew for one before or far behind."""
        if not self._asked_ns <= t_ns < self._asked_ns + CHUNK_NS:
            self._frames, self._frame = map(self._recording.decode_frame, self._recording.stored(t_ns)), None
        self._asked_ns = t_ns
        with contextlib.suppress(StopIteration, RecordingError):  # the end; a damaged frame, behind which it goes on
            while self._frame is None or self._frame.t_ns < t_ns:
                self._frame = next(self._frames)
        return self._frame if self._frame is not None and self._frame.t_ns == t_ns else None
