import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

const server = process.env.SPECTRAL_URL ?? "http://127.0.0.1:8000";
const hooks = fileURLToPath(new URL("../clients/react/src/index.ts", import.meta.url));
const proxy = { "/graphql": { target: server, ws: true } };

// The dashboard and the explorer are two pages of one build, so that neither loads the other's code.
const pages = ["index.html", "explorer.html"].filter((page) => existsSync(page));

export default defineConfig({
  plugins: [react()],
  resolve: {
    // The hook package is used as it is in the repository, with this project's React.
    alias: { "@spectral-notify/react": hooks },
    dedupe: ["react", "graphql", "graphql-ws"],
  },
  build: {
    target: "es2022",
    // `light-dark()` stays as it is written.
    cssTarget: ["chrome123", "firefox120", "safari17.5"],
    manifest: true,
    // The content security policy has no `data:` for fonts and scripts: every asset is a file of its own.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      input: pages,
      // Marks that the explorer's libraries set for a compiler that has run on them already.
      onwarn: (warning, warn) => {
        if (warning.code !== "MODULE_LEVEL_DIRECTIVE") warn(warning);
      },
    },
    // The explorer's editor; it loads apart from everything else.
    chunkSizeWarningLimit: 3_000,
  },
  server: { proxy },
  preview: { proxy },
  test: { environment: "node", include: ["src/**/*.test.ts"] },
});
