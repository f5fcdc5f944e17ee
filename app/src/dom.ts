// Elements made in one line: h("button", { onclick }, "Play").

type Properties = Record<string, unknown>;
type Child = Node | string | number | null | undefined | false;

export function h<K extends keyof HTMLElementTagNameMap>(
  name: K,
  properties: Properties = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on") || key in element && !key.includes("-")) {
      (element as unknown as Properties)[key] = value;
    } else element.setAttribute(key === "className" ? "class" : key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child): child is Node | string => child !== null && child !== undefined && child !== false).map((child) => typeof child === "number" ? String(child) : child));
  return element;
}

/** A control with its label; `hint` stands below it. */
export function field(label: string, control: HTMLElement, hint = ""): HTMLLabelElement {
  return h("label", { className: "field" }, h("span", {}, label), control, hint ? h("small", {}, hint) : null);
}

/** Shows words for a while; errors stay until they are closed. */
export function notice(text: string, kind: "error" | "info" = "error"): void {
  const place = document.getElementById("notices");
  for (const old of [...(place?.children ?? [])]) if (old.querySelector("p")?.textContent === text) old.remove(); // said once is enough
  const box = h("div", { className: `notice ${kind}` }, h("p", {}, text));
  box.append(h("button", { type: "button", "aria-label": "Close", onclick: () => box.remove() }, "×"));
  place?.append(box);
  if (kind === "info") setTimeout(() => box.remove(), 6000);
}

/** Has the browser save bytes as a file. */
export function save(name: string, content: Blob): void {
  const url = URL.createObjectURL(content);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

export function button(text: string, onclick: () => void, more: Record<string, unknown> = {}): HTMLButtonElement {
  return h("button", { type: "button", onclick, ...more }, text);
}

export function numberInput(value: number, min: number, max: number, step: number | "any" = 1): HTMLInputElement {
  return h("input", { type: "number", value: String(value), min: String(min), max: String(max), step: String(step), required: true });
}

/** Whether all that are in use can be; of the first that cannot it is told why, in the box that may hide it too. */
export function valid(...inputs: HTMLInputElement[]): boolean {
  const wrong = inputs.find((input) => !input.closest("[hidden]") && !input.checkValidity());
  const box = wrong?.closest("details");
  if (box) box.open = true;
  wrong?.reportValidity();
  return !wrong;
}

export function slider(value: number, min: number, max: number, step: number, oninput: (value: number) => void): HTMLInputElement {
  const input = h("input", { type: "range", min: String(min), max: String(max), step: String(step), value: String(value), oninput: () => oninput(Number(input.value)) });
  return input;
}

/** A choice of [value, text]. */
export function options(entries: [string, string][], chosen = ""): HTMLSelectElement {
  return h("select", {}, ...entries.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
}

export function check(label: string, checked = false, onchange?: () => void): { input: HTMLInputElement; root: HTMLLabelElement } {
  const input = h("input", { type: "checkbox", checked, onchange });
  return { input, root: h("label", { className: "check" }, input, label) };
}

/** One of several, side by side. */
export class Segments<T extends string> {
  readonly root: HTMLElement;
  private readonly inputs: HTMLInputElement[];

  constructor(label: string, name: string, entries: [T, string][], chosen: (value: T) => void) {
    this.inputs = entries.map(([value], index) => h("input", { type: "radio", name, value, checked: !index, onchange: () => chosen(value) }));
    this.root = h("div", { className: "segments", role: "radiogroup", "aria-label": label }, ...entries.map(([, text], index) => h("label", {}, this.inputs[index], h("span", {}, text))));
  }

  set value(value: T) {
    for (const input of this.inputs) input.checked = input.value === value;
  }
}
