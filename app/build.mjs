// Bundles src/ into ../seqpope/studio/static, which is committed: users need neither Node nor npm.
import { copyFileSync } from "node:fs";
import { build, context } from "esbuild";

const out = new URL("../seqpope/studio/static/", import.meta.url).pathname;
const options = {
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
