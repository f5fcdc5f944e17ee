import "./page.css";
import type { Page } from "../main";

export const music: Page = (root) => {
  root.append("music");
};
