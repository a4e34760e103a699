// GraphiQL, and a line above it when the server does not tell its schema.
import { GraphiQL } from "graphiql";
import { useCallback, useState } from "react";
import { chosen } from "../src/theme/theme";
import { Brand } from "../src/ui/icons";
import { HEADERS } from "./credential";
import { EXAMPLES } from "./examples";
import { storage } from "./storage";
import { ask, type Asked, type Known } from "./fetcher";

const INTROSPECTION = "IntrospectionQuery";
// On a phone the operation and its answer take all there is.
const NARROW = "(max-width: 48rem)";

/** The page. */
export function Explorer() {
  const [untold, setUntold] = useState(false);

  const fetcher = useCallback((asked: Asked, known?: Known) => {
    const answer = ask(asked, known);
    if (asked.operationName === INTROSPECTION && answer instanceof Promise) {
      void answer.then((told) => setUntold(!hasData(told)), () => setUntold(false));
    }
    return answer as never;
  }, []);

  return (
    <>
      <header className="bar">
        <a className="bar-brand" href="/" aria-label="spectral-notify, all tasks">
          <Brand />
          <span className="bar-name">spectral-notify</span>
        </a>
        <nav aria-label="Main">
          <a href="/">Tasks</a>
          <a href="/graphql" aria-current="page">
            Explorer
          </a>
        </nav>
      </header>
      {untold && (
        <p className="notice" role="status">
          This server does not tell its schema (<code>SPECTRAL_INTROSPECTION=off</code>, or a fixed list of operations):
          documents run as far as it allows, but nothing is completed or explained here. The repository has it as{" "}
          <code>schema.graphql</code>.
        </p>
      )}
      <main className="explorer">
        <GraphiQL
          fetcher={fetcher}
          defaultTabs={EXAMPLES}
          defaultHeaders={HEADERS}
          defaultEditorToolsVisibility={window.matchMedia(NARROW).matches ? false : "headers"}
          forcedTheme={chosen()}
          shouldPersistHeaders={false}
          storage={storage}
        >
          {/* The bar above has it. */}
          <GraphiQL.Logo>{null}</GraphiQL.Logo>
        </GraphiQL>
      </main>
    </>
  );
}

function hasData(told: unknown): boolean {
  return typeof told === "object" && told !== null && "data" in told && Boolean(told.data);
}
