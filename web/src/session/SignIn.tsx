import { type SubmitEvent, useState } from "react";
import { navigate, taskPath } from "../app/router";
import { Brand } from "../ui/icons";
import { signIn } from "./session";

interface SignInProps {
  /** Why one has to sign in, beyond the ordinary. */
  reason?: string | undefined;
  /** Whether a task can be opened without a credential by whoever knows its ID. */
  openById: boolean;
}

/** Takes a key or a token. */
export function SignIn({ reason, openById }: SignInProps) {
  const [shown, setShown] = useState(false);

  function submit(event: SubmitEvent<HTMLFormElement>): void {
    event.preventDefault();
    const value = new FormData(event.currentTarget).get("credential");
    // A whole header is often what is at hand.
    if (typeof value === "string" && value.trim()) signIn(value.trim().replace(/^(authorization:\s*)?bearer\s+/i, ""));
  }
  function open(event: SubmitEvent<HTMLFormElement>): void {
    event.preventDefault();
    const value = new FormData(event.currentTarget).get("taskId");
    if (typeof value === "string" && value) navigate(taskPath(value));
  }

  return (
    <main id="main" className="sign-in" tabIndex={-1}>
      <div className="card">
        <Brand />
        <h1>Sign in</h1>
        <p className="muted">
          Paste an API key, a bearer token or a task token. It stays in this tab and is forgotten when the tab is closed.
        </p>
        {reason && (
          <p className="field-error" role="alert">
            {reason}
          </p>
        )}
        <form className="form" onSubmit={submit}>
          <label className="field">
            <span>Key or token</span>
            <input
              className="input mono"
              name="credential"
              type={shown ? "text" : "password"}
              autoComplete="off"
              spellCheck={false}
              required
              placeholder="spn_…"
            />
          </label>
          <label className="check">
            <input type="checkbox" checked={shown} onChange={(event) => setShown(event.target.checked)} />
            Show it
          </label>
          <button type="submit" className="button primary wide">
            Sign in
          </button>
        </form>
        <p className="hint">
          The first start of the server prints an admin key and keeps it in <code>admin.key</code> of its data folder.
          More are made with <code>spectral-notify keys create</code>.
        </p>
      </div>
      {openById && (
        <form className="card form" onSubmit={open}>
          <label className="field">
            <span>Or open a task whose ID you know</span>
            <input className="input mono" name="taskId" required maxLength={255} spellCheck={false} />
          </label>
          <button type="submit" className="button wide">
            Open the task
          </button>
        </form>
      )}
    </main>
  );
}
