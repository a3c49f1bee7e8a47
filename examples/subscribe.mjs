// Prints seq, side and the index finger's tip (x y z, metres, camera frame) of every hand.
// npm install && node subscribe.mjs [tcp://127.0.0.1:5555]
import { decode } from "@msgpack/msgpack";
import { Subscriber } from "zeromq";

// A host that lost its power closes no connection: after a second of silence it is asked whether it is still there.
const asked = { tcpKeepalive: 1, tcpKeepaliveIdle: 1, tcpKeepaliveInterval: 1, tcpKeepaliveCount: 3, connectTimeout: 3000 };
const socket = new Subscriber({ linger: 0, ...asked });
socket.connect(process.argv[2] ?? "tcp://127.0.0.1:5555");
socket.subscribe("joints");

// The copy aligns the bytes, as Float32Array wants them.
const floats = (bytes) => new Float32Array(Uint8Array.from(bytes).buffer);

for await (const [topic, payload] of socket) {
  const message = decode(payload, { useBigInt64: true }); // nanoseconds do not fit a Number
  if (message.v !== 1) throw new Error(`${topic}: wire version ${message.v}, expected 1`);
  for (const hand of message.hands) {
    const [x, y, z] = floats(hand.joints_m).subarray(3 * 8); // joint 8 of 21
    console.log(message.seq, hand.side, x, y, z);
  }
}
