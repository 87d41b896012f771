// A worker in another language, made from the .proto files alone: no generated code, no option set on the channel.
// Usage: node client.mjs ADDRESS PROTO_FOLDER. Prints one JSON object: what each way of working led to.
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import path from "node:path";
import zlib from "node:zlib";

const require = createRequire(pathToFileURL(path.join(process.cwd(), "here.js")));
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, protoFolder] = process.argv.slice(2);
const files = ["session", "gradient", "telemetry"].map((name) => `hermosis/v1/${name}.proto`);
const definition = loader.loadSync(files, { includeDirs: [protoFolder], longs: String, enums: String, oneofs: true });
const { v1 } = grpc.loadPackageDefinition(definition).hermosis;
const credentials = grpc.credentials.createInsecure();
const sessions = new v1.SessionService(address, credentials);
const gradients = new v1.GradientService(address, credentials);
const telemetry = new v1.TelemetryService(address, credentials);

const call = (client, method, request) =>
  new Promise((resolve, reject) => client[method](request, (error, answer) => (error ? reject(error) : resolve(answer))));
const bytes = (values) => Buffer.from(Float32Array.from(values).buffer); // Node runs on little-endian machines
const floats = (payload) => Array.from(new Float32Array(Uint8Array.from(payload).buffer));

// CRC-32 as zlib has it; zlib.crc32 itself is in Node from 20.15 on.
const table = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});
const crc32 = zlib.crc32 ?? ((data) => ~data.reduce((c, byte) => table[(c ^ byte) & 255] ^ (c >>> 8), -1) >>> 0);
const sealed = (payload) => ({ payload, crc32: crc32(payload) >>> 0 });

const start = [0.5, -1.25, 3, 0.1];
const gradient = [0.1, 0.2, -0.3, 0.7];

async function open() {
  const spec = {
    layout: { tensors: [{ name: "w", shape: [2, 2] }] },
    optimizer: { recipe: { name: "sgd", parameters: { lr: { number: 0.1 } } } },
  };
  const { session } = await call(sessions, "CreateSession", { spec });
  await new Promise((resolve, reject) => {
    const upload = sessions.InitialiseParameters((error, answer) => (error ? reject(error) : resolve(answer)));
    upload.end({ sessionId: session.sessionId, ...sealed(bytes(start)) });
  });
  return session;
}

async function unary() {
  const { sessionId } = await open();
  const push = (sequence) => ({
    sessionId,
    workerId: "node",
    gradient: { commit: { sequence, baseStep: sequence - 1, loss: 1.5 }, ...sealed(bytes(gradient)) },
  });
  const first = await call(gradients, "Push", push(1));
  const again = await call(gradients, "Push", push(1));
  const second = await call(gradients, "Step", { push: push(2) });
  const pulled = await call(gradients, "Pull", { sessionId });
  const { reading } = await call(telemetry, "GetTelemetry", { sessionId });
  const reason = await call(gradients, "Push", { ...push(9) }).then(
    () => "none",
    (error) => [error.code, error.metadata.get("grpc-status-details-bin")[0].toString("latin1").match(/InvalidRequest/)?.[0]],
  );
  return {
    steps: [first.result.step, second.result.step],
    duplicate: again.result.duplicate,
    stepped: floats(second.payload),
    pulled: floats(pulled.payload),
    loss: reading.energies.loss,
    refused: reason,
  };
}

async function exchange() {
  const { sessionId, layoutDigest } = await open();
  const stream = gradients.Exchange();
  const answers = [];
  const done = new Promise((resolve, reject) => stream.on("end", resolve).on("error", reject));
  let parameters = [];
  stream.on("data", (answer) => {
    answers.push(answer.message);
    if (answer.opened) {
      // Two chunks, the later one first.
      const [head, tail] = [gradient.slice(0, 3), gradient.slice(3)];
      stream.write({ chunk: { handle: 7, sequence: 1, offset: 3, ...sealed(bytes(tail)) } });
      stream.write({ chunk: { handle: 7, sequence: 1, offset: 0, ...sealed(bytes(head)) } });
      stream.write({ commit: { handle: 7, sequence: 1, baseStep: 0 } });
    } else if (answer.chunk) {
      parameters = parameters.concat(floats(answer.chunk.payload));
      if (parameters.length === gradient.length) stream.end();
    }
  });
  stream.write({ open: { handle: 7, sessionId, workerId: "node", layoutDigest } });
  await done;
  return { answers, parameters };
}

console.log(JSON.stringify({ unary: await unary(), exchange: await exchange() }));
for (const client of [sessions, gradients, telemetry]) client.close();
