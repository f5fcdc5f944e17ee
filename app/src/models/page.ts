import "./page.css";
import type { Page } from "../main";

export const models: Page = (root) => {
  root.append("models");
};
