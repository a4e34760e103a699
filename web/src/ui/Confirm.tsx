import { AlertDialog } from "@base-ui/react/alert-dialog";
import { type ReactNode, useState } from "react";
import type { Problem } from "../api/errors";

interface ConfirmProps {
  /** What the button says that opens it. */
  label: string;
  title: string;
  children: ReactNode;
  /** What the button says that does it. */
  verb: string;
  /** Does it; answers why not, if not. */
  act: () => Promise<Problem | null>;
}

/** A button that asks before it does something that cannot be undone. */
export function Confirm({ label, title, children, verb, act }: ConfirmProps) {
  const [open, setOpen] = useState(false);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);

  async function confirm(): Promise<void> {
    setBusy(true);
    const found = await act();
    setBusy(false);
    setProblem(found);
    if (!found) setOpen(false);
  }
  function change(next: boolean): void {
    setOpen(next);
    setProblem(null);
  }

  return (
    <AlertDialog.Root open={open} onOpenChange={change}>
      <AlertDialog.Trigger className="button danger">{label}</AlertDialog.Trigger>
      <AlertDialog.Portal>
        <AlertDialog.Backdrop className="backdrop" />
        <AlertDialog.Popup className="dialog">
          <AlertDialog.Title className="dialog-title">{title}</AlertDialog.Title>
          <AlertDialog.Description className="dialog-text" render={<div />}>
            {children}
          </AlertDialog.Description>
          {problem && (
            <p className="field-error" role="alert">
              {problem.message}
            </p>
          )}
          <div className="dialog-actions">
            <AlertDialog.Close className="button">Keep it</AlertDialog.Close>
            <button type="button" className="button danger solid" disabled={busy} onClick={() => void confirm()}>
              {verb}
            </button>
          </div>
        </AlertDialog.Popup>
      </AlertDialog.Portal>
    </AlertDialog.Root>
  );
}
