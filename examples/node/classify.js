// Classifies a picture by a model of images of bytes (bnn-deploy convert --input uint8 --web MODEL.onnx):
//
//   node classify.js MODEL.onnx PICTURE.ppm [--wasm] [--runs N] [--bits]
//
// PICTURE is a binary PGM or PPM file of the model's size. The model runs in onnxruntime-node, or, with --wasm, in the
// onnxruntime-web of browsers. Prints the five likeliest classes, and the median time of N runs, which as many precede.
// --bits prints all outputs as the bits of their floats instead.

import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";

// { height, width, channels, bytes }, the bytes with the channels last.
function readPicture(path) {
  const file = readFileSync(path);
  // The magic, the width, the height, the largest value and one white space; comments begin with #.
  const header = /^P([56])(?:\s|#.*\n)+(\d+)(?:\s|#.*\n)+(\d+)(?:\s|#.*\n)+255\s/.exec(file.toString("latin1"));
  if (header === null) throw new Error(`${path}: not a binary PGM or PPM file of 8 bits: convert it to one`);
  const [channels, width, height] = [header[1] === "6" ? 3 : 1, Number(header[2]), Number(header[3])];
  const bytes = new Uint8Array(file.subarray(header[0].length));
  if (bytes.length < width * height * channels) throw new Error(`${path}: ends before its last pixel`);
  return { height, width, channels, bytes: bytes.subarray(0, width * height * channels) };
}

// The picture as the model's input, whose shape is [N, H, W, C] or [N, C, H, W].
function arrange({ height, width, channels, bytes }, shape) {
  const fits = (...wanted) => wanted.every((size, i) => size === shape[i + 1]);
  if (fits(height, width, channels)) return { data: bytes, dims: [1, height, width, channels] };
  if (!fits(channels, height, width)) {
    throw new Error(
      `the picture has ${height} x ${width} pixels of ${channels} channels, but the model takes [${shape.join(", ")}]`,
    );
  }
  const pixels = height * width;
  const planes = Uint8Array.from(bytes, (_, i) => bytes[(i % pixels) * channels + Math.floor(i / pixels)]);
  return { data: planes, dims: [1, channels, height, width] };
}

function print(scores) {
  const most = Math.max(...scores);
  const powers = Array.from(scores, (score) => Math.exp(score - most));
  const total = powers.reduce((sum, power) => sum + power, 0);
  const best = [...powers.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, 5);
  for (const i of best) {
    const share = ((100 * powers[i]) / total).toFixed(1);
    console.log(`class ${String(i).padEnd(4)} score ${scores[i].toFixed(4).padStart(9)}   ${share.padStart(5)} %`);
  }
}

async function main() {
  const options = { wasm: { type: "boolean" }, runs: { type: "string", default: "100" }, bits: { type: "boolean" } };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  if (positionals.length !== 2) {
    throw new Error("usage: node classify.js MODEL.onnx PICTURE.ppm [--wasm] [--runs N] [--bits]");
  }
  const picture = readPicture(positionals[1]);
  const { default: ort } = await import(values.wasm ? "onnxruntime-web" : "onnxruntime-node");
  if (values.wasm) ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(readFileSync(positionals[0]), { intraOpNumThreads: 1 });
  const [input] = session.inputMetadata;
  if (input.type !== "uint8") throw new Error(`${positionals[0]}: takes ${input.type}: convert it with --input uint8`);
  const { data, dims } = arrange(picture, input.shape);
  const feeds = { [input.name]: new ort.Tensor("uint8", data, dims) };
  const run = async () => (await session.run(feeds))[session.outputNames[0]].data;
  const scores = await run();
  if (values.bits) {
    const bits = new Uint32Array(scores.buffer, scores.byteOffset, scores.length);
    bits.forEach((value) => console.log(value.toString(16).padStart(8, "0")));
    return;
  }
  print(scores);
  const runs = Math.max(Number(values.runs), 1);
  let times = [];
  for (let i = 0; i < 2 * runs; i++) {
    const start = performance.now();
    await run();
    times.push(performance.now() - start);
  }
  times = times.slice(runs).sort((a, b) => a - b); // of the first half some are slower: WebAssembly is compiled twice
  const median = times[Math.floor(times.length / 2)].toFixed(3);
  console.log(`${median} ms, the median of ${times.length} runs; onnxruntime-${values.wasm ? "web" : "node"}`);
}

main().catch((error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
});
