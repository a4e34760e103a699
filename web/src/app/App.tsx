import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { Provider, useQuery } from "urql";
import { createApi } from "../api/client";
import { may, ScopeContext, useScope } from "../api/context";
import { VIEWER } from "../api/documents";
import { type Problem, problemOf } from "../api/errors";
import { ListPage } from "../list/ListPage";
import { credential, onSessionChange, signOut } from "../session/session";
import { SignIn } from "../session/SignIn";
import { TaskPage } from "../task/TaskPage";
import { Notice, Skeleton } from "../ui/parts";
import { Toast } from "../ui/toast";
import { Header } from "./Header";
import { navigate, taskOfPath, taskPath, useHash, usePathname } from "./router";

/** The whole page. With another credential all of it begins anew. */
export function App() {
  const held = useSyncExternalStore(onSessionChange, credential);
  const api = useMemo(() => createApi(held), [held]);
  return (
    <Provider value={api.query}>
      <Session key={held} api={api} held={held} />
      <Toast />
    </Provider>
  );
}

function Session({ api, held }: { api: ReturnType<typeof createApi>; held: string | null }) {
  const [{ data, error }, ask] = useQuery({ query: VIEWER });
  const problem = !data && error ? problemOf(error) : null;
  const retry = problem?.kind === "unreachable" || problem?.kind === "failed";
  useEffect(() => {
    if (!retry) return;
    const timer = setInterval(ask, 3_000);
    return () => clearInterval(timer);
  }, [retry, ask]);

  const viewer = data?.viewer;
  const scope = useMemo(() => (viewer ? { api, viewer } : null), [api, viewer]);
  return (
    <ScopeContext value={scope}>
      <a className="skip" href="#main">
        Skip to the content
      </a>
      <Header />
      {scope ? <Pages held={held} /> : <Stranger held={held} problem={problem} again={ask} />}
    </ScopeContext>
  );
}

/** What is there before the server has said who looks. */
function Stranger({ held, problem, again }: { held: string | null; problem: Problem | null; again: () => void }) {
  if (held && problem && (problem.kind === "unauthenticated" || problem.kind === "refused")) {
    return <SignIn reason={problem.message} openById={false} />;
  }
  return (
    <main id="main" className="page">
      {problem ? (
        <Notice
          tone="bad"
          title={problem.kind === "unreachable" ? "The server cannot be reached" : "The server is in trouble"}
          action={
            <button type="button" className="button" onClick={again}>
              Try now
            </button>
          }
        >
          {problem.message}
        </Notice>
      ) : (
        <Skeleton rows={8} />
      )}
    </main>
  );
}

function Pages({ held }: { held: string | null }) {
  const { viewer } = useScope();
  const pathname = usePathname();
  const hash = useHash();
  const taskId = taskOfPath(pathname);
  const before = useRef(pathname);
  // A task token is for one task, so there is nothing to choose from.
  const only = pathname === "/" && viewer.taskId ? taskPath(viewer.taskId) : null;
  useEffect(() => {
    if (only) navigate(only, { replace: true });
  }, [only]);

  // Whoever reads with a keyboard or by ear begins at the top of the new page.
  useEffect(() => {
    if (before.current !== pathname) document.getElementById("main")?.focus({ preventScroll: true });
    before.current = pathname;
  }, [pathname]);

  if (taskId !== null) return <TaskPage key={taskId} taskId={taskId} />;
  if (only) return null;
  if (pathname !== "/") {
    return (
      <main id="main" className="page" tabIndex={-1}>
        <Notice title="There is no such page">The address is none of this dashboard’s.</Notice>
      </main>
    );
  }
  if (hash === "#sign-in" && !viewer.authenticated) return <SignIn openById={may(viewer, "READ")} />;
  if (may(viewer, "LIST")) return <ListPage />;
  if (!held) return <SignIn openById={may(viewer, "READ")} />;
  return (
    <main id="main" className="page" tabIndex={-1}>
      <Notice
        title="This credential does not list tasks"
        action={
          <button type="button" className="button" onClick={signOut}>
            Sign in with another
          </button>
        }
      >
        {viewer.name ?? "Whoever it belongs to"} lacks the permission LIST. With the ID of a task its page can be opened
        at <code>/tasks/…</code>.
      </Notice>
    </main>
  );
}
