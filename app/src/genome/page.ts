import "./page.css";
import type { Page } from "../main";

export const genome: Page = (root) => {
  root.append("genome");
};
