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
