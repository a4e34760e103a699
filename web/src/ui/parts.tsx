import { type ReactNode, useEffect, useState } from "react";
import { ago, dateTime, relative, statusWord } from "../format/format";
import { useNow } from "../format/now";
import { Check, Copy, Shape } from "./icons";

/** A status by colour, shape and word. */
export function StatusMark({ status }: { status: string }) {
  return (
    <span className="status" data-status={status}>
      <Shape kind={status} />
      {statusWord(status)}
    </span>
  );
}

/** How far a task has come. */
export function ProgressBar({ value, status }: { value: number; status: string }) {
  return (
    <span className="progress" data-status={status}>
      <span
        className="progress-track"
        role="progressbar"
        aria-valuenow={value}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-label="Progress"
      >
        <span className="progress-fill" style={{ transform: `scaleX(${value / 100})` }} />
      </span>
      <span className="progress-value" aria-hidden="true">
        {value}%
      </span>
    </span>
  );
}

/** A time as its distance from now, in one unit where it is to be brief; the exact one is its title. */
export function Ago({ time, brief = false }: { time: string; brief?: boolean }) {
  const now = useNow();
  return (
    <time dateTime={time} title={dateTime(time)}>
      {brief ? ago(time, now) : relative(time, now)}
    </time>
  );
}

interface NoticeProps {
  title: string;
  children?: ReactNode;
  action?: ReactNode;
  tone?: "calm" | "bad";
}

/** What stands where something else would: nothing found, not allowed, not reachable. */
export function Notice({ title, children, action, tone = "calm" }: NoticeProps) {
  return (
    <div className="notice" data-tone={tone} role={tone === "bad" ? "alert" : "status"}>
      <h2>{title}</h2>
      {children && <div className="notice-text">{children}</div>}
      {action && <div className="notice-action">{action}</div>}
    </div>
  );
}

/** A strip above what is shown, when it may not be current. */
export function Strip({ children, action }: { children: ReactNode; action?: ReactNode }) {
  return (
    <div className="strip" role="status">
      <span>{children}</span>
      {action}
    </div>
  );
}

/** Lines in the shape of what is on its way. They appear late, so that a quick answer does not flicker. */
export function Skeleton({ rows }: { rows: number }) {
  return (
    <div className="skeleton" role="status" aria-label="Loading">
      {Array.from({ length: rows }, (_, row) => (
        <span key={row} className="skeleton-row" />
      ))}
    </div>
  );
}

/** Copies a text. */
export function CopyButton({ text, what }: { text: string; what: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return;
    const timer = setTimeout(() => setCopied(false), 1_500);
    return () => clearTimeout(timer);
  }, [copied]);
  return (
    <button
      type="button"
      className="button quiet square"
      aria-label={copied ? "Copied" : `Copy ${what}`}
      title={`Copy ${what}`}
      onClick={() => void navigator.clipboard.writeText(text).then(() => setCopied(true))}
    >
      {copied ? <Check /> : <Copy />}
    </button>
  );
}

const CONNECTIONS: Record<string, { tone: string; word: string; hint: string }> = {
  idle: { tone: "off", word: "Not connected", hint: "Nothing is followed." },
  connecting: { tone: "wait", word: "Connecting", hint: "The live connection is being opened." },
  live: { tone: "live", word: "Live", hint: "Changes are shown as they happen." },
  behind: { tone: "wait", word: "Behind", hint: "More is on its way than is shown." },
  reconnecting: {
    tone: "bad",
    word: "Reconnecting",
    hint: "The connection broke. What happens meanwhile is shown when it is back; nothing is lost.",
  },
  paused: { tone: "off", word: "Paused", hint: "The task is not followed." },
  ended: { tone: "off", word: "Ended", hint: "The task takes no more reports." },
  refused: { tone: "bad", word: "Refused", hint: "The server does not let this page follow." },
};

/** What the live connection is doing, said as it is. */
export function ConnectionMark({ state }: { state: string }) {
  const known = CONNECTIONS[state];
  if (!known) return null;
  return (
    <span className="connection" data-tone={known.tone} title={known.hint} role="status" aria-label="Live connection">
      <span className="connection-dot" aria-hidden="true" />
      {known.word}
    </span>
  );
}
