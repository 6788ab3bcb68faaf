// The step itself: `wifshare start`, with the action's inputs as options. wifshare hands the variables to the following
// steps by itself, masks what is secret, and says what went wrong.

import { find, identity, input, lines, run } from "./wifshare.mjs";

const binary = find();
if (binary) {
  const options = identity();
  if (input("delivery")) options.push("--delivery", input("delivery"));
  if (input("api_key") === "true") options.push("--api-key");
  for (const name of lines("keep_env")) options.push("--keep-env", name);
  if (input("max_life")) options.push("--max-life", input("max_life"));
  if (input("optional") === "true") options.push("--optional");
  process.exitCode = await run(binary, ["start", "--format", "github", ...options]);
} else {
  console.log(
    "::error title=wifshare::there is no program `wifshare`%0A  hint: " +
      "install it before this step, with cargo for instance, or name it by the input `binary`",
  );
  process.exitCode = 127;
}
