import { Dialog } from "@base-ui/react/dialog";
import { type SubmitEvent, useState } from "react";
import { useScope } from "../api/context";
import type { Problem } from "../api/errors";
import { navigate, taskPath } from "../app/router";
import { visible } from "../format/format";
import { say } from "../ui/toast";
import { createTask } from "./actions";

/** The dialog that creates a test task. */
export function CreateTask({ open, onOpenChange }: { open: boolean; onOpenChange: (open: boolean) => void }) {
  return (
    <Dialog.Root open={open} onOpenChange={onOpenChange}>
      <Dialog.Portal>
        <Dialog.Backdrop className="backdrop" />
        <Dialog.Popup className="dialog">
          <Dialog.Title className="dialog-title">Create a test task</Dialog.Title>
          <Dialog.Description className="dialog-text">
            It is a task like any other. Without a queue nobody claims it, and it waits for reports.
          </Dialog.Description>
          <Form onDone={() => onOpenChange(false)} />
        </Dialog.Popup>
      </Dialog.Portal>
    </Dialog.Root>
  );
}

function Form({ onDone }: { onDone: () => void }) {
  const { api } = useScope();
  const [suggested] = useState(() => `test-${crypto.getRandomValues(new Uint32Array(1))[0]?.toString(16)}`);
  const [busy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Pick<Problem, "message"> | null>(null);

  async function submit(event: SubmitEvent<HTMLFormElement>): Promise<void> {
    event.preventDefault();
    const fields = new FormData(event.currentTarget);
    const text = (name: string): string => {
      const value = fields.get(name);
      return typeof value === "string" ? value.trim() : "";
    };
    const metadata = parse(text("metadata"));
    if (metadata === INVALID) {
      setProblem({ message: "The metadata is not valid JSON." });
      return;
    }
    const taskId = text("taskId");
    const tags = text("tags").split(/[\s,]+/).filter(Boolean);
    setBusy(true);
    const found = await createTask(api, {
      taskId,
      metadata,
      options: { ...(tags.length > 0 && { tags }), ...(text("queue") && { queue: text("queue") }) },
    });
    setBusy(false);
    setProblem(found);
    if (found) return;
    onDone();
    say(`Created ${visible(taskId)}`);
    navigate(taskPath(taskId));
  }

  return (
    <form className="form" onSubmit={(event) => void submit(event)}>
      <label className="field">
        <span>Task ID</span>
        <input className="input mono" name="taskId" defaultValue={suggested} required maxLength={255} />
      </label>
      <div className="form-pair">
        <label className="field">
          <span>Tags</span>
          <input className="input" name="tags" placeholder="video, nightly" />
        </label>
        <label className="field">
          <span>Queue</span>
          <input className="input" name="queue" maxLength={64} placeholder="none" />
        </label>
      </div>
      <label className="field">
        <span>Metadata, as JSON</span>
        <textarea className="input mono" name="metadata" rows={4} placeholder='{"pages": 12}' spellCheck={false} />
      </label>
      {problem && (
        <p className="field-error" role="alert">
          {problem.message}
        </p>
      )}
      <div className="dialog-actions">
        <Dialog.Close className="button">Close</Dialog.Close>
        <button type="submit" className="button primary" disabled={busy}>
          Create
        </button>
      </div>
    </form>
  );
}

const INVALID = Symbol("invalid");

function parse(text: string): unknown {
  if (!text) return undefined;
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return INVALID;
  }
}
