import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [svelte()],
  build: {
    target: "es2022",
    // The page's content security policy allows no data: addresses.
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  server: {
    // `npm run dev:server`, or a real gemba-cloud.
    proxy: { "/api": { target: process.env.GEMBA_CLOUD ?? "http://127.0.0.1:8087", ws: true } },
  },
  test: { include: ["src/**/*.test.ts"], environment: "node", css: true },
});
