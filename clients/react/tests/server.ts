/** A server that says what a test tells it to, over real sockets: for what the real one does only when it must. */

import { once } from "node:events";
import type { AddressInfo } from "node:net";

import { type WebSocket, WebSocketServer } from "ws";

export interface Subscribed {
  readonly id: string;
  readonly afterSeq: number | undefined;
  readonly socket: WebSocket;
  next(seq: number, numbers: readonly number[], status?: string): void;
  error(extensions: object): void;
  complete(): void;
}

export class ScriptedServer implements AsyncDisposable {
  /** The payload of each greeting, in order. */
  readonly greetings: unknown[] = [];
  readonly pings: unknown[] = [];
  /** What is done with a greeting instead of accepting it. */
  greet: ((socket: WebSocket) => void) | null = null;
  /** Whether pings are answered. */
  answersPings = true;
  readonly #server = new WebSocketServer({ port: 0, host: "127.0.0.1", handleProtocols: () => "graphql-transport-ws" });
  readonly #subscribed: Subscribed[] = [];
  readonly #waiting: ((subscribed: Subscribed) => void)[] = [];

  /** One that listens. */
  static async start(): Promise<ScriptedServer> {
    const server = new ScriptedServer();
    await once(server.#server, "listening");
    return server;
  }

  private constructor() {
    this.#server.on("connection", (socket) => {
      const say = (message: object): void => {
        socket.send(JSON.stringify(message));
      };
      socket.on("message", (data: Buffer) => {
        const message = JSON.parse(data.toString()) as { type: string; id: string; payload: unknown };
        if (message.type === "connection_init") {
          this.greetings.push(message.payload);
          if (this.greet) this.greet(socket);
          else say({ type: "connection_ack" });
        } else if (message.type === "ping") {
          this.pings.push(message.payload);
          if (this.answersPings) say({ type: "pong", payload: message.payload && { authorization: "accepted" } });
        } else if (message.type === "subscribe") {
          const { variables } = message.payload as { variables: { afterSeq?: number } };
          const { id } = message;
          this.#heard({
            id,
            afterSeq: variables.afterSeq,
            socket,
            next(seq, numbers, status = "IN_PROGRESS") {
              const task = { id: "T", taskId: "T", status, progress: 0, seq, createdAt: "c", updatedAt: "u" };
              const events = numbers.map((number) => ({ id: `T:${number}`, seq: number, message: "m" }));
              say({ id, type: "next", payload: { data: { taskUpdates: { type: "EVENT", task, events } } } });
            },
            error(extensions) {
              say({ id, type: "error", payload: [{ message: "no", extensions }] });
            },
            complete() {
              say({ id, type: "complete" });
            },
          });
        }
      });
    });
  }

  get url(): string {
    return `ws://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** The next subscription that comes. */
  async subscribed(): Promise<Subscribed> {
    return this.#subscribed.shift() ?? new Promise((resolve) => this.#waiting.push(resolve));
  }

  get open(): number {
    return this.#server.clients.size;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#server.clients) socket.terminate();
    await new Promise<void>((resolve) => {
      this.#server.close(() => {
        resolve();
      });
    });
  }

  #heard(subscribed: Subscribed): void {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(subscribed);
    else this.#subscribed.push(subscribed);
  }
}
