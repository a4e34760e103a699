// The explorer: GraphiQL with its editor, workers and fonts from this server, so that it works where nothing else is
// reached.
import { createRoot } from "react-dom/client";
import "graphiql/style.css";
import { applyTheme } from "../src/theme/theme";
import "../src/theme/tokens.css";
import { Explorer } from "./Explorer";
import "./explorer.css";
import "./workers";

applyTheme();

const root = document.getElementById("root");
if (root) createRoot(root).render(<Explorer />);
