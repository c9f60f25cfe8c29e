// Does with node-postgres what a test asks for, see README.md.
import readline from "node:readline";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.PEER_MODULES}/`);
const pg = require("pg");
const client = new pg.Client();
await client.connect();

const value = (field) =>
  ({ t: (v) => v, i: Number, z: (v) => new Date(v), j: JSON.parse, n: () => null })[field[0]](field.slice(1));
const shown = (cell) => {
  if (cell === null || cell === undefined) return "n";
  if (cell instanceof Date) return "v" + cell.toISOString();
  return "v" + (typeof cell === "object" ? JSON.stringify(cell) : String(cell));
};
const say = (...fields) => process.stdout.write(fields.map(encodeURIComponent).join("\t") + "\n");

for await (const line of readline.createInterface({ input: process.stdin })) {
  const [what, statement, ...values] = line.split("\t").map(decodeURIComponent);
  try {
    const answer = what === "execute" ? await client.query({ text: statement, values: values.map(value), rowMode: "array" })
      : await client.query(what);
    for (const row of answer.rows) say("row", ...row.map(shown));
    say("ok");
  } catch (error) {
    say("error", ...[error.code, error.message, error.detail, error.hint, error.constraint].map(shown));
  }
}
await client.end();
