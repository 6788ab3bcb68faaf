// After the job, whether it succeeded, failed or was cancelled: `wifshare stop`, and a word in the job's summary.

import { appendFileSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { find, identity, input, run } from "./wifshare.mjs";

const binary = find();
if (binary) {
  // What the main has started; where it was ended before it could say so, what the inputs name.
  const started = process.env.STATE_wifshare_run;
  const environment = started ? { ...process.env, WIFSHARE_RUN: started } : process.env;
  process.exitCode = await run(binary, ["stop", ...(started ? [] : identity())], environment);
  if (input("summary") !== "false") summarise(binary);
}

// A wifshare that knows no `report` ends with 2 and is not asked again; a summary is no reason to fail.
function summarise(binary) {
  const report = spawnSync(binary, ["report", "--format", "md"], { encoding: "utf8", timeout: 10_000 });
  const file = process.env.GITHUB_STEP_SUMMARY;
  if (report.status === 0 && report.stdout && file) appendFileSync(file, report.stdout);
}
