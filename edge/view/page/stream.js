// The packets of the view, as edge/view/packet.py makes them: what is newest, again and again.

const SILENT_MS = 1000; // packets come 30 a second

// Calls show(packet) with each packet, lost() when the stream breaks or falls silent; tries again for ever.
export async function follow(show, lost) {
  for (;;) {
    const line = new AbortController();
    let deadline;
    const heard = () => {
      clearTimeout(deadline);
      deadline = setTimeout(() => line.abort(), SILENT_MS);
    };
    try {
      heard();
      const answer = await fetch("/stream", { cache: "no-store", signal: line.signal });
      if (!answer.ok) throw new Error(answer.statusText);
      await read(answer.body.getReader(), show, heard);
    } catch {
      // the server went away; below we say so and try again
    }
    lost();
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function read(reader, show, heard) {
  let held = new Uint8Array(0);
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const joined = new Uint8Array(held.length + value.length);
    joined.set(held);
    joined.set(value, held.length);
    held = joined;
    for (;;) {
      const length = held.length >= 4 ? new DataView(held.buffer, held.byteOffset).getUint32(0, true) : Infinity;
      if (held.length < 4 + length) break;
      show(unpack(held.slice(4, 4 + length).buffer));
      held = held.subarray(4 + length);
    }
  }
}

function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const packet = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const array = (kind, place) => place && new kind(buffer, 4 + length + place[0], place[1]);
  packet.faces = array(Uint16Array, packet.faces);
  for (const camera of packet.cameras) {
    camera.scene = array(Int16Array, camera.scene);
    for (const hand of camera.hands) {
      hand.joints = array(Float32Array, hand.joints);
      hand.mesh = array(Int16Array, hand.mesh);
      hand.points = array(Int16Array, hand.points);
    }
  }
  return packet;
}
