/** The screen under Node.js, with a stand-in for React Native that the tests put into the background and back. */

import { createInterface } from "node:readline";

import { connect } from "@spectral-notify/react";
import { Window } from "happy-dom";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { changeAppState } from "react-native";

import { credential, socketUrl, taskId } from "../node.js";
import { TaskScreen } from "./TaskScreen.js";

const window = new Window();
Object.assign(globalThis, { window, document: window.document });
const screen = window.document.createElement("div");

let shown: string[] = [];
new window.MutationObserver(() => {
  const lines = [...screen.querySelectorAll("p")].map((line) => line.textContent);
  for (const line of lines.filter((line) => !shown.includes(line))) console.log(line);
  shown = lines;
}).observe(screen, { childList: true, subtree: true, characterData: true });

createInterface({ input: process.stdin }).on("line", (state) => {
  changeAppState(state as "active" | "background");
});
const root = createRoot(screen as unknown as Element);
root.render(
  <StrictMode>
    <TaskScreen client={connect({ url: socketUrl, credential })} taskId={taskId} />
  </StrictMode>,
);
