// Bundles src/ into ../seqpope/studio/static, which is committed: users need neither Node nor npm.
import { createHash } from "node:crypto";
import { copyFileSync, readdirSync, readFileSync } from "node:fs";
import { build, context } from "esbuild";

const out = new URL("../seqpope/studio/static/", import.meta.url).pathname;
// By which tests/studio/test_bundle.py sees that the page was built anew after its sources changed.
const sources = ["index.html", ...readdirSync("src", { recursive: true }).map((name) => `src/${name}`)]
  .filter((name) => /\.(html|ts|css)$/.test(name))
  .sort();
const digest = createHash("sha256");
for (const name of sources) digest.update(`${name}\0`).update(readFileSync(name)).update("\0");
const options = {
  banner: { js: `/* sources ${digest.digest("hex")} */` },
  entryPoints: ["src/main.ts"],
  bundle: true,
  minify: true,
  target: "es2022",
  format: "esm",
  outdir: out,
  entryNames: "studio",
  charset: "utf8",
  legalComments: "none",
  logLevel: "info",
};
copyFileSync("index.html", `${out}index.html`);
if (process.argv.includes("--watch")) await (await context(options)).watch();
else await build(options);
