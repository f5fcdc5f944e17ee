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
  const box = h("div", { className: `notice ${kind}` }, h("p", {}, text));
  box.append(h("button", { type: "button", "aria-label": "Close", onclick: () => box.remove() }, "×"));
  document.getElementById("notices")?.append(box);
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
