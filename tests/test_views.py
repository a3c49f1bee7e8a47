"""All cameras of a rig together: when a step is due, for which moment, and by whose clock."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from edge_hand.calibration.views import Views
from edge_hand.hand.messages import JointsMessage
from test_fuse import SECOND, a_rig, told

MS = 1_000_000


def at(k: int, t_ns: int, boot_ns: int = 5 * SECOND, seq: int = 1) -> JointsMessage:
    """What camera k says of a moment of its host's monotonic clock, which began boot_ns before that of the wall."""
    rig = a_rig()
    stamp = t_ns - round(rig.cameras[k].time.offset_s * 1e9)
    return replace(told(rig, k, 1), seq=seq, t_capture_ns=stamp, t_capture_unix_ns=stamp + boot_ns)


def test_a_step_is_for_the_middle_of_what_the_cameras_saw() -> None:
    views = Views(a_rig(2))
    views.take(at(0, SECOND), 0)
    views.take(at(1, SECOND + 8 * MS), 1)
    assert views.due(1) == SECOND + 4 * MS


def test_a_step_waits_no_longer_than_for_the_first_of_the_new_frames() -> None:
    views = Views(a_rig(3), wait_ns=10 * MS)
    for k in range(3):
        views.take(at(k, SECOND), 0)
    assert views.due(0) == SECOND
    views.take(at(0, SECOND + 30 * MS, seq=2), 30 * MS)
    views.take(at(1, SECOND + 30 * MS, seq=2), 38 * MS)
    assert views.due(40 * MS - 1) is None and views.due(40 * MS) == SECOND + 30 * MS


def test_each_frame_that_comes_too_late_is_counted() -> None:
    views = Views(a_rig(3), wait_ns=10 * MS)
    views.take(at(0, SECOND), 0)
    assert views.due(10 * MS) == SECOND
    for k in (1, 2):
        views.take(at(k, SECOND - 1), 11 * MS)
    assert views.due(30 * MS) is None and views.late == 2


def test_cameras_that_the_rig_does_not_know_are_named() -> None:
    views = Views(a_rig(1))
    views.take(at(0, SECOND), 0)
    for k in (2, 1):
        views.take(at(k, SECOND), 0)
    assert views.words(0) == "1 of 1 cameras; not in the rig file: cam1, cam2"


def test_when_hosts_turn_out_to_differ_frames_are_awaited_anew_by_the_wall_clock() -> None:
    """The first host's wall clock is 100 ms behind its monotonic one, as without a battery; the second's is right."""
    views, behind = Views(a_rig(2), wait_ns=10 * MS), -100 * MS
    views.take(at(0, SECOND, behind), 0)
    assert views.due(10 * MS) == SECOND
    views.take(at(0, SECOND + 16 * MS, behind, seq=2), 16 * MS)
    views.take(at(1, 9 * SECOND, -8 * SECOND - 84 * MS, seq=2), 17 * MS)
    assert views.clock == "unix" and views.due(17 * MS) is None, "its frame was by the other clock"
    views.take(at(0, SECOND + 32 * MS, behind, seq=3), 18 * MS)
    assert views.due(18 * MS) == SECOND - 76 * MS and views.late == 0


@pytest.mark.parametrize(
    ("booted_ns", "own_ns"), [(0, SECOND), (5 * SECOND, 6 * SECOND), (None, 6 * SECOND + 300 * MS)]
)
def test_the_moment_of_a_step_is_told_by_the_wall_clock_and_by_this_host_s_own(
    booted_ns: int | None, own_ns: int
) -> None:
    """A camera of this host, of one that booted later, and of one that believes it is 1970: when its frame came."""
    boot = 0 if booted_ns is None else time.time_ns() - time.monotonic_ns() + booted_ns
    views = Views(a_rig(1))
    views.take(at(0, SECOND, boot), 6 * SECOND + 300 * MS)
    unix_ns, monotonic_ns = views.capture(SECOND)
    assert unix_ns == SECOND + boot
    assert monotonic_ns == pytest.approx(own_ns, abs=MS)
