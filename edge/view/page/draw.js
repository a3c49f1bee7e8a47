// Points, meshes, bones and cameras, drawn with WebGL 2 alone.

import { Eye, FAR, IDENTITY, NEAR, normals, product } from "./geometry.js";

const BONES = [0, 1, 0, 5, 0, 17, 5, 9, 9, 13, 13, 17];
for (let f = 0; f < 5; f++) for (let k = 1; k < 4; k++) BONES.push(4 * f + k, 4 * f + k + 1);
export const COLOURS = { good: [0.26, 0.85, 0.55], warn: [1.0, 0.71, 0.28], bad: [1.0, 0.36, 0.36] };
const POINT = [0.56, 0.83, 1.0];

const POINTS = [
  `#version 300 es
  layout(location=0) in vec3 p;
  uniform mat4 m; uniform float unit, size, least; uniform int kind; uniform vec2 behind; out float far;
  void main() {
    gl_Position = m * vec4(p * unit, 1.0);
    // The scene's large points lie 4 cm behind themselves, so that they do not cover the hand they are of.
    if (kind == 0) gl_Position.z = (behind.x - behind.y / (gl_Position.w + 0.04)) * gl_Position.w;
    far = p.z * unit;
    gl_PointSize = max((kind == 0 ? size * far : size) / gl_Position.w, least);
  }`,
  `#version 300 es
  precision highp float; precision highp int;
  in float far; uniform vec3 colour; uniform int kind; out vec4 seen;
  void main() {
    vec2 q = 2.0 * gl_PointCoord - 1.0;
    float r = dot(q, q);
    if (r > 1.0) discard;
    if (kind == 0) seen = vec4(mix(vec3(0.47, 0.54, 0.66), vec3(0.12, 0.145, 0.19), smoothstep(0.35, 1.7, far)), 1.0);
    else if (kind == 1) seen = vec4(colour, 1.0);
    else {
      float light = 0.35 + 0.65 * sqrt(1.0 - r) + 0.25 * max(0.0, 1.0 - dot(q + vec2(0.35), q + vec2(0.35)) * 4.0);
      seen = vec4(colour * light, 1.0);
    }
  }`,
];
const MESH = [
  `#version 300 es
  layout(location=0) in vec3 p; layout(location=1) in vec3 n;
  uniform mat4 m, turn; uniform float unit; out vec3 normal;
  void main() {
    gl_Position = m * vec4(p * unit, 1.0);
    normal = mat3(turn) * n;
  }`,
  `#version 300 es
  precision highp float; precision highp int;
  in vec3 normal; uniform vec3 colour, toEye; uniform float alpha; out vec4 seen;
  void main() {
    vec3 n = normalize(normal);
    float facing = abs(dot(n, toEye));
    float side = 0.5 + 0.5 * abs(dot(n, normalize(vec3(0.5, -0.8, -0.3))));
    seen = vec4(colour * (0.22 + 0.85 * facing * side) + 0.2 * pow(1.0 - facing, 3.0), alpha);
  }`,
];
const LINES = [
  `#version 300 es
  layout(location=0) in vec3 p; layout(location=1) in vec3 q; layout(location=2) in vec2 corner;
  uniform mat4 m; uniform vec2 picture; uniform float width;
  void main() {
    vec4 a = m * vec4(p, 1.0), b = m * vec4(q, 1.0);
    vec2 along = (b.xy / b.w - a.xy / a.w) * picture;
    vec2 across = normalize(vec2(-along.y, along.x) + 1e-6) * corner.y * width / picture;
    vec4 here = corner.x < 0.5 ? a : b;
    gl_Position = vec4(here.xy + across * here.w, here.zw);
  }`,
  `#version 300 es
  precision highp float; precision highp int;
  uniform vec3 colour; uniform float alpha; out vec4 seen;
  void main() { seen = vec4(colour, alpha); }`,
];

export class Painter {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: true, alpha: false }));
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.points = program(gl, POINTS);
    this.mesh = program(gl, MESH);
    this.lines = program(gl, LINES);
    this.buffers = [gl.createBuffer(), gl.createBuffer()];
    this.faceBuffer = gl.createBuffer();
    this.faces = null;
    this.unit = 2e-4;
    gl.enable(gl.DEPTH_TEST);
    gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
  }

  setFaces(faces) {
    this.faces = faces;
    this.gl.bindBuffer(this.gl.ELEMENT_ARRAY_BUFFER, this.faceBuffer);
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, faces, this.gl.STATIC_DRAW);
  }

  // cells: {x, y, width, height in CSS pixels, eye, cameras: [{camera, scene, colour}]}
  draw(cells, shown) {
    const { gl, canvas } = this;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    gl.disable(gl.SCISSOR_TEST);
    gl.clearColor(0.051, 0.063, 0.082, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.SCISSOR_TEST);
    for (const cell of cells) {
      const box = [cell.x, canvas.clientHeight - cell.y - cell.height, cell.width, cell.height].map((v) => Math.round(v * ratio));
      gl.viewport(...box);
      gl.scissor(...box);
      const world = cell.eye.matrix(cell.width / cell.height);
      const parts = cell.cameras.map((seen) => ({ ...seen, place: seen.camera.T || IDENTITY, m: product(world, seen.camera.T || IDENTITY) }));
      for (const part of parts) this.drawDepth(part, box, ratio, shown);
      if (shown.mesh && this.faces) for (const part of parts) this.drawMeshes(part, cell.eye);
      gl.clear(gl.DEPTH_BUFFER_BIT); // joints are seen through the skin
      for (const part of parts) this.drawBones(part, box, ratio, shown);
    }
  }

  drawDepth({ camera, scene, m, colour }, box, ratio, shown) {
    const metre = Eye.pixels(box[3]);
    if (shown.scene && scene) this.drawPoints(m, scene, this.unit, { kind: 0, size: 0.6 * camera.spacing * metre, least: 1.5 * ratio });
    if (shown.points)
      for (const hand of camera.hands)
        if (hand.points) this.drawPoints(m, hand.points, this.unit, { kind: 1, size: 0.0012 * metre, least: 1.3 * ratio, colour: POINT });
    this.drawLines(m, frustum(), colour, 1.2 * ratio, 0.75, box);
  }

  drawMeshes({ camera, place, m }, eye) {
    const { gl, mesh } = this;
    const forward = eye.axes()[2];
    gl.useProgram(mesh.program);
    gl.uniformMatrix4fv(mesh.at("m"), false, m);
    gl.uniformMatrix4fv(mesh.at("turn"), false, place);
    gl.uniform3f(mesh.at("toEye"), -forward[0], -forward[1], -forward[2]);
    gl.uniform1f(mesh.at("unit"), this.unit);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.faceBuffer);
    for (const hand of camera.hands) {
      if (!hand.mesh) continue;
      this.give(0, hand.mesh, 3, gl.SHORT);
      this.give(1, normals(hand.mesh, this.faces), 3, gl.FLOAT);
      gl.uniform3fv(mesh.at("colour"), COLOURS[tone(hand.state)]);
      // First where it is, then its nearest skin: the far side does not shine through.
      gl.colorMask(false, false, false, false);
      gl.drawElements(gl.TRIANGLES, this.faces.length, gl.UNSIGNED_SHORT, 0);
      gl.colorMask(true, true, true, true);
      gl.depthFunc(gl.LEQUAL);
      gl.enable(gl.BLEND);
      gl.uniform1f(mesh.at("alpha"), hand.state === "tracked" ? 0.82 : 0.6);
      gl.drawElements(gl.TRIANGLES, this.faces.length, gl.UNSIGNED_SHORT, 0);
      gl.disable(gl.BLEND);
      gl.depthFunc(gl.LESS);
    }
    gl.disableVertexAttribArray(1);
  }

  drawBones({ camera, m }, box, ratio, shown) {
    if (!shown.bones) return;
    const metre = Eye.pixels(box[3]);
    for (const hand of camera.hands) {
      const bright = COLOURS[tone(hand.state)].map((c) => 0.35 + 0.65 * c);
      const pairs = new Float32Array(3 * BONES.length);
      BONES.forEach((j, i) => pairs.set(hand.joints.subarray(3 * j, 3 * j + 3), 3 * i));
      this.drawLines(m, pairs, bright, 1.6 * ratio, 0.9, box);
      this.drawPoints(m, hand.joints, 1, { kind: 2, size: 0.0065 * metre, least: 3 * ratio, colour: bright });
    }
  }

  drawPoints(m, points, unit, { kind, size, least, colour = [0, 0, 0] }) {
    const { gl, points: p } = this;
    gl.useProgram(p.program);
    gl.uniformMatrix4fv(p.at("m"), false, m);
    gl.uniform1f(p.at("unit"), unit);
    gl.uniform1f(p.at("size"), size);
    gl.uniform1f(p.at("least"), least);
    gl.uniform1i(p.at("kind"), kind);
    gl.uniform2f(p.at("behind"), (FAR + NEAR) / (FAR - NEAR), (2 * FAR * NEAR) / (FAR - NEAR));
    gl.uniform3fv(p.at("colour"), colour);
    this.give(0, points, 3, points instanceof Int16Array ? gl.SHORT : gl.FLOAT);
    gl.drawArrays(gl.POINTS, 0, points.length / 3);
  }

  // ends: two points a line.
  drawLines(m, ends, colour, width, alpha, box) {
    const { gl, lines } = this;
    const n = ends.length / 6;
    const data = new Float32Array(n * 6 * 8);
    const corners = [0, -1, 1, -1, 1, 1, 0, -1, 1, 1, 0, 1];
    for (let i = 0; i < n; i++)
      for (let k = 0; k < 6; k++) {
        data.set(ends.subarray(6 * i, 6 * i + 6), 8 * (6 * i + k));
        data.set([corners[2 * k], corners[2 * k + 1]], 8 * (6 * i + k) + 6);
      }
    gl.useProgram(lines.program);
    gl.uniformMatrix4fv(lines.at("m"), false, m);
    gl.uniform2f(lines.at("picture"), box[2], box[3]);
    gl.uniform1f(lines.at("width"), width * 1.5);
    gl.uniform3fv(lines.at("colour"), colour);
    gl.uniform1f(lines.at("alpha"), alpha);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[0]);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STREAM_DRAW);
    [[0, 3, 0], [1, 3, 12], [2, 2, 24]].forEach(([at, size, from]) => {
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, size, gl.FLOAT, false, 32, from);
    });
    gl.enable(gl.BLEND);
    gl.drawArrays(gl.TRIANGLES, 0, 6 * n);
    gl.disable(gl.BLEND);
    gl.disableVertexAttribArray(1);
    gl.disableVertexAttribArray(2);
  }

  give(at, data, size, kind) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[at]);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STREAM_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, size, kind, false, 0, 0);
  }
}

// The words of the wire to the three colours.
export function tone(state) {
  return { tracked: "good", predicted: "warn", starting: "warn" }[state] || "bad";
}

// A depth camera at its origin, looking along z.
function frustum() {
  const [x, y, z] = [0.028, 0.017, 0.035];
  const corners = [[-x, -y, z], [x, -y, z], [x, y, z], [-x, y, z]];
  const ends = [];
  corners.forEach((corner, i) => ends.push(0, 0, 0, ...corner, ...corner, ...corners[(i + 1) % 4]));
  ends.push(-0.5 * x, -y, z, 0, -1.6 * y, z, 0, -1.6 * y, z, 0.5 * x, -y, z); // this side up
  return new Float32Array(ends);
}

function program(gl, sources) {
  const made = gl.createProgram();
  [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].forEach((kind, i) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, sources[i].trim());
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  });
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  const places = new Map();
  const at = (name) => {
    if (!places.has(name)) places.set(name, gl.getUniformLocation(made, name));
    return places.get(name);
  };
  return { program: made, at };
}
