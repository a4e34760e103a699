import { type KeyboardEvent, type SubmitEvent, useEffect, useRef, useState } from "react";
import type { TaskStatus } from "../api/documents";
import { useShortcut } from "../app/shortcuts";
import { compact, count, statusWord } from "../format/format";
import type { Counts } from "../stats/useStats";
import { Cross, Search, Shape } from "../ui/icons";
import { EVERYTHING, isNarrow, type ListFilter, STATUSES } from "./filter";

interface FilterBarProps {
  filter: ListFilter;
  counts: Counts | null;
  onChange: (filter: ListFilter) => void;
}

const TYPING_MS = 250;

/** What the list is about: statuses with their counts, a search by ID, tags and a queue. */
export function FilterBar({ filter, counts, onChange }: FilterBarProps) {
  function toggle(status: TaskStatus): void {
    const without = filter.status.filter((one) => one !== status);
    onChange({ ...filter, status: without.length < filter.status.length ? without : [...without, status] });
  }
  return (
    <section className="filters" aria-label="Filter">
      <div className="tiles" role="group" aria-label="Status">
        {STATUSES.map((status) => (
          <button
            key={status}
            type="button"
            className="tile"
            data-status={status}
            aria-pressed={filter.status.includes(status)}
            title={counts ? `${count(counts[status])} ${statusWord(status).toLowerCase()}` : undefined}
            onClick={() => toggle(status)}
          >
            <span className="tile-name">
              <Shape kind={status} />
              {statusWord(status)}
            </span>
            <span className="tile-count">{counts ? compact(counts[status]) : "–"}</span>
          </button>
        ))}
      </div>
      <div className="filter-line">
        <PrefixSearch value={filter.prefix} onChange={(prefix) => onChange({ ...filter, prefix })} />
        <AddWord label="Tag" onAdd={(tag) => onChange({ ...filter, tags: [...new Set([...filter.tags, tag])] })} />
        <AddWord label="Queue" onAdd={(queue) => onChange({ ...filter, queue })} />
        {filter.tags.map((tag) => (
          <Chip
            key={tag}
            name="tag"
            value={tag}
            onRemove={() => onChange({ ...filter, tags: filter.tags.filter((one) => one !== tag) })}
          />
        ))}
        {filter.queue && <Chip name="queue" value={filter.queue} onRemove={() => onChange({ ...filter, queue: "" })} />}
        {isNarrow(filter) && (
          <button type="button" className="button quiet" onClick={() => onChange(EVERYTHING)}>
            Clear all
          </button>
        )}
      </div>
    </section>
  );
}

function PrefixSearch({ value, onChange }: { value: string; onChange: (value: string) => void }) {
  const input = useRef<HTMLInputElement>(null);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useShortcut("/", () => {
    input.current?.focus();
    input.current?.select();
  });
  // Another filter, as by the back button, is shown; what is being written stays.
  useEffect(() => {
    if (input.current && document.activeElement !== input.current) input.current.value = value;
  }, [value]);
  useEffect(() => () => clearTimeout(timer.current), []);

  function typed(next: string): void {
    clearTimeout(timer.current);
    timer.current = setTimeout(() => onChange(next), TYPING_MS);
  }
  function pressed(event: KeyboardEvent<HTMLInputElement>): void {
    if (event.key !== "Escape") return;
    // A browser would empty the field.
    event.preventDefault();
    event.currentTarget.blur();
  }
  return (
    <div className="search" role="search">
      <Search />
      <input
        ref={input}
        type="search"
        className="input mono"
        aria-label="Search by the beginning of the task ID"
        placeholder="Task ID begins with…"
        defaultValue={value}
        maxLength={255}
        spellCheck={false}
        autoComplete="off"
        onChange={(event) => typed(event.target.value)}
        onKeyDown={pressed}
      />
      <kbd aria-hidden="true">/</kbd>
    </div>
  );
}

function AddWord({ label, onAdd }: { label: string; onAdd: (word: string) => void }) {
  const [word, setWord] = useState("");
  function submit(event: SubmitEvent<HTMLFormElement>): void {
    event.preventDefault();
    if (word.trim()) onAdd(word.trim());
    setWord("");
  }
  return (
    <form className="add-word" onSubmit={submit}>
      <input
        className="input"
        aria-label={`Filter by ${label.toLowerCase()}, and press Enter`}
        placeholder={label}
        value={word}
        maxLength={64}
        onChange={(event) => setWord(event.target.value)}
      />
    </form>
  );
}

function Chip({ name, value, onRemove }: { name: string; value: string; onRemove: () => void }) {
  return (
    <span className="chip">
      <span className="chip-name">{name}</span>
      {value}
      <button type="button" aria-label={`Remove the ${name} ${value}`} onClick={onRemove}>
        <Cross />
      </button>
    </span>
  );
}
