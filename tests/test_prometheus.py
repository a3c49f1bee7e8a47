"""The metrics as a scraper sees them."""

from __future__ import annotations

import contextlib
import math
import resource
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from edge_hand.edge.cameras.synthetic import SyntheticCamera
from edge_hand.edge.engines import open_engine
from edge_hand.edge.loop import Loop
from edge_hand.edge.publish import Publisher
from edge_hand.edge.tracker import STAGES, Tracker
from edge_hand.edge.view.http_server import MOST_AT_ONCE, POLL_S, Handler, LocalServer, ServeError
from edge_hand.edge.view.metrics import CONTENT_TYPE, Metrics

FRAMES = 5


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


def scraped(metrics: Metrics) -> str:
    with urllib.request.urlopen(metrics.url, timeout=60) as answer:
        assert answer.headers["Content-Type"] == CONTENT_TYPE
        return answer.read().decode()


@contextmanager
def a_loop() -> Iterator[tuple[Loop, Metrics]]:
    """A loop that has seen some frames, with its metrics."""
    with SyntheticCamera(0, "424x240@30", fps=0) as camera, Publisher("tcp://127.0.0.1:*") as publisher:
        minders: list[Metrics] = []
        loop = Loop(camera, Tracker(open_engine()), publisher, minders=minders)
        metrics = Metrics("127.0.0.1:0", lambda: loop)
        minders.append(metrics)
        loop.say("starting")
        for seq in (*range(FRAMES - 1), FRAMES + 1):  # two are skipped
            loop.handle(camera.frame(seq))
        try:
            yield loop, metrics
        finally:
            metrics.close()


def test_prometheus_own_parser_reads_what_the_loop_counted() -> None:
    parser = pytest.importorskip("prometheus_client.parser", reason="needs prometheus_client")
    with a_loop() as (loop, metrics):
        text = scraped(metrics)
        families = {family.name: family for family in parser.text_string_to_metric_families(text)}
        stalled = {"tracked": 0.0, "stalled": 1.0}
        loop.say("stalled", "no frame")
        after = {family.name: family for family in parser.text_string_to_metric_families(scraped(metrics))}
        expected = sum(1 for track in loop.tracker.tracks if track.published)
    assert all(sample.labels["camera"] == "synthetic-0" for f in families.values() for sample in f.samples)

    def value(name: str, **labels: str) -> float:
        family = families[name.removesuffix("_total").removesuffix("_sum").removesuffix("_count")]
        (found,) = [s.value for s in family.samples if s.name == name and labels.items() <= s.labels.items()]
        return found

    assert value("edge_hand_frames_total") == FRAMES and families["edge_hand_frames"].type == "counter"
    assert value("edge_hand_frames_dropped_total") == 2
    assert value("edge_hand_hands") == expected == 1
    assert value("edge_hand_state", state="tracked") == 1 and value("edge_hand_state", state="lost") == 0
    assert {s.labels["state"]: s.value for s in after["edge_hand_state"].samples}.items() >= stalled.items()
    for stage in STAGES:
        quantiles = [value("edge_hand_stage_seconds", stage=stage, quantile=q) for q in ("0.5", "0.9", "0.99")]
        assert quantiles == sorted(quantiles) and all(math.isfinite(q) for q in quantiles)
        assert value("edge_hand_stage_seconds_count", stage=stage) == FRAMES
    assert 1e-4 < value("edge_hand_stage_seconds", stage="engine", quantile="0.5") < 10
    (info,) = families["edge_hand_info"].samples
    assert info.labels["model"].startswith("dgn-nano") and "onnxruntime" in info.labels["engine"]


def test_every_number_is_the_loops_in_seconds() -> None:
    """Without a parser's help: 1001 frames whose engine took 1 to 1001 ms, the first of them out of the window."""
    tracks = [SimpleNamespace(published=published) for published in (True, False, True)]
    card = SimpleNamespace(name='a "b"\n\\c', sha256="0123456789abcdef")
    tracker = SimpleNamespace(
        stages_us={"engine": 0.0}, tracks=tracks, engine=SimpleNamespace(name="onnxruntime", card=card)
    )
    totals = SimpleNamespace(frames=1001, dropped=7, bad_frames=3)
    camera, publisher = SimpleNamespace(name="front"), SimpleNamespace(dropped=11)
    loop = SimpleNamespace(tracker=tracker, totals=totals, camera=camera, publisher=publisher, total_us=0.0, fps=29.5)
    metrics = Metrics("0", lambda: loop)  # type: ignore[arg-type,return-value]
    try:
        for ms in range(1, 1002):
            tracker.stages_us["engine"], loop.total_us = 1e3 * ms, 2e3 * ms
            metrics.frame()
        metrics.status("predicted", "")
        before = metrics.text()
        totals.bad_frames = 4
        metrics.status("stalled", "no frame")  # no frame came, and one more could not be used
        lines = dict(line.rsplit(" ", 1) for line in metrics.text().splitlines() if line[0] != "#")
    finally:
        metrics.close()
    found = {name.removeprefix("edge_hand_").replace('camera="front"', ""): float(v) for name, v in lines.items()}
    expected = {
        "frames_total{}": 1001, "frames_dropped_total{}": 7, "frames_bad_total{}": 4, "messages_refused_total{}": 11,
        "hands{}": 2, "fps{}": 29.5, 'state{,state="stalled"}': 1, 'state{,state="predicted"}': 0,
        'stage_seconds{,stage="engine",quantile="0.5"}': 0.5015, 'stage_seconds_sum{,stage="engine"}': 501.501,
        'stage_seconds_count{,stage="engine"}': 1001, 'latency_seconds{,quantile="0.99"}': 1.98202,
        "latency_seconds_sum{}": 1003.002, "latency_seconds_count{}": 1001,
        'info{,engine="onnxruntime",model="a \\"b\\"\\n\\\\c 0123456789ab"}': 1,
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == pytest.approx(expected, abs=1e-9)
    assert 0 <= found["uptime_seconds{}"] < 60
    assert 'frames_bad_total{camera="front"} 3\n' in before and 'state="predicted"} 1\n' in before


def test_before_the_first_frame_there_is_something_to_read() -> None:
    metrics = Metrics("0", lambda: pytest.fail("there is no loop yet"))
    try:
        text = scraped(metrics)
    finally:
        metrics.close()
    assert "edge_hand_frames_total{} 0\n" in text and 'edge_hand_state{state="starting"} 1\n' in text


def test_a_frame_costs_the_loop_next_to_nothing() -> None:
    with a_loop() as (_, metrics):
        times = []
        for _ in range(300):
            begun = time.perf_counter()
            sum(range(10_000))
            between = time.perf_counter()
            metrics.frame()
            times.append((time.perf_counter() - between, between - begun))
    frame_s, sum_s = (sorted(some)[100] for some in zip(*times, strict=True))
    assert frame_s < sum_s / 5, "a sixtieth was measured"


def test_a_client_that_says_nothing_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "timeout", 90.0)  # longer than who scrapes waits
    with a_loop() as (_, metrics):
        host, port = metrics.url.removeprefix("http://").partition("/")[0].split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(4)]
        assert "edge_hand_fps" in scraped(metrics)
        for connection in silent:
            connection.close()


def test_other_paths_are_not_found() -> None:
    with a_loop() as (_, metrics), pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(metrics.url + "/etc/passwd", timeout=60)


class Hello(Handler):
    def get(self, path: str) -> None:
        self.answer(200, "text/plain", path.encode())


def test_clients_that_send_a_byte_now_and_then_hold_no_place_for_ever() -> None:
    class Brief(Hello):
        timeout = 0.5

    with LocalServer("127.0.0.1", 0, Brief) as server:
        server.start()
        slow = [socket.create_connection((server.host, server.server_port)) for _ in range(MOST_AT_ONCE)]
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.send(b"G")
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                assert read(server.url) == "/"
                break
        else:
            pytest.fail("they hold all of them")
        for connection in slow:
            connection.close()


def test_a_server_without_a_free_file_waits_for_one() -> None:
    class Counted(LocalServer):
        def get_request(self) -> tuple[Any, Any]:
            tried.append(time.monotonic())
            return super().get_request()

    with Counted("127.0.0.1", 0, Hello) as server:
        limits, tried = resource.getrlimit(resource.RLIMIT_NOFILE), list[float]()
        with socket.create_connection((server.host, server.server_port)):
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (1, limits[1]))  # those that are open stay so
                server.start()
                end_s = time.monotonic() + 60
                while len(tried) < 5 and time.monotonic() < end_s:
                    time.sleep(0.01)
                gaps_s = [b - a for a, b in pairwise(tried)]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert len(gaps_s) >= 4 and min(gaps_s) >= POLL_S and read(server.url) == "/"


def test_what_is_no_address_is_refused_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with LocalServer("127.0.0.1", 0, Hello) as server:
        server.start()
        with socket.create_connection((server.host, server.server_port), timeout=60) as connection:
            connection.sendall(b"GET http://[ HTTP/1.0\r\nHost: localhost\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert answer.startswith(b"HTTP/1.0 400 ") and answer.endswith(b"\r\n\r\nthis is no address\n")
        assert read(server.url + "a?b") == "/a"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "--metrics nonsense: expected [HOST:]PORT, for example 127.0.0.1:9100"),
        ("127.0.0.1:99999", "--metrics 127.0.0.1:99999: expected [HOST:]PORT, for example 127.0.0.1:9100"),
        (
            "example.org:9100",
            "--metrics example.org: expected a numeric address of this machine, for example",
        ),
        ("0.0.0.0:9100", "--metrics 0.0.0.0: anyone who can reach this address could read it; take 127.0.0.1 "),
    ],
)
def test_an_address_that_cannot_be_or_is_open_to_others_is_refused(address: str, says: str) -> None:
    with pytest.raises(ServeError) as caught:
        Metrics(address, lambda: pytest.fail("not called"))
    assert str(caught.value).startswith(says)


def test_a_port_that_is_taken_is_one_line() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ServeError, match=f"^--metrics 127.0.0.1:{port}: address already in use; take another"):
            Metrics(f"{port}", lambda: pytest.fail("not called"))


@pytest.mark.slow
def test_run_serves_its_metrics_where_it_says() -> None:
    command = [sys.executable, "-m", "edge_hand.edge.cli.main", "run", "--camera", "synthetic", "--mode", "424x240@30"]
    command += ["--no-view", "--bind", "tcp://127.0.0.1:*", "--metrics", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        try:
            said = next(line for line in process.stdout if line.startswith("metrics at "))
            url = said.removeprefix("metrics at ").strip()
            end = time.monotonic() + 60
            while 'edge_hand_state{camera="synthetic-0",state="tracked"} 1' not in (text := read(url)):
                assert time.monotonic() < end, text
                time.sleep(0.1)
        finally:
            process.terminate()


def test_a_daemon_that_waits_for_its_camera_has_its_port_or_has_said_why_not() -> None:
    command = [sys.executable, "-m", "edge_hand.edge.cli.main", "run", "--camera", "replay", "--source", "not-yet.mcap"]
    command += ["--wait", "--no-view", "--no-tune", "--bind", "tcp://127.0.0.1:*", "--metrics"]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        assert first.stdout is not None
        try:
            url = next(line for line in first.stdout if line.startswith("metrics at ")).split()[-1]
            assert 'edge_hand_state{state="starting"} 1' in read(url)
            port = url.split(":")[-1].split("/")[0]
            second = subprocess.run([*command, port], capture_output=True, text=True, timeout=60, check=False)
            assert second.returncode == 1
            assert second.stderr.startswith(f"edge-hand: --metrics 127.0.0.1:{port}: address already in use")
        finally:
            first.terminate()
