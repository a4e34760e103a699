import { useState } from "react";
import { count } from "../format/format";
import { Chevron } from "./icons";

// A value of 256 KB may have as many items: they are shown by so many.
const ITEMS = 100;
const TEXT = 300;

/** A JSON value as a tree that opens where one looks; what is closed costs nothing. */
export function Json({ value, open = true }: { value: unknown; open?: boolean }) {
  return (
    <div className="json">
      <Node value={value} open={open} />
    </div>
  );
}

function Leaf({ value }: { value: unknown }) {
  const [all, setAll] = useState(false);
  const text = JSON.stringify(value);
  const cut = !all && text.length > TEXT;
  return (
    <>
      <span className={`json-${value === null ? "null" : typeof value}`}>{cut ? `${text.slice(0, TEXT)}…` : text}</span>
      {cut && (
        <button type="button" className="more" onClick={() => setAll(true)}>
          Show all {count(text.length)} characters
        </button>
      )}
    </>
  );
}

function Node({ name, value, open = false }: { name?: string; value: unknown; open?: boolean }) {
  const [isOpen, setOpen] = useState(open);
  const [shown, setShown] = useState(ITEMS);
  const label = name !== undefined && <span className="json-name">{name}: </span>;
  if (typeof value !== "object" || value === null) {
    return (
      <div className="json-leaf">
        {label}
        <Leaf value={value} />
      </div>
    );
  }
  const items: [string, unknown][] = Object.entries(value);
  const [before, after] = Array.isArray(value) ? ["[", "]"] : ["{", "}"];
  if (items.length === 0) {
    return (
      <div className="json-leaf">
        {label}
        {before + after}
      </div>
    );
  }
  return (
    <div>
      <button type="button" className="json-fold" aria-expanded={isOpen} onClick={() => setOpen(!isOpen)}>
        <Chevron />
        {label}
        <span className="json-size">
          {before} {count(items.length)} {items.length === 1 ? "item" : "items"} {after}
        </span>
      </button>
      {isOpen && (
        <div className="json-items">
          {items.slice(0, shown).map(([key, item]) => (
            <Node key={key} name={key} value={item} />
          ))}
          {items.length > shown && (
            <button type="button" className="button quiet" onClick={() => setShown(shown + 10 * ITEMS)}>
              Show more of {count(items.length)}
            </button>
          )}
        </div>
      )}
    </div>
  );
}
