// A livefactor client in Node.js: the .proto files in this folder are all it needs.
//
//     npm install
//     node client.mjs localhost:50051
//
// Creates a model, pushes a few purchases exactly once, and asks for a customer's best items at the revision of that push.

import { promisify } from "node:util";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { blake2b } from "@noble/hashes/blake2.js";

const PURCHASES = [
  ["ada", "teapot"],
  ["ada", "cup"],
  ["bob", "teapot"],
  ["bob", "cup"],
  ["bob", "saucer"],
  ["eve", "kite"],
  ["eve", "string"],
];

// Copies of the contract lie beside this file, so that the folder runs wherever it is copied to.
const protos = fileURLToPath(new URL("protos", import.meta.url));
const files = ["updates", "scoring", "models"].map((name) => `livefactor/v1/${name}.proto`);
// 64-bit numbers do not fit a JavaScript number: they travel as strings. A field that is 0 or empty is not sent: `defaults`
// puts it back.
const options = { includeDirs: [protos], keepCase: true, longs: String, defaults: true };
const definition = protoLoader.loadSync(files, options);
const { UpdateService, ScoringService, ModelService } = grpc.loadPackageDefinition(definition).livefactor.v1;

/** A client whose unary methods return promises and have a deadline of a minute: a first model compiles its kernels. */
function connect(Service, target) {
  const client = new Service(target, grpc.credentials.createInsecure());
  const call = (method) => (request) =>
    promisify(client[method]).call(client, request, new grpc.Metadata(), { deadline: Date.now() + 60_000 });
  const methods = Object.keys(Service.service);
  return Object.fromEntries([["close", () => client.close()], ...methods.map((name) => [name, call(name)])]);
}

/** The 64-bit key of a string id: BLAKE2b with an 8-byte digest, read little-endian. */
function key(text) {
  const digest = blake2b(new TextEncoder().encode(text), { dkLen: 8 });
  return new DataView(digest.buffer, digest.byteOffset).getBigUint64(0, true).toString();
}

async function createModel(models, model) {
  try {
    await models.CreateModel({ model, preset: "purchases" });
  } catch (error) {
    if (error.code !== grpc.status.ALREADY_EXISTS) throw error; // an earlier run of this example made it
  }
}

/** Pushes the purchases as one batch, stamped so that a retry is applied once. */
async function push(updates, model, producerId) {
  // A label gives an id's text back in answers. Sent twice it changes nothing, so it needs no stamp.
  const items = [...new Set(PURCHASES.map(([, item]) => item))];
  await updates.ApplyUpdates({ model, labels: { side: "SIDE_ITEM", ids: items.map(key), labels: items } });
  const opened = await updates.OpenProducer({ model, producer_id: producerId });
  const sequence = (BigInt(opened.last_sequence) + 1n).toString();
  return updates.ApplyUpdates({
    model,
    producer: { id: producerId, epoch: opened.epoch, sequence },
    interactions: {
      user_ids: PURCHASES.map(([user]) => key(user)),
      item_ids: PURCHASES.map(([, item]) => key(item)),
    },
  });
}

async function main(target, model = "from-node") {
  const [updates, scoring, models] = [UpdateService, ScoringService, ModelService].map((s) => connect(s, target));
  await createModel(models, model);
  const ack = await push(updates, model, "node-client");
  console.log(`pushed ${ack.accepted} purchases, visible at revision ${ack.position.revision}`);
  const ask = { model, min_position: ack.position, user_ids: [key("ada")], top_k: { k: 3 }, with_labels: true };
  const best = await scoring.Score(ask);
  console.log(`ada's best at revision ${best.position.revision}:`);
  best.labels.forEach((item, i) => console.log(`  ${best.scores[i].toFixed(4)}  ${item}`));
  for (const client of [updates, scoring, models]) client.close();
}

await main(...process.argv.slice(2));
