import { useEffect } from "react";
import { useQuery } from "urql";
import { useScope } from "../api/context";
import { TASK } from "../api/documents";
import { type Problem, problemOf } from "../api/errors";
import { Link, listPath, navigate } from "../app/router";
import { useShortcut } from "../app/shortcuts";
import { visible } from "../format/format";
import { signOut } from "../session/session";
import { SignIn } from "../session/SignIn";
import { Back } from "../ui/icons";
import { Notice, Skeleton } from "../ui/parts";
import { LiveTask } from "./LiveTask";

const RETRY_MS = 3_000;

/** One task: what it is now, and its history, live. */
export function TaskPage({ taskId }: { taskId: string }) {
  const { viewer } = useScope();
  const [{ data, error, fetching }, ask] = useQuery({ query: TASK, variables: { taskId } });
  const problem = !data && error ? problemOf(error) : null;
  const retry = problem?.kind === "unreachable" || problem?.kind === "failed";
  useEffect(() => {
    document.title = `${taskId} – spectral-notify`;
    window.scrollTo(0, 0);
  }, [taskId]);
  useEffect(() => {
    if (!retry) return;
    const timer = setInterval(ask, RETRY_MS);
    return () => clearInterval(timer);
  }, [retry, ask]);
  const notAllowed = problem?.kind === "unauthenticated" || problem?.kind === "forbidden";
  useShortcut("u", () => navigate(listPath()));

  if (notAllowed && !viewer.authenticated) return <SignIn reason={problem.message} openById={false} />;
  return (
    <main id="main" className="page" tabIndex={-1}>
      {!viewer.taskId && (
        <p className="crumbs">
          <BackToList />
        </p>
      )}
      {data?.task ? (
        <LiveTask key={data.task.createdAt} first={data.task} onOther={ask} />
      ) : problem ? (
        <Refused problem={problem} taskId={taskId} again={ask} />
      ) : data && !fetching ? (
        <Notice
          title="There is no such task"
          action={
            <button type="button" className="button" onClick={() => ask()}>
              Look again
            </button>
          }
        >
          Nothing is known of <code>{visible(taskId)}</code>. It was never created here, or it was deleted with its history.
        </Notice>
      ) : (
        <Skeleton rows={6} />
      )}
    </main>
  );
}

function BackToList() {
  return (
    <Link href={listPath()} className="back">
      <Back />
      All tasks
    </Link>
  );
}

function Refused({ problem, taskId, again }: { problem: Problem; taskId: string; again: () => void }) {
  const notAllowed = problem.kind === "unauthenticated" || problem.kind === "forbidden";
  return (
    <Notice
      tone="bad"
      title={notAllowed ? "This task may not be read" : "The task cannot be read"}
      action={
        notAllowed ? (
          <button
            type="button"
            className="button"
            onClick={signOut}
          >
            Sign in with another credential
          </button>
        ) : (
          <button type="button" className="button" onClick={again}>
            Try now
          </button>
        )
      }
    >
      <code>{visible(taskId)}</code>: {problem.message}
    </Notice>
  );
}
