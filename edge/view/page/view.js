// The page of `edge-hand view`: where the pictures go, what is written beside them, and the mouse.

import { COLOURS, Painter, tone } from "./draw.js";
import { Eye, IDENTITY, moved, projected } from "./geometry.js";
import { Panel } from "./panel.js";
import { follow } from "./stream.js";

const canvas = document.querySelector("#scene");
const labels = document.querySelector("#labels");
const notice = document.querySelector("#notice");
const panel = new Panel(document);
const scenes = new Map(); // the newest scene of each camera
const eyes = new Map(); // of each cell
let packet = { cameras: [], silent: [] };
let cells = [];
let painter = null;
let blind = ""; // why there is no picture
let isDue = false;

try {
  painter = new Painter(canvas);
} catch (error) {
  goBlind(error.message);
}
canvas.addEventListener("webglcontextlost", (event) => {
  event.preventDefault(); // only then is it restored
  goBlind("the browser lost its graphics; reload the page if they do not come back");
});
canvas.addEventListener("webglcontextrestored", () => location.reload());

follow(
  (newest) => {
    packet = newest;
    if (packet.faces && painter) painter.setFaces(packet.faces);
    if (painter) painter.unit = packet.unit;
    for (const camera of packet.cameras) if (camera.scene) scenes.set(camera.key, camera.scene);
    panel.show(packet);
    tell(blind || (packet.cameras.length ? "" : waiting(packet.silent)));
    draw();
  },
  () => {
    for (const camera of packet.cameras) [camera.hands, camera.here, camera.state] = [[], false, null]; // nothing old is shown as new
    panel.show(packet);
    panel.lost();
    tell("edge-hand view does not answer; trying again");
    draw();
  },
);

function waiting(silent) {
  return `waiting for ${silent.join(", ") || "a camera"}; is edge-hand run going there?`;
}

function goBlind(why) {
  blind = `${why}; the numbers on the right are there all the same`;
  tell(blind);
}

function tell(text) {
  notice.hidden = !text;
  notice.textContent = text;
}

function draw() {
  if (isDue || !painter) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const shown = panel.shown();
    cells = arranged(packet.cameras);
    for (const cell of cells) cell.eye.follow(middle(cell), performance.now());
    painter.draw(cells, shown);
    label();
  });
}

// Cameras whose place in a rig is known share a cell, each of the others has its own.
function arranged(cameras) {
  const seen = cameras.filter((c) => c.here || c.hands.length || cameras.length === 1);
  const withLook = (camera) => ({ camera, scene: camera.here ? scenes.get(camera.key) : null, colour: COLOURS[look(camera)] });
  const placed = seen.filter((c) => c.T);
  const groups = seen.filter((c) => !c.T).map((c) => [c.key, [c]]);
  if (placed.length) groups.unshift(["rig", placed]);
  const columns = Math.ceil(Math.sqrt(groups.length));
  const rows = Math.ceil(groups.length / columns);
  const [width, height] = [canvas.clientWidth / columns, canvas.clientHeight / rows];
  return groups.map(([key, group], i) => {
    if (!eyes.has(key)) eyes.set(key, new Eye());
    const [x, y] = [(i % columns) * width, Math.floor(i / columns) * height];
    return { key, x, y, width, height, eye: eyes.get(key), cameras: group.map(withLook) };
  });
}

function look(camera) {
  return camera.here ? tone(camera.state) : "bad";
}

function middle(cell) {
  const points = cell.cameras.flatMap(({ camera }) =>
    camera.hands.map((hand) => moved(camera.T || IDENTITY, ...hand.joints.subarray(27, 30))),
  );
  return points.length ? [0, 1, 2].map((i) => points.reduce((sum, p) => sum + p[i], 0) / points.length) : null;
}

// Names over the cells and beside the hands.
function label() {
  const wanted = [];
  for (const cell of cells) {
    const world = cell.eye.matrix(cell.width / cell.height);
    const alone = cell.cameras.length === 1 ? cell.cameras[0].camera : null;
    wanted.push({ kind: "title", at: [cell.x, cell.y], camera: alone, text: alone ? alone.camera : "rig" });
    for (const { camera } of cell.cameras)
      for (const hand of camera.hands) {
        const wrist = projected(world, moved(camera.T || IDENTITY, ...hand.joints.subarray(0, 3)));
        if (!wrist) continue;
        const at = [cell.x + ((wrist[0] + 1) / 2) * cell.width - 60, cell.y + ((1 - wrist[1]) / 2) * cell.height + 44];
        wanted.push({ kind: "tag", at, text: `${hand.side} ${hand.id} · ${hand.state} · ${hand.score.toFixed(2)}`, tone: tone(hand.state) });
      }
  }
  while (labels.children.length > wanted.length) labels.lastChild.remove();
  while (labels.children.length < wanted.length) labels.append(document.createElement("div"));
  wanted.forEach((one, i) => {
    const box = labels.children[i];
    box.className = `${one.kind} ${one.tone || ""}`;
    box.style.transform = `translate(${one.at[0]}px, ${one.at[1]}px)`;
    if (one.kind === "tag" || !one.camera) box.textContent = one.text;
    else box.replaceChildren(one.text, chip(one.camera), says(one.camera));
  });
}

function chip(camera) {
  const span = document.createElement("span");
  span.className = `chip ${look(camera)}`;
  span.textContent = camera.here ? camera.state || "no status yet" : camera.state ? "gone" : "unknown";
  return span;
}

function says(camera) {
  const small = document.createElement("small");
  small.className = look(camera) === "bad" ? "bad" : "";
  small.textContent = camera.here ? camera.message || "" : panel.absence(camera);
  return small;
}

// --- the mouse

let held = null;
const cellAt = (event) => cells.find((c) => inside(event.offsetX - c.x, c.width) && inside(event.offsetY - c.y, c.height));
const inside = (at, size) => at >= 0 && at < size;

canvas.addEventListener("pointerdown", (event) => {
  held = cellAt(event);
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener("pointermove", (event) => {
  if (!held || !event.buttons) return;
  if (event.shiftKey || event.buttons & 6) held.eye.move(event.movementX, event.movementY, held.height);
  else held.eye.drag(event.movementX, event.movementY);
  draw();
});
canvas.addEventListener("pointerup", () => (held = null));
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("dblclick", (event) => {
  cellAt(event)?.eye.reset();
  draw();
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    cellAt(event)?.eye.zoom(event.deltaY);
    draw();
  },
  { passive: false },
);
window.addEventListener("resize", draw);
document.querySelector("#shown").addEventListener("change", draw);
