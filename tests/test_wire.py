"""The wire contract: golden bytes, round trips, and a decoder that only ever says WireError.

The golden files hold the payloads. When the contract changes on purpose (a new version, or a new key),
write them again with `python tests/test_wire.py` and say why in the commit.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from edge_hand.hand.frames import HandPose
from edge_hand.hand.wire import (
    MAX_BYTES,
    MAX_POINTS,
    CloudMessage,
    HandCloud,
    Header,
    JointsMessage,
    MeshMessage,
    Motion,
    StatusMessage,
    TopologyMessage,
    WireError,
    WireHand,
    decode,
    encode_cloud,
    encode_joints,
    encode_mesh,
    encode_status,
    encode_topology,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
HEADER = Header("front", 1234, 5_000_000_000, 1_700_000_000_123_456_789, 5_008_000_000)


def a_hand(number: int = 1, *, vertices: int = 5, state: str = "tracked", side: str = "right") -> WireHand:
    """A hand of exact binary fractions, so that its bytes are the same everywhere."""

    def ramp(*shape: int) -> np.ndarray:
        return (np.arange(np.prod(shape)).reshape(shape) - 8) / 64 + number

    pose = HandPose(
        side=side,
        side_conf=0.75,
        state=state,
        score=0.5,
        T_camera_wrist=ramp(4, 4),
        theta=ramp(26),
        alpha=ramp(6),
        beta=ramp(7),
        joints_m=ramp(21, 3),
        vertices_m=ramp(vertices, 3),
        joint_conf=ramp(21),
        fit_mm=2.5,
    )
    if state != "tracked":
        return WireHand(number, 33.5, pose, None)
    visible = np.arange(21) % 3 - 1
    return WireHand(number, 0.0, pose, ramp(21, 3), visible, Motion(ramp(3), ramp(3) + 1, ramp(20)))


def points(n: int) -> np.ndarray:
    return np.arange(3 * n).reshape(n, 3) / 64 + 0.5


def golden_messages() -> dict[str, list[bytes]]:
    hands = [a_hand(1), a_hand(2, state="predicted", side="left")]
    status = {"frames": 1200, "dropped": 3, "bad_frames": 1, "engine": "onnxruntime", "model": "dgn-64-int8"}
    return {
        "wire_joints": encode_joints(HEADER, hands, stages_us={"crop": 50.5, "engine": 900.25}, dropped=3),
        "wire_joints_empty": encode_joints(HEADER, [], stages_us={}, dropped=3),
        "wire_mesh": encode_mesh(HEADER, hands),
        "wire_cloud": encode_cloud(HEADER, points(3), [HandCloud(1, points(2) + 1), HandCloud(2, points(0))]),
        "wire_cloud_no_scene": encode_cloud(HEADER, None, []),
        "wire_status": encode_status(HEADER, state="stalled", fps=29.5, uptime_s=61.5, message="no frame", **status),
        "wire_topology": encode_topology([[0, 1, 2], [2, 1, 3]]),
    }


TOPICS = {
    "wire_joints": b"joints.front",
    "wire_joints_empty": b"joints.front",
    "wire_mesh": b"mesh.front",
    "wire_cloud": b"cloud.front",
    "wire_cloud_no_scene": b"cloud.front",
    "wire_status": b"status.front",
    "wire_topology": b"topology",
}


def write_golden() -> None:
    """Write the golden files again, on purpose only."""
    for name, (_, payload) in golden_messages().items():
        (GOLDEN / f"{name}.bin").write_bytes(payload)


def golden(name: str) -> list[bytes]:
    return [TOPICS[name], (GOLDEN / f"{name}.bin").read_bytes()]


def changed(parts: list[bytes], **keys: Any) -> list[bytes]:
    return [parts[0], msgpack.packb(msgpack.unpackb(parts[1]) | keys)]


def changed_hand(parts: list[bytes], **keys: Any) -> list[bytes]:
    body = msgpack.unpackb(parts[1])
    body["hands"][0] |= keys
    return [parts[0], msgpack.packb(body)]


@pytest.mark.parametrize("name", TOPICS)
def test_encoder_still_writes_the_golden_bytes(name: str) -> None:
    assert golden_messages()[name] == golden(name)


def test_golden_joints_decode_to_what_was_written() -> None:
    message = decode(golden("wire_joints"))
    assert isinstance(message, JointsMessage)
    assert (message.camera, message.seq, message.dropped) == ("front", 1234, 3)
    assert message.t_capture_unix_ns == 1_700_000_000_123_456_789
    assert message.latency_ms == 8.0
    assert message.stages_us == {"crop": 50.5, "engine": 900.25}
    first, second = message.hands
    source = a_hand(1)
    assert (first.id, first.side, first.state, first.age_ms, first.score) == (1, "right", "tracked", 0.0, 0.5)
    assert first.fit_mm == 2.5
    for key in ("joints_m", "joint_conf", "T_camera_wrist", "alpha", "beta"):
        np.testing.assert_array_equal(getattr(first, key), getattr(source.pose, key), err_msg=key)
    np.testing.assert_array_equal(first.angles_rad, source.pose.theta[6:])
    np.testing.assert_array_equal(first.joints_raw_m, source.joints_raw_m)
    np.testing.assert_array_equal(first.visible, source.visible)
    for sent, got in zip(source.motion, first.motion, strict=True):
        np.testing.assert_array_equal(got, sent)
    assert second.visible is None and second.motion is None
    assert (second.side, second.state, second.age_ms, second.joints_raw_m) == ("left", "predicted", 33.5, None)


def test_golden_mesh_status_and_topology_decode_to_what_was_written() -> None:
    mesh, status, topology = (decode(golden(f"wire_{kind}")) for kind in ("mesh", "status", "topology"))
    assert isinstance(mesh, MeshMessage)
    np.testing.assert_array_equal(mesh.hands[0].vertices_m, a_hand(1).pose.vertices_m)
    assert isinstance(status, StatusMessage)
    assert (status.state, status.fps, status.bad_frames, status.message) == ("stalled", 29.5, 1, "no frame")
    assert isinstance(topology, TopologyMessage)
    assert topology.vertices == 4 and topology.faces.tolist() == [[0, 1, 2], [2, 1, 3]]


def test_golden_clouds_decode_to_what_was_written() -> None:
    cloud, without = decode(golden("wire_cloud")), decode(golden("wire_cloud_no_scene"))
    assert isinstance(cloud, CloudMessage) and isinstance(without, CloudMessage)
    assert (cloud.camera, cloud.seq, cloud.latency_ms) == ("front", 1234, 8.0)
    np.testing.assert_array_equal(cloud.scene_m, points(3))
    np.testing.assert_array_equal(cloud.hands[0].points_m, points(2) + 1)
    assert [hand.id for hand in cloud.hands] == [1, 2] and cloud.hands[1].points_m.shape == (0, 3)
    assert without.scene_m is None and without.hands == ()


def test_decoded_arrays_are_read_only_views_without_a_copy() -> None:
    hand = decode(golden("wire_joints")).hands[0]
    assert hand.joints_m.dtype == np.dtype("<f4") and hand.joints_m.base is not None
    with pytest.raises(ValueError, match="read-only"):
        hand.joints_m[0, 0] = 0


def test_no_hand_is_an_empty_list() -> None:
    assert decode(golden("wire_joints_empty")).hands == ()


def test_a_lost_hand_cannot_be_published() -> None:
    with pytest.raises(WireError, match=r"^hand 7 is lost: leave it out of the list$"):
        encode_joints(HEADER, [a_hand(7, state="lost")], stages_us={}, dropped=0)


def test_what_no_subscriber_would_read_cannot_be_published() -> None:
    with pytest.raises(WireError, match=r"^17 hands, the wire carries at most 16"):
        encode_joints(HEADER, [a_hand(n) for n in range(17)], stages_us={}, dropped=0)
    for scene, hand in ((MAX_POINTS + 1, 3), (3, MAX_POINTS + 1)):
        with pytest.raises(WireError, match="_m has 20001 points, the wire carries at most 20000"):
            encode_cloud(HEADER, points(scene), [HandCloud(1, points(hand))])
    with pytest.raises(WireError, match=f"bytes, the wire carries at most {MAX_BYTES}"):
        encode_mesh(HEADER, [a_hand(n, vertices=40_000) for n in range(9)])
    with pytest.raises(WireError, match=r"^status: state 'well' is none of starting, "):
        encode_status(
            HEADER, state="well", fps=1.0, uptime_s=1.0, frames=1, dropped=0, bad_frames=0, engine="", model=""
        )  # type: ignore[arg-type]


def test_a_number_that_is_not_finite_cannot_be_published() -> None:
    hand = a_hand()
    hand.pose.joints_m[3, 1] = np.nan
    with pytest.raises(WireError, match=r"^joints_m has a number that is not finite$"):
        encode_joints(HEADER, [hand], stages_us={}, dropped=0)


def test_a_status_text_becomes_one_printable_line() -> None:
    status = {"state": "lost", "fps": 0, "frames": 0, "dropped": 0, "bad_frames": 0, "engine": "", "model": ""}
    parts = encode_status(HEADER, **status, uptime_s=0, message="cable\n out\x1b[2J " + "x" * 999)
    message = decode(parts).message
    assert message.startswith("cable out?[2J xxx") and len(message) == 400


def test_a_message_without_visibility_and_motion_is_still_read() -> None:
    body = msgpack.unpackb(golden("wire_joints")[1])
    for key in ("visible", "velocity_m_s", "angular_velocity_rad_s", "angle_rates_rad_s"):
        del body["hands"][0][key]
    hand = decode([b"joints.front", msgpack.packb(body)]).hands[0]
    assert hand.visible is None and hand.motion is None and hand.id == 1


@pytest.mark.parametrize("visible", [np.full(21, 2), np.zeros(20), np.full(21, np.nan)])
def test_visibility_other_than_21_words_cannot_be_published(visible: np.ndarray) -> None:
    with pytest.raises(WireError, match=r"^visible is 2[01], the wire carries 21 of -1, 0 and 1$"):
        encode_joints(HEADER, [replace(a_hand(), visible=visible)], stages_us={}, dropped=0)


def test_keys_of_a_later_minor_change_are_ignored() -> None:
    parts = changed_hand(changed(golden("wire_joints"), humidity=[1, {"a": 2}]), wiggle=b"123")
    assert decode(parts).hands[0].id == 1


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([b"joints.front"], "a message has 1 parts, expected [topic, payload]"),
        (
            [b"hello", b""],
            "topic b'hello' is none of joints.<camera>, mesh.<camera>, cloud.<camera>, status.<camera>, topology",
        ),
        (
            [b"joints.front", b"\x80" * (MAX_BYTES + 1)],
            f"a message of {MAX_BYTES + 13} bytes, expected at most {MAX_BYTES}",
        ),
        ([b"joints.front", b"\x93\x01"], "joints.front: not readable as msgpack (Unpack failed: incomplete input)"),
        ([b"joints.front", b"\x01"], "joints.front: the payload is int, expected a map"),
        (
            changed(golden("wire_joints"), v=2),
            "joints.front: wire version 2, this edge-hand reads version 1: update the older end",
        ),
        ([b"joints.side", golden("wire_joints")[1]], "joints.side: the payload's camera is 'front'"),
        (changed(golden("wire_joints"), seq=True), "joints.front: seq is True, expected a whole number from -1"),
        (changed(golden("wire_joints"), hands={}), "joints.front: hands is dict, expected list"),
        (changed(golden("wire_joints"), hands=[1]), "joints.front: hands[0] is int, expected a map"),
        (changed(golden("wire_joints"), hands=[{}] * 17), "joints.front: 17 hands, expected at most 16"),
        (
            changed_hand(golden("wire_joints"), joints_m=b"\0" * 248),
            "joints.front: hands[0].joints_m has 248 bytes, expected 252 (float32 21x3)",
        ),
        (
            changed_hand(golden("wire_joints"), alpha=np.full(6, np.nan, "<f4").tobytes()),
            "joints.front: hands[0].alpha has a number that is not finite",
        ),
        (
            changed_hand(golden("wire_joints"), state="lost"),
            "joints.front: hands[0].state is 'lost', expected tracked or predicted",
        ),
        (
            changed_hand(golden("wire_joints"), visible=b"\2" * 21),
            "joints.front: hands[0].visible has a number other than -1, 0 and 1",
        ),
        (
            changed_hand(golden("wire_joints"), visible=b"\0" * 20),
            "joints.front: hands[0].visible has 20 bytes, expected 21 (int8 of -1, 0 and 1)",
        ),
        (
            changed_hand(golden("wire_joints"), velocity_m_s=b"\0" * 8),
            "joints.front: hands[0].velocity_m_s has 8 bytes, expected 12 (float32 3)",
        ),
        (
            changed_hand(golden("wire_joints"), angle_rates_rad_s=None),
            "joints.front: hands[0].angle_rates_rad_s is missing, expected bytes",
        ),
        (
            changed_hand(golden("wire_mesh"), vertices_m=b"\0" * 13),
            "mesh.front: hands[0].vertices_m has 13 bytes, expected a multiple of 12 (float32 Vx3)",
        ),
        (
            changed(golden("wire_cloud"), scene_m=b"\0" * 11),
            "cloud.front: scene_m has 11 bytes, expected a multiple of 12 (float32 Vx3)",
        ),
        (
            changed_hand(golden("wire_cloud"), points_m=b"\0" * 12 * (MAX_POINTS + 1)),
            "cloud.front: hands[0].points_m has 20001 points, expected at most 20000",
        ),
        (changed_hand(golden("wire_cloud"), id=-1), "cloud.front: hands[0].id is -1, expected a whole number from 0"),
        (changed(golden("wire_topology"), vertices=3), "topology: faces has an index outside 0 to 2"),
    ],
)
def test_a_bad_message_is_refused_in_one_line(parts: list[bytes], text: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(parts)
    assert str(caught.value) == text


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(WireError, match="not readable as msgpack"):
        decode([b"joints.front", b"\x81\xa1a" + b"\x91" * 100_000 + b"\x01"])


def test_a_claimed_huge_length_is_refused_before_it_is_built() -> None:
    with pytest.raises(WireError, match="not readable as msgpack"):
        decode([b"joints.front", b"\x81\xa1a\xdd\xff\xff\xff\xff"])


number = st.floats(-100, 100, width=32)
whole = st.integers(0, 2**63 - 1)
names = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=64)


@st.composite
def wire_hands(draw: st.DrawFn) -> WireHand:
    seed, state = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from(["tracked", "predicted"]))
    rng = np.random.default_rng(seed)
    draw_array = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    pose = HandPose(
        draw(st.sampled_from(["left", "right", "unknown"])),
        draw(number),
        state,
        draw(number),
        draw_array(4, 4),
        draw_array(26),
        draw_array(6),
        draw_array(7),
        draw_array(21, 3),
        draw_array(draw(st.integers(0, 40)), 3),
        draw_array(21),
        draw(st.one_of(number, st.just(float("nan")))),
    )
    visible = draw(st.sampled_from([None, rng.integers(-1, 2, 21)]))
    motion = draw(st.sampled_from([None, Motion(draw_array(3), draw_array(3), draw_array(20))]))
    raw = draw(st.sampled_from([None, draw_array(21, 3)]))
    return WireHand(draw(whole), draw(number), pose, raw, visible, motion)


@settings(max_examples=60, deadline=None)
@given(
    camera=names,
    times=st.tuples(whole, whole, whole, whole),
    hands=st.lists(wire_hands(), max_size=3),
    stages=st.dictionaries(names, number, max_size=5),
    dropped=whole,
)
def test_whatever_is_encoded_decodes_to_the_same(camera, times, hands, stages, dropped) -> None:
    header = Header(camera, *times)
    joints = decode(encode_joints(header, hands, stages_us=stages, dropped=dropped))
    mesh = decode(encode_mesh(header, hands))
    assert (joints.camera, joints.seq, joints.t_capture_ns, joints.t_capture_unix_ns, joints.t_publish_ns) == (
        camera,
        *times,
    )
    assert joints.stages_us == stages and joints.dropped == dropped
    for source, hand, shape in zip(hands, joints.hands, mesh.hands, strict=True):
        pose = source.pose
        assert (hand.id, hand.side, hand.state, hand.score) == (source.id, pose.side, pose.state, pose.score)
        assert hand.fit_mm == (None if np.isnan(pose.fit_mm) else pose.fit_mm)
        np.testing.assert_array_equal(hand.joints_m, pose.joints_m)
        np.testing.assert_array_equal(hand.angles_rad, pose.theta[6:])
        np.testing.assert_array_equal(shape.vertices_m, pose.vertices_m)
        assert (hand.joints_raw_m is None) == (source.joints_raw_m is None)
        np.testing.assert_equal(hand.visible, source.visible)
        np.testing.assert_equal(hand.motion, source.motion)


if __name__ == "__main__":
    write_golden()
