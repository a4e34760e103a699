const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

const whole = new Intl.NumberFormat(undefined);
const short = new Intl.NumberFormat(undefined, { notation: "compact", maximumFractionDigits: 1 });
const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" } as const;
const date = { year: "numeric", month: "short", day: "numeric" } as const;
const exact = new Intl.DateTimeFormat(undefined, { ...date, ...time });
const thisYear = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", ...time });
const clock = new Intl.DateTimeFormat(undefined, { ...time, fractionalSecondDigits: 3 });
const day = new Intl.DateTimeFormat(undefined, date);

/** A length of time in its one or two greatest units: `45 s`, `3 min`, `2 h 5 min`, `6 d`. */
export function duration(ms: number): string {
  if (ms < MINUTE) return `${Math.floor(ms / SECOND)} s`;
  if (ms < HOUR) return `${Math.floor(ms / MINUTE)} min`;
  if (ms < DAY) {
    const minutes = Math.floor((ms % HOUR) / MINUTE);
    return `${Math.floor(ms / HOUR)} h${minutes ? ` ${minutes} min` : ""}`;
  }
  return `${Math.floor(ms / DAY)} d`;
}

/** How long ago, in one unit, where there is little room: `now`, `59 min ago`, `2 h ago`. */
export function ago(iso: string, now: number): string {
  return relative(iso, now).replace(/( h) \d+ min/, "$1");
}

/** How long ago, or how long until: `now`, `45 s ago`, `in 3 min`. Clocks may differ by a little. */
export function relative(iso: string, now: number): string {
  const distance = now - Date.parse(iso);
  if (Math.abs(distance) < 2 * SECOND) return "now";
  return distance > 0 ? `${duration(distance)} ago` : `in ${duration(-distance)}`;
}

/** A time of day with milliseconds. */
export function timeOfDay(iso: string): string {
  return clock.format(Date.parse(iso));
}

/** The day of a time. */
export function dayOf(time: string | number): string {
  return day.format(new Date(time));
}

/** A time in full, as the viewer's clock has it. */
export function dateTime(iso: string): string {
  return exact.format(Date.parse(iso));
}

/** A time without its year, where that is the year of now. */
export function shortDateTime(iso: string, now: number): string {
  const at = new Date(iso);
  return (at.getFullYear() === new Date(now).getFullYear() ? thisYear : exact).format(at);
}

/** An ID with what cannot be seen written out, so that two that look alike do not pass for each other. */
export function visible(id: string): string {
  return id.replace(UNSEEN, (found) =>
    Array.from(found).map((one) => (one === " " ? "\u2423" : `\u27e8U+${hex(one)}\u27e9`)).join(""),
  );
}

// Characters without a width or that turn others around, but not those that join letters or emoji; spaces at an end, or
// several.
const UNSEEN = /[\p{Cc}\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff]+|^ +| +$| {2,}/gu;

function hex(character: string): string {
  return (character.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
}

/** A number with its thousands apart. */
export function count(value: number): string {
  return whole.format(value);
}

/** A number in little room: `1.2M`. */
export function compact(value: number): string {
  return value < 10_000 ? whole.format(value) : short.format(value);
}

/** A status as words. */
export function statusWord(status: string): string {
  return WORDS[status] ?? status;
}

const WORDS: Record<string, string> = {
  PENDING: "Pending",
  IN_PROGRESS: "In progress",
  SUCCESS: "Success",
  FAILED: "Failed",
  CANCELED: "Canceled",
};
