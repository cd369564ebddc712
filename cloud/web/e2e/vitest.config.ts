import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["e2e/**/*.test.ts"],
    environment: "node",
    // Vite gives BASE_URL a meaning of its own before the tests run.
    env: { GEMBA_URL: process.env.BASE_URL ?? "" },
    // One browser and one server: in order, as a person would.
    fileParallelism: false,
    sequence: { concurrent: false },
    testTimeout: 300_000,
    hookTimeout: 60_000,
  },
});
