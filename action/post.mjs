// After the job, whether it succeeded, failed or was cancelled: `wifshare stop`, which also has a word in the job's
// summary.

import { find, identity, input, run } from "./wifshare.mjs";

const binary = find();
if (binary) {
  // What the main has started; where it was ended before it could say so, what the inputs name.
  const started = process.env.STATE_wifshare_run;
  const environment = { ...process.env };
  if (started) environment.WIFSHARE_RUN = started;
  if (input("summary") === "false") environment.WIFSHARE_SUMMARY = "off";
  process.exitCode = await run(binary, ["stop", ...(started ? [] : identity())], environment);
}
