// Reads a safetensors file: 8 bytes of length, a header of JSON, raw little-endian numbers.

import { closeSync, openSync, readSync } from "node:fs";

/** Bytes of one number, and how an array of them becomes float32. */
const FORMATS = {
  F32: { bytes: 4, widen: (raw) => new Float32Array(raw) },
  BF16: { bytes: 2, widen: fromBfloat16 },
  F16: { bytes: 2, widen: (raw) => Float32Array.from(new Uint16Array(raw), fromHalf) },
};

/** Reading more than this in one call is refused by the operating system or by Node. */
const PORTION = 1 << 30;

/**
 * Every tensor of a file as float32, whatever it is stored in. The file is read tensor by tensor, so memory holds it once.
 *
 * @param {string} path
 * @returns {Map<string, {shape: number[], data: Float32Array}>}
 */
export function readCheckpoint(path) {
  const file = openSync(path, "r");
  try {
    const length = Number(new DataView(readAt(file, 0, 8)).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(readAt(file, 8, length)));
    delete header.__metadata__;
    return new Map(Object.entries(header).map(([name, row]) => [name, readTensor(file, 8 + length, name, row)]));
  } finally {
    closeSync(file);
  }
}

function readTensor(file, base, name, { dtype, shape, data_offsets: [begin, end] }) {
  const format = FORMATS[dtype];
  const count = shape.reduce((product, n) => product * n, 1);
  if (!format) throw new Error(`${name} is stored as ${dtype}; this port reads ${Object.keys(FORMATS).join(", ")}`);
  if (end - begin !== count * format.bytes) throw new Error(`${name}: ${end - begin} bytes are no ${dtype} of ${shape}`);
  return { shape, data: format.widen(readAt(file, base + begin, end - begin)) };
}

function readAt(file, position, length) {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    const got = readSync(file, bytes, done, Math.min(length - done, PORTION), position + done);
    if (got === 0) throw new Error(`the file ends at byte ${position + done}, ${length - done} bytes too early`);
    done += got;
  }
  return bytes.buffer;
}

function fromBfloat16(raw) {
  const narrow = new Uint16Array(raw); // the upper half of a float32
  const bits = new Uint32Array(narrow.length);
  for (let i = 0; i < narrow.length; i++) bits[i] = narrow[i] << 16;
  return new Float32Array(bits.buffer);
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = (bits & 0x3ff) / 1024;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
}
