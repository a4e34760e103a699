import { CSPProvider } from "@base-ui/react/csp-provider";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./app/App";
import { applyTheme } from "./theme/theme";
import "./theme/tokens.css";
import "./theme/base.css";
import "./ui/ui.css";
import "./list/list.css";
import "./task/task.css";

applyTheme();
// Pages put themselves back where they were.
history.scrollRestoration = "manual";

const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      {/* The content security policy allows no style elements; the classes do what they would. */}
      <CSPProvider disableStyleElements>
        <App />
      </CSPProvider>
    </StrictMode>,
  );
}
