"""The page of `edge-hand view`: its files in Node, and all of it in a headless browser."""

from __future__ import annotations

import importlib.util
import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edge_hand.edge.engines import Engine
from edge_hand.edge.view.live import PAGE, served
from edge_hand.edge.view.packet import Packets
from edge_hand.edge.view.status import duration
from test_view import daemon

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# As much of a document as the page's files ask for.
DOM = """
class Element extends EventTarget {
  constructor(name = "") {
    super();
    Object.assign(this, { name, children: [], style: {}, textContent: "" });
  }
  append(...parts) { for (const part of parts) this.children.push(Object.assign(part, { parent: this })); }
  prepend(part) { this.children.unshift(part); }
  replaceChildren(...parts) { this.children = parts; }
  remove() { this.parent.children = this.parent.children.filter((one) => one !== this); }
  getContext() { return graphics; }
}
const elements = {};
let graphics = null;
globalThis.window = new EventTarget();
globalThis.requestAnimationFrame = () => {};
globalThis.document = {
  createElement: () => new Element(),
  querySelector: (name) => (elements[name] ??= new Element(name)),
  querySelectorAll: () => [],
};
const numbers = { frames: 1, dropped: 0, bad_frames: 0, fps: 90, latency_ms: 1, age_ms: 1 };
const camera = (key) => ({ key, camera: key, here: true, state: "tracked", hands: [], stages_ms: {}, ...numbers });
const packet = (...keys) => ({ cameras: keys.map(camera), events: [], silent: [] });
"""


def in_node(folder: Path, script: str) -> list[str]:
    """What a script beside the page's files prints."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    for path in PAGE.glob("*.js"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "test.js").write_text(script)
    done = subprocess.run(["node", "test.js"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_stream_that_falls_silent_without_closing_is_lost(tmp_path: Path) -> None:
    packet = Packets().packet([], None, now_s=0.0).hex()
    lines = in_node(
        tmp_path,
        """
        import http from "node:http";
        import { follow } from "./stream.js";
        const [later, far] = [setTimeout, fetch];
        globalThis.setTimeout = (what, ms) => later(what, ms / 4); // a quick clock
        const server = http.createServer((_, answer) => {
          let left = 15;
          const send = () => left-- && answer.write(Buffer.from("PACKET", "hex")) && later(send, 25); // then silence
          send();
        });
        server.listen(0, "127.0.0.1", () => {
          const origin = `http://127.0.0.1:${server.address().port}`;
          globalThis.fetch = (path, options) => far(origin + path, options);
          later(() => process.exit(), 5000);
          follow(() => console.log("packet"), () => console.log("lost") || process.exit());
        });
        """.replace("PACKET", packet),
    )
    assert lines == ["packet"] * 15 + ["lost"]


def test_the_panel_forgets_cameras_that_view_shows_no_more(tmp_path: Path) -> None:
    lines = in_node(
        tmp_path,
        DOM
        + """
        const { Panel } = await import("./panel.js");
        const panel = new Panel(document);
        for (const keys of [["front", "side"], ["side"], ["front"]]) {
          panel.show(packet(...keys));
          console.log(elements["#cameras"].children.map((card) => card.children[0].textContent).join());
        }
        """,
    )
    assert lines == ["front,side", "side", "front"]


def test_the_panel_tells_weeks_as_the_status_does(tmp_path: Path) -> None:
    seconds = (59, 61, 3599, 3661, 86399, 86400, 21 * 86400 + 7300)
    lines = in_node(
        tmp_path,
        DOM
        + f"""
        const {{ Panel }} = await import("./panel.js");
        for (const s of {list(seconds)}) {{
          const card = new Element();
          new Panel(document).fill(card, {{ ...camera("front"), engine: "cpu", model: "net", uptime_s: s + 0.9 }});
          console.log(card.children.at(-1).textContent);
        }}
        """,
    )
    assert lines == [f"cpu, net; up {duration(s)}" for s in seconds]


# What view.js says, line by line, while a stream comes, breaks, and comes again for ever.
NOTICES = """
const bytes = new TextEncoder().encode(JSON.stringify(packet("front")));
const body = new Uint8Array(8 + bytes.length);
new DataView(body.buffer).setUint32(0, 4 + bytes.length, true);
new DataView(body.buffer).setUint32(4, bytes.length, true);
body.set(bytes, 8);
globalThis.fetch = async () => new Response(body);
const later = setTimeout;
globalThis.setTimeout = (what, ms) => later(what, ms / 50);
elements["#notice"] = { set textContent(text) { console.log(text); } };
"""


def test_a_browser_without_graphics_is_told_so_again_when_the_stream_is_back(tmp_path: Path) -> None:
    lines = in_node(tmp_path, DOM + NOTICES + "await import('./view.js'); later(() => process.exit(), 200);")
    blind = "this browser has no WebGL 2; the numbers on the right are there all the same"
    assert lines[:4] == [blind, blind, "edge-hand view does not answer; trying again", blind]


def test_a_browser_that_loses_its_graphics_says_so_and_begins_anew_when_they_are_back(tmp_path: Path) -> None:
    lines = in_node(
        tmp_path,
        DOM
        + NOTICES
        + """
        graphics = new Proxy({}, { get: () => () => ({}) });
        globalThis.location = { reload: () => console.log("reloaded") || process.exit() };
        const lost = new Event("webglcontextlost", { cancelable: true });
        await import("./view.js");
        later(() => console.log(elements["#scene"].dispatchEvent(lost) ? "never restored" : "to be restored"), 100);
        later(() => elements["#scene"].dispatchEvent(new Event("webglcontextrestored")), 300);
        later(() => process.exit(), 500);
        """,
    )
    at = lines.index("to be restored")
    assert set(lines[: at - 1]) == {"", "edge-hand view does not answer; trying again"}
    assert lines[at - 1].startswith("the browser lost its graphics; reload") and lines[-1] == "reloaded"
    assert set(lines[at + 1 : -1]) == {lines[at - 1], "edge-hand view does not answer; trying again"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None or CHROMIUM is None:
        pytest.skip("needs a browser: pip install playwright, and chromium on the PATH")
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


def hand_pixels(page: Any) -> dict[str, int]:
    """How many pixels of the scene have the green of a tracked hand, and the blue of its depth."""
    from PIL import Image

    shot = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    r, g, b = np.asarray(shot).astype(int).transpose(2, 0, 1)[:, 60:]
    return {"green": int(((g > 80) & (g > 1.4 * r) & (g > 1.25 * b)).sum()), "blue": int((b > r + 60).sum())}


def until(page: Any, expression: str, seconds: float = 60.0) -> None:
    """Playwright's own wait evaluates inside the page, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


@pytest.mark.slow
def test_a_browser_shows_the_hand_its_numbers_and_daemons_that_leave(
    browser: Any, engine: Engine, tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 900, "height": 600})
    troubles: list[str] = []
    page.on("console", lambda message: message.type == "error" and troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda r: r.url.startswith("http://127.0.0.1") or troubles.append(r.url))
    address = f"ipc://{tmp_path}/daemon"
    with served([address], port=0) as server:
        page.goto(server.url)
        until(page, "document.querySelector('#notice').textContent.includes('waiting for ipc')")
        with daemon(engine, address):
            page.wait_for_selector(".tag.good", timeout=60_000)  # the label of a tracked hand
            page.wait_for_selector(".stages .time", timeout=60_000)
            text = page.inner_text("#cameras")
            for word in ("synthetic-0", "tracked", "fps", "latency", "dropped", "age", "engine", "refit", address):
                assert word in text, text
            until(page, "parseFloat(document.querySelector('.numbers div').textContent) > 0")  # fps
            seen = hand_pixels(page)
            assert seen["green"] > 1500 and seen["blue"] > 100, seen
            for part in ("mesh", "bones", "points"):
                page.uncheck(f"input[value={part}]")
            end, bare = time.monotonic() + 60, seen
            while not (bare["green"] < seen["green"] / 3 and bare["blue"] < seen["blue"]):
                assert time.monotonic() < end, (seen, bare)
                page.wait_for_timeout(100)
                bare = hand_pixels(page)
            page.check("input[value=mesh]")
        page.wait_for_selector(".card .state.bad", timeout=60_000)
        assert "gone" in page.inner_text("#cameras") and "synthetic-0 left" in page.inner_text("#events")
        assert hand_pixels(page)["green"] < 200, "a hand is shown that nobody sees"
        assert troubles == []
    page.wait_for_selector("#link.bad", timeout=60_000)  # the view itself is gone too
    assert "unknown" in page.inner_text("#cameras")
    page.close()
