import type { ReactNode, SVGProps } from "react";

function Icon({ children, ...rest }: SVGProps<SVGSVGElement> & { children: ReactNode }) {
  return (
    <svg
      className="icon"
      viewBox="0 0 16 16"
      width="16"
      height="16"
      fill="none"
      stroke="currentColor"
      strokeWidth="1.6"
      strokeLinecap="round"
      strokeLinejoin="round"
      aria-hidden="true"
      {...rest}
    >
      {children}
    </svg>
  );
}

/** Three lines of different length: the mark of the service. */
export const Brand = () => (
  <svg viewBox="0 0 32 32" width="24" height="24" aria-hidden="true">
    <rect className="brand-ground" width="32" height="32" rx="8" />
    <g fill="none" stroke="#fff" strokeWidth="3" strokeLinecap="round">
      <path d="M8 10h16" opacity=".6" />
      <path d="M8 16h11" />
      <path d="M8 22h6" opacity=".8" />
    </g>
  </svg>
);

/** To look for something. */
export const Search = () => (
  <Icon>
    <circle cx="7" cy="7" r="4.25" />
    <path d="m10.5 10.5 3 3" />
  </Icon>
);
/** To add something. */
export const Plus = () => (
  <Icon>
    <path d="M8 3v10M3 8h10" />
  </Icon>
);
/** To close or remove. */
export const Cross = () => (
  <Icon>
    <path d="m4 4 8 8M12 4l-8 8" />
  </Icon>
);
/** To go back. */
export const Back = () => (
  <Icon>
    <path d="M9.5 3.5 5 8l4.5 4.5" />
  </Icon>
);
/** To go up. */
export const Up = () => (
  <Icon>
    <path d="M8 13V3M4 7l4-4 4 4" />
  </Icon>
);
/** To open and close what is below. */
export const Chevron = () => (
  <Icon className="icon chevron">
    <path d="m6 4 4 4-4 4" />
  </Icon>
);
/** To copy. */
export const Copy = () => (
  <Icon>
    <rect x="5.5" y="5.5" width="8" height="8" rx="1.5" />
    <path d="M10.5 5.5V4A1.5 1.5 0 0 0 9 2.5H4A1.5 1.5 0 0 0 2.5 4v5A1.5 1.5 0 0 0 4 10.5h1.5" />
  </Icon>
);
/** Done. */
export const Check = () => (
  <Icon>
    <path d="m3.5 8.5 3 3 6-7" />
  </Icon>
);
/** Half light, half dark. */
export const Contrast = () => (
  <Icon>
    <circle cx="8" cy="8" r="5.5" />
    <path d="M8 2.5v11a5.5 5.5 0 0 0 0-11Z" fill="currentColor" />
  </Icon>
);
/** Whoever is signed in. */
export const Person = () => (
  <Icon>
    <circle cx="8" cy="5.5" r="2.75" />
    <path d="M2.75 13.5c.6-2.6 2.6-4 5.25-4s4.65 1.4 5.25 4" />
  </Icon>
);
/** Something to know. */
export const Question = () => (
  <Icon>
    <circle cx="8" cy="8" r="5.75" />
    <path d="M6.4 6.4A1.7 1.7 0 0 1 9.7 7c0 1.2-1.7 1.3-1.7 2.4M8 11.4v.01" />
  </Icon>
);

/** A status or a kind of event as a shape, so that it can be told without its colour. */
export function Shape({ kind }: { kind: string }) {
  switch (kind) {
    case "SUCCESS":
      return (
        <Icon className="icon shape">
          <circle cx="8" cy="8" r="6.5" fill="currentColor" stroke="none" />
          <path d="m5.2 8.3 2 2 3.6-4.3" className="shape-cut" />
        </Icon>
      );
    case "FAILED":
    case "ERROR":
      return (
        <Icon className="icon shape">
          <path d="M5.3 1.5h5.4l3.8 3.8v5.4l-3.8 3.8H5.3l-3.8-3.8V5.3Z" fill="currentColor" stroke="none" />
          <path d="m5.8 5.8 4.4 4.4M10.2 5.8l-4.4 4.4" className="shape-cut" />
        </Icon>
      );
    case "CANCELED":
      return (
        <Icon className="icon shape">
          <circle cx="8" cy="8" r="5.75" />
          <path d="M4.2 11.8 11.8 4.2" />
        </Icon>
      );
    case "IN_PROGRESS":
    case "PROGRESS":
      return (
        <Icon className="icon shape">
          <circle cx="8" cy="8" r="5.75" />
          <path d="M8 4.6a3.4 3.4 0 0 1 0 6.8Z" fill="currentColor" stroke="none" />
        </Icon>
      );
    case "LOG":
      return (
        <Icon className="icon shape">
          <circle cx="8" cy="8" r="2.5" fill="currentColor" stroke="none" />
        </Icon>
      );
    default:
      return (
        <Icon className="icon shape">
          <circle cx="8" cy="8" r="5.75" strokeDasharray="2.4 2.1" />
        </Icon>
      );
  }
}
