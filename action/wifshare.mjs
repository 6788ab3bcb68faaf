// What main and post share: the inputs, and the program.

import { spawn } from "node:child_process";
import { accessSync, constants, statSync } from "node:fs";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

// As the runner names them.
export const input = (name) => (process.env[`INPUT_${name.toUpperCase()}`] ?? "").trim();

// An input that is true or false, as GitHub's own toolkit reads it (the core schema of YAML 1.2).
export function flag(name) {
  const text = input(name);
  if (["true", "True", "TRUE"].includes(text)) return true;
  if (["", "false", "False", "FALSE"].includes(text)) return false;
  throw new Error(`the input \`${name}\` is \`${text}\`\n  hint: write true or false`);
}

// Says something at the job's page.
export function annotate(level, text) {
  const escaped = text.replaceAll("%", "%25").replaceAll("\r", "%0D").replaceAll("\n", "%0A");
  console.log(`::${level} title=wifshare::${escaped}`);
}

export const lines = (name) => input(name).split("\n").map((line) => line.trim()).filter(Boolean);

// Who signs in. An input that is not given is left to its variable.
export function identity() {
  const options = {
    anthropic_federation_rule_id: "--federation-rule-id",
    anthropic_organization_id: "--organization-id",
    anthropic_service_account_id: "--service-account-id",
    anthropic_workspace_id: "--workspace-id",
    anthropic_oidc_audience: "--audience",
    anthropic_base_url: "--base-url",
    expect_subject: "--expect-subject",
  };
  return Object.entries(options).flatMap(([name, option]) => (input(name) ? [option, input(name)] : []));
}

// The program: as named, else in PATH, else built in this copy, else where cargo installs.
export function find() {
  if (input("binary")) return isProgram(input("binary")) ? input("binary") : undefined;
  const name = process.platform === "win32" ? "wifshare.exe" : "wifshare";
  const directories = [
    ...(process.env.PATH ?? "").split(delimiter).filter(Boolean),
    fileURLToPath(new URL("../target/release", import.meta.url)),
    join(process.env.CARGO_HOME || join(homedir(), ".cargo"), "bin"),
  ];
  return directories.map((directory) => join(directory, name)).find(isProgram);
}

function isProgram(path) {
  try {
    accessSync(path, constants.X_OK);
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

// What a shell answers where a program is found and cannot be run.
export const NOT_RUNNABLE = 126;

// Runs it with our own streams, passes on what a cancelled job sends us, and tells how it ended as a shell would.
export function run(binary, options, environment = process.env) {
  return new Promise((resolve) => {
    const child = spawn(binary, options, { stdio: "inherit", env: environment });
    for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
    child.on("error", (error) => {
      annotate("error", `could not run ${binary}: ${error.message}`);
      resolve(NOT_RUNNABLE);
    });
    child.on("exit", (code, signal) => resolve(signal ? 1 : code));
  });
}
