import { existsSync } from "node:fs";
import react from "@vitejs/plugin-react";
import { defineConfig } from "vitest/config";

const server = process.env.SPECTRAL_URL ?? "http://127.0.0.1:8000";
const proxy = { "/graphql": { target: server, ws: true } };

// The dashboard and the explorer are two pages of one build, so that neither loads the other's code.
const pages = ["index.html", "explorer.html"].filter((page) => existsSync(page));

export default defineConfig({
  plugins: [react()],
  build: {
    target: "es2022",
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
