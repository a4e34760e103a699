import { memo, type Ref } from "react";
import type { TaskEvent } from "../api/documents";
import { dateTime, dayOf, timeOfDay } from "../format/format";
import { Chevron, Shape } from "../ui/icons";
import { Json } from "../ui/Json";

// A message may have 64 KB; so much of it is shown before somebody asks for the rest.
const MESSAGE = 240;

interface EventRowProps {
  ref: Ref<HTMLElement>;
  seq: number;
  event: TaskEvent | undefined;
  failed: boolean;
  /** Whether it is the end of a task that was canceled, which is no failure. */
  canceled: boolean;
  index: number;
  total: number;
  top: number;
  open: boolean;
  /** The day of now, which need not be said. */
  today: string;
  onToggle: (seq: number) => void;
  onAgain: (seq: number) => void;
}

/** A line of the history, or the place of one that is being read. */
export const EventRow = memo(function EventRow(row: EventRowProps) {
  const { ref, seq, event, failed, canceled, index, total, top, open, today, onToggle, onAgain } = row;
  const day = event && dayOf(event.timestamp);
  const long = event !== undefined && event.message.length > MESSAGE;
  const more = event !== undefined && (long || event.metadata !== null);
  return (
    <article
      ref={ref}
      className="event"
      data-index={index}
      data-seq={seq}
      data-type={canceled ? undefined : event?.eventType}
      data-status={canceled ? "CANCELED" : undefined}
      aria-posinset={index + 1}
      aria-setsize={total}
      aria-busy={!event}
      aria-label={`Event ${seq}`}
      tabIndex={-1}
      style={{ transform: `translateY(${top}px)` }}
    >
      <span className="event-mark">
        <Shape kind={canceled ? "CANCELED" : (event?.eventType ?? "PENDING")} />
      </span>
      {event ? (
        <div className="event-body">
          <p className={event.message.includes("\n") ? "event-message mono" : "event-message"}>
            {long && !open ? `${event.message.slice(0, MESSAGE)}…` : event.message}
          </p>
          <p className="event-facts">
            <time dateTime={event.timestamp} title={dateTime(event.timestamp)}>
              {day !== today && `${day}, `}
              {timeOfDay(event.timestamp)}
            </time>
            <span>#{seq}</span>
            <span className="event-type">{event.eventType.toLowerCase()}</span>
            {event.progress !== null && <span>{event.progress}%</span>}
            {event.actor !== null && <span className="event-actor">{event.actor}</span>}
            {more && (
              <button type="button" className="event-more" aria-expanded={open} onClick={() => onToggle(seq)}>
                <Chevron />
                {long ? "All of it" : "Metadata"}
              </button>
            )}
          </p>
          {open && event.metadata !== null && <Json value={event.metadata} />}
        </div>
      ) : failed ? (
        <p className="event-body muted">
          Event {seq} could not be read.{" "}
          <button type="button" className="button quiet" onClick={() => onAgain(seq)}>
            Try again
          </button>
        </p>
      ) : (
        <div className="event-body">
          <span className="skeleton-row" />
        </div>
      )}
    </article>
  );
});
