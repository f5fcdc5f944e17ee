// The shell: pages by the address's hash, the state that they share.
import "./style.css";
import { getJson, type State } from "./api";
import { h, notice } from "./dom";
import { genome } from "./genome/page";
import { models } from "./models/page";
import { music } from "./music/page";
import { piano } from "./piano/page";

/** Fills `root`; what it returns is called before another page takes its place. */
export type Page = (root: HTMLElement, state: State) => (() => void) | void;

const pages: Record<string, { title: string; show: Page }> = {
  music: { title: "Chorales", show: music },
  piano: { title: "Piano", show: piano },
  genome: { title: "Genome", show: genome },
  models: { title: "Models", show: models },
};
const main = document.getElementById("main") as HTMLElement;
const nav = document.querySelector("nav") as HTMLElement;
let leave: (() => void) | void;
let asked = 0;
let showing = false; // what the address names

// Where a page could not be shown its address is there all the same: to choose it once more is no change of it.
function again(event: MouseEvent): void {
  if (!showing && (event.target as HTMLAnchorElement).hash === location.hash) void go();
}
const links = Object.entries(pages).map(([key, { title }]) => h("a", { href: `#${key}`, onclick: again }, title));
nav.replaceChildren(...links);
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault(); // its address would be taken for a page's
  main.focus();
});

async function go(): Promise<void> {
  const mine = ++asked;
  showing = false;
  const name = location.hash.slice(1).split("/")[0] || "music";
  const page = Object.hasOwn(pages, name) ? pages[name] : pages.music;
  let state: State;
  try {
    state = await getJson<State>("/api/state");
  } catch (error) {
    notice((error as Error).message);
    return;
  }
  if (mine !== asked) return; // another page was chosen meanwhile
  leave?.();
  main.replaceChildren();
  document.title = `${page.title} · seqpope studio`;
  for (const link of links) {
    if (link.textContent === page.title) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  leave = page.show(main, state);
  showing = true;
}

addEventListener("hashchange", () => void go());
void go();
