import type { ReactElement, ReactNode } from "react";

interface Props {
  readonly children?: ReactNode;
}
export declare function View(props: Props): ReactElement;
export declare function Text(props: Props): ReactElement;
export declare const AppState: {
  readonly currentState: "active" | "background" | "inactive";
  addEventListener(type: "change", listener: (state: "active" | "background" | "inactive") => void): { remove(): void };
};
/** What the system does with the real one. */
export declare function changeAppState(state: "active" | "background" | "inactive"): void;
