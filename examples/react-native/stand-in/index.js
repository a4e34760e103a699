import { createElement } from "react";

export const View = ({ children }) => createElement("div", null, children);
export const Text = ({ children }) => createElement("p", null, children);

const listeners = new Set();
export const AppState = {
  currentState: "active",
  addEventListener(_type, listener) {
    listeners.add(listener);
    return { remove: () => listeners.delete(listener) };
  },
};

export function changeAppState(state) {
  AppState.currentState = state;
  for (const listener of [...listeners]) listener(state);
}
