// How much a note surprised the model, as colour. Lightness alone carries it, so that it is read without hue.
import { h } from "../dom";

// From what recedes into the paper to what stands out of it.
const LIGHT = [[222, 226, 233], [242, 190, 80], [200, 80, 34], [88, 14, 74]];
const DARK = [[52, 58, 70], [138, 48, 108], [232, 114, 60], [255, 228, 150]];

export const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

/** `most` is where the colours end. */
function mixed(nats: number, most: number): number[] {
  const stops = isDark() ? DARK : LIGHT;
  const place = (Math.min(Math.max(nats, 0), most) / most) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((value, index) => Math.round(value + (stops[low + 1][index] - value) * (place - low)));
}

export function heatColour(nats: number, most: number): string {
  return `rgb(${mixed(nats, most).join(" ")})`;
}

/** Black or white, whichever is read on that colour. */
export function inkOn(nats: number, most: number): string {
  const [red, green, blue] = mixed(nats, most);
  return red * 0.299 + green * 0.587 + blue * 0.114 > 130 ? "#111" : "#fff";
}

export function legend(most: number): HTMLElement {
  const stops = Array.from({ length: 13 }, (_, index) => heatColour((index / 12) * most, most));
  const bar = h("div", { className: "heat-bar" });
  bar.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
  const ticks = [0, 1, 2, 3].map((third) => h("span", {}, `${(third * most) / 3}${third === 3 ? "+" : ""}`));
  return h("div", { className: "heat-legend", role: "img", "aria-label": `Colours from 0 nats, expected, to ${most} nats and more, surprising` }, h("span", {}, "expected"), h("div", {}, bar, h("div", { className: "heat-ticks" }, ...ticks)), h("span", {}, "surprising (nats a note)"));
}

/** How seldom something so surprising comes. */
export function chance(nats: number): string {
  const odds = Math.exp(nats);
  return odds < 10 ? odds.toFixed(1) : odds < 1e6 ? Math.round(odds).toLocaleString("en") : "over a million";
}
