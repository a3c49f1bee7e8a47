// 4x4 matrices column by column, as WebGL has them, and the eye that looks at the hands.

export const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
export const [NEAR, FAR] = [0.02, 20]; // m, between which things are drawn
const FIELD_RAD = 0.7; // of view, from bottom to top

export function product(a, b) {
  const out = new Array(16).fill(0);
  for (let c = 0; c < 4; c++)
    for (let r = 0; r < 4; r++) for (let k = 0; k < 4; k++) out[4 * c + r] += a[4 * k + r] * b[4 * c + k];
  return out;
}

export function moved(m, x, y, z) {
  return [0, 1, 2].map((r) => m[r] * x + m[4 + r] * y + m[8 + r] * z + m[12 + r]);
}

// Where a point lies in the picture, from -1 to 1, up is positive; null behind the eye.
export function projected(m, [x, y, z]) {
  const w = m[3] * x + m[7] * y + m[11] * z + m[15];
  if (w < 0.01) return null;
  return [(m[0] * x + m[4] * y + m[8] * z + m[12]) / w, (m[1] * x + m[5] * y + m[9] * z + m[13]) / w];
}

// An eye around a target, metres; turned 0 it looks along the depth camera's z, which has y downwards.
export class Eye {
  constructor() {
    this.reset();
  }

  reset() {
    this.target = [0, 0, 0.5];
    this.turn = 0.32;
    this.raise = 0.3;
    this.distance = 0.52;
    this.isHeld = false; // by the mouse: then it does not follow
    this.aimedMs = -Infinity; // at a hand, last
  }

  // Follow where the hands are, gently; at once when they come first or are far off.
  follow(point, nowMs) {
    if (this.isHeld || !point) return;
    const away = Math.hypot(...point.map((p, i) => p - this.target[i]));
    const share = away > 0.6 * this.distance ? 1 : 1 - Math.exp(-(nowMs - this.aimedMs) / 700);
    this.target = this.target.map((t, i) => t + share * (point[i] - t));
    this.aimedMs = nowMs;
  }

  drag(dx, dy) {
    this.isHeld = true;
    this.turn -= dx * 0.006;
    this.raise = Math.max(-1.5, Math.min(1.5, this.raise + dy * 0.006));
  }

  move(dx, dy, height) {
    this.isHeld = true;
    const scale = (2 * this.distance * Math.tan(FIELD_RAD / 2)) / height;
    const [right, up] = this.axes();
    this.target = this.target.map((t, i) => t - right[i] * dx * scale + up[i] * dy * scale);
  }

  zoom(steps) {
    this.distance = Math.max(0.08, Math.min(8, this.distance * Math.exp(steps * 0.0012)));
  }

  axes() {
    const [ct, st, cr, sr] = [Math.cos(this.turn), Math.sin(this.turn), Math.cos(this.raise), Math.sin(this.raise)];
    const forward = [-st * cr, sr, ct * cr];
    const right = [ct, 0, st];
    const up = [-st * sr, -cr, ct * sr];
    return [right, up, forward];
  }

  // Points of the world to the picture.
  matrix(aspect) {
    const [right, up, forward] = this.axes();
    const at = this.target.map((t, i) => t - forward[i] * this.distance);
    const dot = (a) => -(a[0] * at[0] + a[1] * at[1] + a[2] * at[2]);
    const view = [0, 1, 2].flatMap((i) => [right[i], up[i], -forward[i], 0]);
    view.push(dot(right), dot(up), -dot(forward), 1);
    const f = 1 / Math.tan(FIELD_RAD / 2);
    const lens = [f / aspect, 0, 0, 0, 0, f, 0, 0, 0, 0, (FAR + NEAR) / (NEAR - FAR), -1, 0, 0, (2 * FAR * NEAR) / (NEAR - FAR), 0];
    return product(lens, view);
  }

  // Pixels of a metre at a distance of one metre, in a picture so high.
  static pixels(height) {
    return height / (2 * Math.tan(FIELD_RAD / 2));
  }
}

// Normals of a mesh: int16 vertices and triangles to float32, not of unit length.
export function normals(vertices, faces) {
  const out = new Float32Array(vertices.length);
  for (let i = 0; i < faces.length; i += 3) {
    const [a, b, c] = [3 * faces[i], 3 * faces[i + 1], 3 * faces[i + 2]];
    if (Math.max(a, b, c) + 2 >= vertices.length) continue;
    const [ux, uy, uz] = [vertices[b] - vertices[a], vertices[b + 1] - vertices[a + 1], vertices[b + 2] - vertices[a + 2]];
    const [vx, vy, vz] = [vertices[c] - vertices[a], vertices[c + 1] - vertices[a + 1], vertices[c + 2] - vertices[a + 2]];
    const n = [uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx];
    for (const at of [a, b, c]) for (let k = 0; k < 3; k++) out[at + k] += n[k];
  }
  return out;
}
