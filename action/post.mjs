// After the job, whether it succeeded, failed or was cancelled: `wifshare stop`, which also has a word in the job's
// summary.

import { endKeeper } from "./keeper.mjs";
import { NOT_RUNNABLE, annotate, find, identity, input, run } from "./wifshare.mjs";

// What the main has started; where it was ended before it could say so, what the inputs name.
const started = process.env.STATE_wifshare_run;
const binary = find();
const environment = { ...process.env };
if (started) environment.WIFSHARE_RUN = started;
if (input("summary").toLowerCase() === "false") environment.WIFSHARE_SUMMARY = "off";
const code = binary ? await run(binary, ["stop", ...(started ? [] : identity())], environment) : NOT_RUNNABLE;
if (code !== NOT_RUNNABLE) {
  process.exitCode = code;
} else if (started) {
  try {
    console.log(`wifshare: the program is gone; ${await endKeeper(started)}`);
  } catch (error) {
    annotate("warning", `the program is gone, and what it started could not be ended: ${error.message}`);
  }
}
