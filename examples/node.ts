/** What a page has anyway, and what it knows from its surroundings. */

import WebSocket from "ws";

// Node.js has it built in from 22 on.
Object.assign(globalThis, { WebSocket });

export const url = process.env["SPECTRAL_URL"] ?? "http://127.0.0.1:8000/graphql";
export const socketUrl = url.replace("http", "ws");
/** An API key, a JWT or a task token, where reading needs one. */
export const credential = (): string | null => process.env["SPECTRAL_KEY"] ?? null;
export const taskId = process.argv[2] ?? "report-5f0c9a41";
