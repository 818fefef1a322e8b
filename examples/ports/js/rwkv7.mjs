#!/usr/bin/env node
// A port of RWKV-7 to JavaScript without a dependency, which the harness can judge in two ways.
//
//   node rwkv7.mjs [--bug NAME]                          speaks the protocol on stdin and stdout
//   node rwkv7.mjs --kit DIR --dump OUT [--bug NAME]     computes a kit's prompt and writes a dump

import { parseArgs } from "node:util";
import { runKit } from "./kit.mjs";
import { BUGS } from "./model.mjs";
import { serve } from "./protocol.mjs";

const VERSION = "1.0";
const USAGE = 2;

function parsed() {
  const text = { type: "string", default: "" };
  const { values } = parseArgs({ options: { kit: text, dump: text, bug: text } });
  if (values.bug && !(values.bug in BUGS)) throw new Error(`no bug ${values.bug}; there are ${Object.keys(BUGS).join(", ")}`);
  if (!values.kit !== !values.dump) throw new Error("--kit DIR and --dump OUT go together");
  return values;
}

async function main() {
  const { kit, dump, bug } = parsed();
  if (kit) runKit(kit, dump, `rwkv7.mjs ${VERSION}`, bug);
  else await serve(VERSION, bug);
}

main().catch((error) => {
  console.error(`rwkv7.mjs: ${error.message}`);
  process.exitCode = USAGE;
});
