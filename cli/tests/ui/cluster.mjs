// A real cluster under load, for the browser to look at.

import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { once } from "node:events";
import { createInterface } from "node:readline";

export const TOKEN = "operator";

// Starts `kelvin up` and returns when it serves. It is stopped with `stop`.
export async function startCluster(...more) {
  const dir = mkdtempSync(join(tmpdir(), "kelvin-ui-"));
  mkdirSync(join(dir, "nvme"));
  const started = await start([
    "up", "--model", process.env.KELVIN_UI_MODEL ?? "toy", "--listen", "127.0.0.1:0", "--json", "--run-dir", dir,
    "--dram", process.env.KELVIN_UI_DRAM ?? "1MiB", "--data", join(dir, "data"), "--nvme", `${join(dir, "nvme")}=64MiB`, ...more,
  ]);
  const stop = async () => {
    await started.stop();
    rmSync(dir, { recursive: true, force: true });
  };
  return { ...started, stop };
}

// A router before another engine, which is a whole cluster here.
export async function startRouter({ listen }, ...more) {
  const router = await start(["router", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--backend", `http://${listen}`, ...more]);
  return { ...router, router_admin: `http://${router.admin}` };
}

async function start(flags) {
  const child = spawn(process.env.KELVIN_BIN, flags, {
    env: { ...process.env, KELVIN_ADMIN_TOKEN: TOKEN, KELVIN_LOG: "warn" }, stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = once(child, "exit");
  const stop = async () => {
    child.kill("SIGTERM");
    await ended;
  };
  const line = new Promise((ready) => createInterface({ input: child.stdout }).once("line", ready));
  const first = await Promise.race([line, ended]);
  if (Array.isArray(first)) throw new Error(`kelvin ${flags[0]} ended with ${first[0]}`);
  return { ...JSON.parse(first), stop };
}

const SUBJECTS = ["caches", "tides", "orchards", "glaciers", "violins", "lanterns", "harbours", "satellites"];

// One conversation's turn: a prefix that many share, one of its own, a question.
function turn(model, number) {
  const shared = `You know everything about ${SUBJECTS[number % 4]}. `.repeat(12);
  const own = `Conversation ${Math.floor(number / 3)} is about ${SUBJECTS[number % 8]} and what follows from them. `.repeat(1 + (number % 5));
  return { model, prompt: `${shared}${own}Question ${number % 3}?`, max_tokens: 8, temperature: 0 };
}

// Sends requests, a few at a time, until `stop`; how many were answered.
export function startLoad({ listen, model }) {
  let going = true;
  let number = 0;
  let answered = 0;
  const worker = async () => {
    while (going) {
      number += 1;
      try {
        const answer = await fetch(`http://${listen}/v1/completions`, {
          method: "POST", headers: { "content-type": "application/json", "x-request-id": `load-${number}` },
          body: JSON.stringify(turn(model, number % 240)),
        });
        await answer.text();
        answered += answer.ok ? 1 : 0;
      } catch {
        // The cluster is being stopped, or a worker is busy: the next one counts.
      }
      await new Promise((done) => setTimeout(done, 20));
    }
  };
  const workers = [worker(), worker(), worker()];
  return {
    answered: () => answered,
    stop: async () => {
      going = false;
      await Promise.all(workers);
    },
  };
}
