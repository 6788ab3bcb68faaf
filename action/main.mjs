// The step itself: `wifshare start`, with the action's inputs as options. wifshare hands the variables to the following
// steps by itself, masks what is secret, and says what went wrong.

import { annotate, find, flag, identity, input, lines, run } from "./wifshare.mjs";

const binary = find();
try {
  process.exitCode = binary ? await run(binary, ["start", "--format", "github", ...options()]) : missing();
} catch (error) {
  annotate("error", error.message);
  process.exitCode = 2;
}

function options() {
  const options = identity();
  if (input("delivery")) options.push("--delivery", input("delivery"));
  if (flag("api_key")) options.push("--api-key");
  for (const name of lines("keep_env")) options.push("--keep-env", name);
  if (input("max_life")) options.push("--max-life", input("max_life"));
  if (flag("optional")) options.push("--optional");
  // Read by the post; what is wrong is said now.
  flag("summary");
  return options;
}

function missing() {
  const where = input("binary") ? `at ${input("binary")}` : "in PATH, in the action's target/release or among cargo's";
  annotate(
    "error",
    `there is no program \`wifshare\` ${where}\n` +
      "  hint: install it before this step, with cargo for instance, or name it by the input `binary`",
  );
  return 127;
}
