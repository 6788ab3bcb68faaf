// Ends the keeper that main has started, without the program: for a post whose program is gone by then.

import { lstatSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

// How long a keeper takes to end at most, after a signal or after its directory is removed.
const PATIENCE_MS = 10_000;

// Ends the keeper of this run and resolves to what was done, or throws what could not be done.
export async function endKeeper(run) {
  const owner = keeperOf(run);
  // Our own directory, removed by whoever was here before.
  if (!owner) return "nothing was left of the run";
  const lives = () => isProcess(owner);
  if (lives()) {
    process.kill(owner.pid, "SIGTERM");
    if (await endsWithin(PATIENCE_MS, lives)) {
      removeWhatIsLeft(run);
      return `ended the keeper (pid ${owner.pid})`;
    }
  }
  // It ends with its directory, also where its process is out of our sight, in another container.
  removeWhatIsLeft(run);
  if (!(await endsWithin(PATIENCE_MS, lives))) throw new Error(`the keeper (pid ${owner.pid}) has not ended`);
  return "removed the run's directory, with which its keeper ends";
}

// Who keeps this run, from its file; nothing where the run is gone. Only what is this user's own is believed.
function keeperOf(run) {
  if (basename(dirname(run)) !== "runs") throw new Error(`${run} is not the directory of a run`);
  try {
    for (const path of [run, join(run, "keeper.json")]) {
      const { uid } = lstatSync(path);
      if (process.getuid && uid !== process.getuid()) throw new Error(`${path} belongs to another user`);
    }
    const { owner } = JSON.parse(readFileSync(join(run, "keeper.json"), "utf8"));
    if (!Number.isSafeInteger(owner?.pid) || owner.pid <= 1) throw new Error(`${run}/keeper.json names no process`);
    return owner;
  } catch (error) {
    if (error.code === "ENOENT") return undefined;
    throw error;
  }
}

// Whether that process lives: its number, started when it says, in this boot. A number alone may be another's by now.
function isProcess({ pid, start_time, boot }) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const isThisBoot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim() === boot;
    // Field 3 is the state, Z for one that has ended; field 22 is when it started (proc_pid_stat(5)).
    return isThisBoot && fields[0] !== "Z" && Number(fields[19]) === start_time;
  } catch {
    return false;
  }
}

async function endsWithin(milliseconds, lives) {
  for (const until = Date.now() + milliseconds; lives(); await pause(50)) {
    if (Date.now() > until) return false;
  }
  return true;
}

// The run's directory, and the credential that it shared if it was the last of its identity.
function removeWhatIsLeft(run) {
  rmSync(run, { recursive: true, force: true });
  const runs = dirname(run);
  try {
    if (readdirSync(runs).length === 0) rmSync(join(dirname(runs), "credential.json"), { force: true });
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
}
