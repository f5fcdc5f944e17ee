// How much a note surprised the model, as colour. Lightness alone carries it, so that it is read without hue.
import { h } from "../dom";

export const MOST_NATS = 6;
// From what recedes into the paper to what stands out of it.
const LIGHT = [[222, 226, 233], [242, 190, 80], [200, 80, 34], [88, 14, 74]];
const DARK = [[52, 58, 70], [138, 48, 108], [232, 114, 60], [255, 228, 150]];

export const isDark = () => matchMedia("(prefers-color-scheme: dark)").matches;

function mixed(nats: number): number[] {
  const stops = isDark() ? DARK : LIGHT;
  const place = (Math.min(Math.max(nats, 0), MOST_NATS) / MOST_NATS) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((value, index) => Math.round(value + (stops[low + 1][index] - value) * (place - low)));
}

export function heatColour(nats: number): string {
  return `rgb(${mixed(nats).join(" ")})`;
}

/** Black or white, whichever is read on that colour. */
export function inkOn(nats: number): string {
  const [red, green, blue] = mixed(nats);
  return red * 0.299 + green * 0.587 + blue * 0.114 > 130 ? "#111" : "#fff";
}

export function legend(): HTMLElement {
  const stops = Array.from({ length: 13 }, (_, index) => heatColour((index / 12) * MOST_NATS));
  const bar = h("div", { className: "heat-bar" });
  bar.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
  const ticks = [0, 2, 4, 6].map((nats) => h("span", {}, nats === MOST_NATS ? `${nats}+` : nats));
  return h("div", { className: "heat-legend", role: "img", "aria-label": `Colours from 0 nats, expected, to ${MOST_NATS} nats and more, surprising` }, h("span", {}, "expected"), h("div", {}, bar, h("div", { className: "heat-ticks" }, ...ticks)), h("span", {}, "surprising (nats a note)"));
}
