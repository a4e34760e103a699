import { Menu } from "@base-ui/react/menu";
import { use, useState } from "react";
import { ScopeContext } from "../api/context";
import type { Viewer } from "../api/documents";
import { signOut } from "../session/session";
import { chooseTheme, type Theme, THEMES, useTheme } from "../theme/theme";
import { Brand, Check, Contrast, Person, Question } from "../ui/icons";
import { Help } from "./Help";
import { Link, usePathname } from "./router";
import { useShortcut } from "./shortcuts";

const WORDS: Record<Theme, string> = { system: "As the system", light: "Light", dark: "Dark" };

/** The bar above every page, also while nobody knows yet who looks. */
export function Header() {
  const viewer = use(ScopeContext)?.viewer;
  const pathname = usePathname();
  const [help, setHelp] = useState(false);
  useShortcut("?", () => setHelp(true));
  return (
    <header className="header">
      <Link href="/" className="brand" aria-label="spectral-notify, all tasks">
        <Brand />
        <span className="brand-name">spectral-notify</span>
      </Link>
      <nav className="header-nav" aria-label="Main">
        {!viewer?.taskId && (
          <Link href="/" aria-current={pathname === "/" ? "page" : undefined}>
            Tasks
          </Link>
        )}
        <a href="/graphql">Explorer</a>
      </nav>
      <div className="header-tools">
        <button
          type="button"
          className="button quiet square"
          aria-label="Help and shortcuts"
          title="Help and shortcuts (?)"
          onClick={() => setHelp(true)}
        >
          <Question />
        </button>
        <ThemeMenu />
        {viewer && <ViewerMenu viewer={viewer} />}
      </div>
      <Help open={help} onOpenChange={setHelp} />
    </header>
  );
}

function ThemeMenu() {
  const theme = useTheme();
  return (
    <Menu.Root modal={false}>
      <Menu.Trigger className="button quiet square" aria-label="Colours" title="Colours">
        <Contrast />
      </Menu.Trigger>
      <Menu.Portal>
        <Menu.Positioner sideOffset={6} align="end" className="menu-place">
          <Menu.Popup className="menu">
            <Menu.RadioGroup value={theme} onValueChange={(value: Theme) => chooseTheme(value)}>
              {THEMES.map((choice) => (
                <Menu.RadioItem key={choice} value={choice} className="menu-item" closeOnClick>
                  <span className="menu-check">
                    <Menu.RadioItemIndicator>
                      <Check />
                    </Menu.RadioItemIndicator>
                  </span>
                  {WORDS[choice]}
                </Menu.RadioItem>
              ))}
            </Menu.RadioGroup>
          </Menu.Popup>
        </Menu.Positioner>
      </Menu.Portal>
    </Menu.Root>
  );
}

function ViewerMenu({ viewer }: { viewer: Viewer }) {
  const name = viewer.name ?? (viewer.authenticated ? "Signed in" : "Not signed in");
  return (
    <Menu.Root modal={false}>
      <Menu.Trigger className="button quiet" aria-label={viewer.name === null ? name : `Signed in as ${name}`}>
        <Person />
        <span className="viewer-name">{name}</span>
      </Menu.Trigger>
      <Menu.Portal>
        <Menu.Positioner sideOffset={6} align="end" className="menu-place">
          <Menu.Popup className="menu">
            <div className="menu-text">
              <strong>{name}</strong>
              <span>
                {viewer.permissions.length > 0
                  ? `May ${viewer.permissions.map((permission) => permission.toLowerCase()).join(", ")}`
                  : "May do nothing"}
                {viewer.taskId && `, on ${viewer.taskId} alone`}
              </span>
            </div>
            <Menu.Separator className="menu-line" />
            {viewer.authenticated ? (
              <Menu.Item className="menu-item" onClick={signOut}>
                Sign out
              </Menu.Item>
            ) : (
              <Menu.Item className="menu-item" render={<Link href="/#sign-in" />}>
                Sign in
              </Menu.Item>
            )}
          </Menu.Popup>
        </Menu.Positioner>
      </Menu.Portal>
    </Menu.Root>
  );
}
