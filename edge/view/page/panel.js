// The words and numbers beside the picture.

import { tone } from "./draw.js";

export class Panel {
  constructor(page) {
    this.page = page;
    this.cards = new Map();
    this.written = 0;
  }

  // Which of scene, points, mesh and bones are to be drawn.
  shown() {
    return Object.fromEntries([...this.page.querySelectorAll("#shown input")].map((box) => [box.value, box.checked]));
  }

  show(packet) {
    const now = performance.now();
    const names = packet.cameras.map((c) => `${c.key} ${c.here} ${c.state}`).join();
    if (now - this.written < 200 && names === this.names) return; // numbers that change faster cannot be read
    this.written = now;
    this.names = names;
    this.link("live", "good");
    const list = this.page.querySelector("#cameras");
    for (const [key, card] of this.cards) {
      if (packet.cameras.some((c) => c.key === key)) continue;
      card.remove(); // view shows other cameras now
      this.cards.delete(key);
    }
    for (const camera of packet.cameras) {
      if (!this.cards.has(camera.key)) {
        this.cards.set(camera.key, this.make("section", "card"));
        list.append(this.cards.get(camera.key));
      }
      this.fill(this.cards.get(camera.key), camera);
    }
    const events = packet.events.map(([when, text]) => {
      const line = this.make("li", "", text);
      line.prepend(this.make("time", "", new Date(1000 * when).toLocaleTimeString([], { hour12: false })));
      return line;
    });
    this.page.querySelector("#events").replaceChildren(...events);
  }

  lost() {
    this.names = "";
    this.link("no answer", "bad");
  }

  link(text, colour) {
    const link = this.page.querySelector("#link");
    link.textContent = text;
    link.className = `chip ${colour}`;
  }

  absence(camera) {
    if (!camera.state) return "not known: edge-hand view does not answer";
    if (camera.state === "stopping") return camera.message || "its daemon was stopped";
    return `silent for ${Math.round(camera.silent_s)} s; its daemon does not answer`;
  }

  fill(card, camera) {
    card.className = camera.here ? "card" : "card away";
    const state = camera.here ? camera.state || "no status yet" : camera.state ? "gone" : "unknown";
    const top = this.make("div", "top", camera.camera);
    top.append(this.make("span", `chip ${camera.here ? tone(camera.state) : "bad"} state`, state));
    const parts = [top, this.make("div", "where", camera.address)];
    const says = camera.here ? camera.message : this.absence(camera);
    if (says) parts.push(this.make("div", `says ${camera.here && tone(camera.state) !== "bad" ? "" : "bad"}`, says));
    const numbers = this.make("div", "numbers");
    for (const [name, value] of this.numbers(camera)) {
      const box = this.make("div", "", value);
      box.append(this.make("small", "", name));
      numbers.append(box);
    }
    parts.push(numbers);
    if (camera.here) parts.push(this.stages(camera.stages_ms));
    const hands = camera.hands.map((h) => `${h.side} ${h.id} ${h.state}, ${h.fit_mm === null ? "not measured" : `fits to ${h.fit_mm.toFixed(1)} mm`}`);
    if (camera.here) parts.push(this.make("div", "hands", hands.join("; ") || "no hand"));
    if (camera.engine) parts.push(this.make("div", "where", `${camera.engine}, ${camera.model}; up ${span(camera.uptime_s)}`));
    card.replaceChildren(...parts);
  }

  numbers(camera) {
    const ms = (value) => (value === null ? "–" : value < 1000 ? `${value.toFixed(value < 100 ? 1 : 0)} ms` : span(value / 1000));
    const count = (value) => (value === null ? "–" : value.toLocaleString("en"));
    return [
      ["fps", camera.here && camera.fps !== null ? camera.fps.toFixed(1) : "–"],
      ["latency", ms(camera.latency_ms)],
      ["age", ms(camera.age_ms)],
      ["frames", count(camera.frames)],
      ["dropped", count(camera.dropped)],
      ["unusable", count(camera.bad_frames)],
    ];
  }

  stages(stages) {
    const box = this.make("div", "stages");
    const most = Math.max(1, ...Object.values(stages));
    for (const [name, ms] of Object.entries(stages)) {
      const bar = this.make("span", "bar");
      const fill = this.make("i", "");
      fill.style.width = `${(100 * ms) / most}%`;
      bar.append(fill);
      box.append(this.make("span", "", name), bar, this.make("span", "time", `${ms.toFixed(2)} ms`));
    }
    return box;
  }

  make(kind, style, text = "") {
    const element = this.page.createElement(kind);
    element.className = style;
    element.textContent = text;
    return element;
  }
}

function span(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  const h = Math.floor(s / 3600);
  return h < 24 ? `${h} h ${Math.floor((s % 3600) / 60)} min` : `${Math.floor(h / 24)} d ${h % 24} h`;
}
