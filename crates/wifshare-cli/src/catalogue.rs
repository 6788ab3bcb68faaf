//! The catalogue of errors: a stable code, its meaning, causes, evidence and cures.
//!
//! It is the only source: `wifshare explain` prints it and `docs/reference/errors.md` is generated from it. A failure
//! cannot have a code that is not listed here: [`code!`] and the assertion at the end of this file check that at
//! compile time.

/// One error.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The code in `error[…]`.
    pub(crate) code: &'static str,
    /// What the error means, in one sentence.
    pub(crate) meaning: &'static str,
    /// Why it happens, the most common cause first.
    pub(crate) causes: &'static [&'static str],
    /// Where to find evidence.
    pub(crate) evidence: &'static [&'static str],
    /// What to do.
    pub(crate) cures: &'static [&'static str],
}

/// A code that has an entry in the catalogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known(pub(crate) &'static str);

/// A code of the catalogue, checked at compile time. If the compiler stops here, add an entry for the code first.
macro_rules! code {
    ($code:literal) => {
        const { $crate::catalogue::known($code) }
    };
}
pub(crate) use code;

/// All errors, in the order in which a job can meet them.
pub(crate) const CATALOGUE: &[Entry] = &[
    // -- the command line and the configuration --
    Entry {
        code: "usage",
        meaning: "The command line, or a variable that stands for an option, is not valid.",
        causes: &["a plugin, a marketplace, a setting of the mock server or a file that is not what its option takes"],
        evidence: &["the message names the text and what was expected"],
        cures: &["`wifshare COMMAND --help` lists the options, with an example"],
    },
    Entry {
        code: "unconfigured",
        meaning: "Workload identity federation is not configured: neither a rule nor an organisation is set.",
        causes: &[
            "the job's `env` does not name them",
            "the step runs in a pull request of a fork, which gets no variables of the repository",
            "the variables stand in another job, step or environment of the workflow",
        ],
        evidence: &["`wifshare doctor` lists each value and where it came from; blank counts as unset"],
        cures: &[
            "set ANTHROPIC_FEDERATION_RULE_ID (fdrl_…) and ANTHROPIC_ORGANIZATION_ID (a UUID); both stand in the Claude \
             Console, on the page Workload identity",
            "`exec --optional` and `claude --optional` run the command without a credential where nothing is configured",
        ],
    },
    Entry {
        code: "configured-in-part",
        meaning: "One of the two required values is set and the other is not.",
        causes: &[
            "an expression such as `vars.NAME` that names nothing sets a blank variable",
            "one of the two was set for another job or environment",
        ],
        evidence: &["the message names the missing variable; `wifshare doctor` tells blank from unset"],
        cures: &["set the missing one; --optional does not hide half a configuration"],
    },
    Entry {
        code: "no-identity-source",
        meaning: "This job has no way to an identity token, or the CI withholds it.",
        causes: &[
            "the job lacks the permission `id-token: write` (GitHub Actions)",
            "the job's file does not ask for one: `id_tokens` (GitLab), `oidc: true` (Bitbucket)",
            "it is a pull request of a fork, to which the CI gives no identity token",
            "it runs on a machine of a cloud, for which nothing speaks",
            "it is no CI job at all, and neither ANTHROPIC_IDENTITY_TOKEN_FILE nor ANTHROPIC_IDENTITY_TOKEN is set",
        ],
        evidence: &["in GitHub Actions: are ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN set?"],
        cures: &[
            "add `id-token: write` (and `contents: read`) to the job's `permissions`",
            "do what the hint says for the CI that was recognised; docs/guides/ci has a page for each",
            "on a machine of a cloud, name it with --identity-source",
            "elsewhere, set one of the two variables, or name a program with --identity-command",
            "where a job may run without the credential, pass --optional",
        ],
    },
    Entry {
        code: "broken-identity-source",
        meaning: "The CI would give identity tokens, and what is needed to ask for one did not arrive whole.",
        causes: &[
            "a container or a step passes on only a part of the CI's variables, such as one of ACTIONS_ID_TOKEN_REQUEST_…",
            "the request URL was changed on the way",
            "the program that the CI's agent comes with is not on PATH",
            "Azure Pipelines: nobody mapped System.AccessToken into the step",
            "GitLab: the job's `id_tokens` are meant for another audience",
        ],
        evidence: &["the message says which part is missing or wrong"],
        cures: &["pass all of it on as the CI sets it; docs/guides/ci has a page for each"],
    },
    Entry {
        code: "base-url",
        meaning: "ANTHROPIC_BASE_URL (or --base-url) is not a URL that an identity token may be sent to.",
        causes: &[
            "no scheme, a user name or password, a query, or another scheme than https",
            "http to another host than this one: the identity token would travel in the clear",
        ],
        evidence: &["the message quotes the URL and what is wrong with it"],
        cures: &["unset it for the API itself, or give `https://HOST`; http is accepted on loopback alone"],
    },
    Entry {
        code: "implausible-value",
        meaning: "A value is certainly not the id or name that is expected.",
        causes: &[
            "quotes, a name and `=`, or spaces were copied along",
            "an expression such as `${{ vars.NAME }}` or `$NAME` stands where nothing replaces it by its value",
            "the id of something else: a service account in place of a rule, a rule in place of an organisation",
            "a whole page, a file's content, a key or a token was pasted",
        ],
        evidence: &["the message names the variable and what was recognised; it never repeats the value"],
        cures: &[
            "copy the id anew from the Claude Console: fdrl_… (rule), a UUID (organisation), svac_… (service account), \
             wrkspc_… or `default` (workspace)",
            "`wifshare doctor` checks the form of every id",
        ],
    },
    // -- the identity token --
    Entry {
        code: "identity-unreachable",
        meaning: "The CI's endpoint for identity tokens gave no answer.",
        causes: &["the network, a name that does not resolve, a proxy", "the platform is down"],
        evidence: &["the cause in the message; `wifshare doctor` asks it again"],
        cures: &["look at HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE, and at the platform's status page"],
    },
    Entry {
        code: "identity-refused",
        meaning: "The CI refused to issue an identity token.",
        causes: &[
            "the request token has ended: GitHub's lives about six hours from the start of the job",
            "the platform is busy or broken (HTTP 429 or 5xx)",
        ],
        evidence: &["the status and the platform's own words in the message"],
        cures: &["split a job that runs longer; otherwise try again, and look at the platform's status page"],
    },
    Entry {
        code: "identity-unexpected",
        meaning: "Something answered in the place of the CI's endpoint.",
        causes: &["a proxy or a login page", "a request URL that leads elsewhere"],
        evidence: &["the message says what was found instead of JSON with a text in `value`"],
        cures: &["let this host reach the platform directly (NO_PROXY)"],
    },
    Entry {
        code: "identity-file",
        meaning: "The identity token file could not be read.",
        causes: &[
            "the path is wrong, or the file is written later than it is read",
            "it is a directory, a pipe, or closed to this user",
        ],
        evidence: &["the path in the message; `ls -l` on it, as the same user and in the same container"],
        cures: &[
            "ANTHROPIC_IDENTITY_TOKEN_FILE (or --identity-token-file) has to name a regular file that this user can read",
            "for the output of a program there is --identity-command",
        ],
    },
    Entry {
        code: "identity-command",
        meaning: "The identity command could not be run, or did not end well.",
        causes: &[
            "it is not installed or not in PATH",
            "it needs a shell: the words are run as they are",
            "it took too long",
        ],
        evidence: &["how it ended, in the message; run it by hand"],
        cures: &["it has to print one identity token and exit with 0; put pipes and quotes into a script"],
    },
    Entry {
        code: "identity-malformed",
        meaning: "The source did not provide an identity token: a signed JWT in compact form, and nothing else.",
        causes: &[
            "something surrounds the token: quotes, `Bearer `, a JSON answer, a byte order mark, line breaks",
            "an expression or a variable stands in its place, which nothing replaced by its value",
            "the path of a file stands in ANTHROPIC_IDENTITY_TOKEN; a path belongs into ANTHROPIC_IDENTITY_TOKEN_FILE",
            "the file is empty, UTF-16, or another one; a command prints messages beside the token",
            "it has too many claims: more than 16384 bytes are not accepted",
        ],
        evidence: &[
            "the message says what was recognised; it is refused before anything is written down or sent, so the same token \
             works once it stands alone",
        ],
        cures: &[
            "do what the hint says; `jq -r` prints a text without quotes",
            "let the source hold one OIDC identity token and nothing else",
        ],
    },
    Entry {
        code: "identity-spent",
        meaning: "The identity token was taken for an exchange before; each is accepted once, so it is not sent again.",
        causes: &[
            "two steps of the job read one token file or variable",
            "an earlier attempt sent it and its answer was lost",
            "another rule or workspace was signed in to with the same token",
        ],
        evidence: &["the ledger's entry in the message: which process, and when", "`wifshare doctor` shows it too"],
        cures: &[
            "wrap all that shares the token in one `wifshare exec`",
            "use a source that can be asked again: the CI's endpoint, or --identity-command",
            "otherwise run the job again for a new token",
        ],
    },
    Entry {
        code: "identity-expired",
        meaning: "The identity token's life was over before it could be used.",
        causes: &[
            "it was taken long before it was needed: GitHub's live five minutes",
            "the clock of this host is ahead",
        ],
        evidence: &["`wifshare doctor` compares this host's clock with the endpoint's"],
        cures: &["let wifshare ask the CI, just in time", "set the clock (NTP)"],
    },
    Entry {
        code: "subject-unexpected",
        meaning: "The identity token's subject is not the one that --expect-subject names. The token was not used.",
        causes: &[
            "the job runs for another branch, tag, environment or event",
            "the platform writes the subject in another form than the pattern expects",
        ],
        evidence: &["the message has both; `wifshare doctor` shows the subject of the job's token"],
        cures: &["run the job where its subject matches", "correct --expect-subject; each * in it stands for any text"],
    },
    Entry {
        code: "identity-changed",
        meaning: "The source hands out an identity token of another issuer or subject than before, and a run or process \
                  serves one identity alone. Nothing was sent, and what was bought before is served until it ends.",
        causes: &[
            "another job has replaced the identity token file that this one reads",
            "the identity command prints a token for whoever asks, and something that it goes by has changed",
        ],
        evidence: &["the message names issuer and subject before and now"],
        cures: &[
            "give each job an identity token file or command of its own",
            "end the run and start another one for the new identity",
        ],
    },
    // -- the exchange --
    Entry {
        code: "endpoint-unreachable",
        meaning: "The token endpoint could not be reached. The identity token was not sent and is not spent.",
        causes: &[
            "the name does not resolve, nothing listens, or a firewall drops the packets",
            "a proxy that is down, speaks TLS itself, or is named in a way that cannot be read",
        ],
        evidence: &["the cause in the message; `wifshare doctor` names the proxy in force and tries the connection"],
        cures: &[
            "look at ANTHROPIC_BASE_URL, HTTPS_PROXY, ALL_PROXY and NO_PROXY (NO_PROXY takes HOST and HOST:PORT)",
            "percent-encode `/`, `?`, `#` and `%` in a proxy's password",
        ],
    },
    Entry {
        code: "certificate-refused",
        meaning: "A server's certificate was refused. Nothing was sent, and there is no second try: it would end the same.",
        causes: &[
            "a proxy that inspects TLS signs with a root that this host does not know",
            "this system has no root certificates (a slim container image without `ca-certificates`)",
            "SSL_CERT_FILE is set, and the root stands in another program's variable: NODE_EXTRA_CA_CERTS, REQUESTS_CA_BUNDLE \
             or CURL_CA_BUNDLE",
            "the certificate has expired, or this host's clock is wrong",
            "the certificate is for another name: something else answers there",
        ],
        evidence: &[
            "the cause says which of these it is, and which roots are in use",
            "`wifshare doctor` verifies it again",
        ],
        cures: &[
            "add the root to the system's store, or list it in SSL_CERT_FILE (a PEM file)",
            "install `ca-certificates`",
            "unset SSL_CERT_FILE and SSL_CERT_DIR: then what NODE_EXTRA_CA_CERTS, REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE name is \
             used beside the system's roots",
            "set the clock (NTP)",
        ],
    },
    Entry {
        code: "answer-lost",
        meaning: "The identity token was sent and no whole answer came back, so it counts as spent.",
        causes: &["the connection was cut, or the endpoint took longer than 30 s"],
        evidence: &["the cause in the message; the Claude Console lists the exchange if it arrived"],
        cures: &["run the command again where the source can be asked again; otherwise a new token is needed"],
    },
    Entry {
        code: "exchange-refused",
        meaning: "The token endpoint understood the request and said no. From outside every reason looks the same.",
        causes: &[
            "the federation rule does not match: subject prefix, audience or another claim",
            "the rule covers several workspaces and ANTHROPIC_WORKSPACE_ID names none, or names one that the service \
             account is no member of",
            "the rule was deleted or archived, or belongs to another organisation (no entry in the Console then)",
            "the identity token was exchanged before by something else (jti_reused)",
            "by the endpoint's clock the identity token is too old, or from the future",
            "the issuer is registered with another URL, its keys cannot be fetched, or the token lives longer than the \
             issuer's maximum",
        ],
        evidence: &[
            "`likely:` and `ruled out:` below the message: what the claims, the clock and the ledger say",
            "the request id: the Claude Console has the reason under it, on the page Workload identity, under \
             authentication events",
            "`wifshare doctor --rule rule.json` compares a fresh identity token with the rule, offline",
        ],
        cures: &[
            "mend what the first `likely:` names",
            "HTTP 400 names the field: fdrl_… for the rule, a UUID for the organisation, wrkspc_… or `default` for the \
             workspace",
            "HTTP 403, 404 and 405 mean that ANTHROPIC_BASE_URL leads elsewhere, or that something keeps this host out",
        ],
    },
    Entry {
        code: "endpoint-busy",
        meaning: "The token endpoint is busy or broken: HTTP 408, 429 or 5xx.",
        causes: &["load, or an incident on the other side"],
        evidence: &["the status and the request id in the message"],
        cures: &["try again in a while; where the source can be asked again, three tries were made already"],
    },
    Entry {
        code: "endpoint-redirects",
        meaning: "The token endpoint answered with a redirect, which is never followed: the token would travel along.",
        causes: &["ANTHROPIC_BASE_URL names something that leads to the API"],
        evidence: &["`curl -sI $ANTHROPIC_BASE_URL` shows where it leads"],
        cures: &["name the API itself"],
    },
    Entry {
        code: "answer-unexpected",
        meaning: "The token endpoint answered with a success that holds no credential.",
        causes: &["a proxy or a login page answers in its place", "the answer is larger than 1 MiB"],
        evidence: &["what was wrong, in the message"],
        cures: &["look at ANTHROPIC_BASE_URL and at the proxy"],
    },
    Entry {
        code: "credential-short-lived",
        meaning: "Credentials of this rule do not live as long as --min-life asks.",
        causes: &["a credential lives as long as the rule says, and at most twice what is left of the identity token"],
        evidence: &["both times in the message"],
        cures: &["ask for less, or raise the rule's token lifetime in the Claude Console"],
    },
    Entry {
        code: "run-not-renewed",
        meaning: "Inside a run: its credential does not last as long as it has to.",
        causes: &[
            "--min-life asks for more than the run's schedule gives",
            "the run cannot renew; its own log says why",
        ],
        evidence: &["what is left, in the message"],
        cures: &["ask for less; the run renews by its own schedule"],
    },
    Entry {
        code: "delivery-refused",
        meaning: "--delivery asks for more protection than the command could get here, so it is not run.",
        causes: &[
            "--delivery gateway, and a variable that every client prefers is set: ANTHROPIC_API_KEY, ANTHROPIC_AUTH_TOKEN, \
             CLAUDE_CODE_OAUTH_TOKEN, or a profile of your own (ANTHROPIC_PROFILE)",
            "`wifshare start` inside a `wifshare exec` asks for less than that run gives: its keeper would have nothing to \
             renew with",
        ],
        evidence: &["the message names the variable, or the delivery of the run around the command"],
        cures: &[
            "unset the variable for this step, or leave --delivery out",
            "inside a run, wrap the command: `wifshare exec --delivery gateway -- COMMAND`",
        ],
    },
    // -- a keeper --
    Entry {
        code: "memory-not-hidden",
        meaning: "A gateway could not hide its memory, where the credential is, from the command. Nothing was exchanged.",
        causes: &["a seccomp filter of the container that denies the system call prctl"],
        evidence: &["the answer of the system in the message", "the container's seccomp profile"],
        cures: &[
            "allow prctl (PR_SET_DUMPABLE, PR_GET_DUMPABLE) in the seccomp profile",
            "or use another --delivery, which does not promise to keep the credential from the command",
        ],
    },
    Entry {
        code: "keeper",
        meaning: "`wifshare start` could not leave a keeper behind, or the keeper ended at once.",
        causes: &[
            "the process could not be started, or was killed while it signed in",
            "the process that it was to watch has ended already",
        ],
        evidence: &[
            "the message names what was tried, and how the process ended",
            "`wifshare start --verbose` tells each step",
        ],
        cures: &["start it again; `wifshare stop` removes what a killed one left"],
    },
    Entry {
        code: "path-not-text",
        meaning: "A path that later steps need is not UTF-8 text, and they get it as text.",
        causes: &["RUNNER_TEMP, TMPDIR, the working directory or an option holds bytes that are no text"],
        evidence: &["the path in the message; each byte that is no text is shown as \u{fffd}"],
        cures: &["choose another state directory with --state-dir or WIFSHARE_STATE_DIR"],
    },
    Entry {
        code: "run-over",
        meaning: "The environment names a run that is over or another user's, and it does not hold what signing in again needs.",
        causes: &[
            "`wifshare stop`, the end of the job or the keeper's maximum lifetime ended it, or it was killed",
            "the state directory was removed",
            "another user started it: with sudo, or in a container",
        ],
        evidence: &["the message names the run, its user, and when it ended", "`wifshare doctor`"],
        cures: &[
            "run `wifshare start` where the job's own variables are set",
            "end a shell's sign-in by `eval \"$(wifshare stop --format env)\"`, which gives the shell its variables back",
        ],
    },
    Entry {
        code: "handover",
        meaning: "The variables could not be handed to the following steps. What had been started was ended again.",
        causes: &[
            "the file that GITHUB_ENV or GITHUB_OUTPUT names cannot be written",
            "a value has several lines, and a dotenv file cannot hold it",
        ],
        evidence: &["the file and the system's reason in the message"],
        cures: &["choose another --format: github, env, json or dotenv"],
    },
    // -- the state directory --
    Entry {
        code: "state-unusable",
        meaning: "The state directory could not be read or written.",
        causes: &["it is not writable for this user", "the disk is full, or the file system is read-only"],
        evidence: &["the path and the system's reason in the message"],
        cures: &["make it writable, free some space, or choose another with --state-dir or WIFSHARE_STATE_DIR"],
    },
    Entry {
        code: "state-in-the-way",
        meaning: "Something that is not ours stands where a state file or directory belongs.",
        causes: &["a symbolic link, a file for a directory, a pipe, a file that is far too large"],
        evidence: &["`ls -l` on the path in the message"],
        cures: &["look who put it there; remove it if it is yours, or choose another directory"],
    },
    Entry {
        code: "state-damaged",
        meaning: "The ledger of spent identity tokens holds lines that wifshare did not write.",
        causes: &["another program wrote into the file `spent`, or a disk that failed changed it"],
        evidence: &["the file and the first such line in the message"],
        cures: &[
            "an identity token that was used before may stand on that line, and would be sent again: wait until those \
             of before have expired, within minutes at most CIs, and remove the file",
            "or choose another directory with --state-dir or WIFSHARE_STATE_DIR",
        ],
    },
    Entry {
        code: "state-foreign",
        meaning: "The state directory or a file in it belongs to another user.",
        causes: &["an earlier step ran as root or in a container", "a shared temporary folder"],
        evidence: &["both user ids in the message"],
        cures: &["choose a directory of this user with --state-dir or WIFSHARE_STATE_DIR"],
    },
    Entry {
        code: "state-loose",
        meaning: "Other users can reach the state directory or a file in it. It is refused and not repaired.",
        causes: &["it was made by hand or unpacked from an archive", "a volume that is mounted with fixed modes"],
        evidence: &["the mode in the message"],
        cures: &["if nobody else used it, `chmod go-rwx` it; otherwise choose another directory"],
    },
    Entry {
        code: "state-newer",
        meaning: "A newer wifshare wrote a file that this one does not understand. It is left as it is.",
        causes: &["two versions of wifshare in one job"],
        evidence: &["the file and its format in the message"],
        cures: &["use one version in a job, or give each its own directory"],
    },
    Entry {
        code: "locks-unreliable",
        meaning: "The state directory is on a network file system, where a lock may hold on one host only.",
        causes: &["NFS, SMB, 9P, AFS, Lustre, Ceph or FUSE (sshfs and others) under RUNNER_TEMP or the home directory"],
        evidence: &["the file system in the message; `df -T` on the directory"],
        cures: &["choose a directory on a local file system with --state-dir or WIFSHARE_STATE_DIR"],
    },
    Entry {
        code: "lock-held",
        meaning: "Another process kept the lock longer than an exchange with all its retries can take.",
        causes: &["it is stopped (SIGSTOP, a debugger) or hangs"],
        evidence: &["its pid and what it was doing, in the message"],
        cures: &["end that process and try again; the kernel drops a lock with its process"],
    },
    // -- processes --
    Entry {
        code: "gateway-not-opened",
        meaning: "The gateway could not be opened. Nothing was asked for and nothing was spent.",
        causes: &[
            "the port of --listen is taken, or the address is not one of this machine alone",
            "there is something at the path of --unix already, or its directory cannot be written",
        ],
        evidence: &["the cause names the address or the path"],
        cures: &["leave --listen out for a free port, or choose another path"],
    },
    Entry {
        code: "interrupted",
        meaning: "The process was asked to end before anything was spent.",
        causes: &["a signal: Ctrl-C, or the CI cancels the job"],
        evidence: &["the exit code is 128 + the signal's number"],
        cures: &["nothing is left behind; run it again"],
    },
    Entry {
        code: "command-not-found",
        meaning: "There is no such program. It was looked for before anything was spent.",
        causes: &["a misspelling, or a PATH without it"],
        evidence: &["`command -v NAME` in the same step"],
        cures: &["install it, or give its path"],
    },
    Entry {
        code: "command-not-runnable",
        meaning: "The program is there and cannot be run.",
        causes: &["no execute permission", "a directory", "a first line that names no interpreter (Windows line ends)"],
        evidence: &["`ls -l` and `head -1` on it"],
        cures: &["`chmod +x`, or name the interpreter: `wifshare exec -- sh script.sh`"],
    },
    Entry {
        code: "child-lost",
        meaning: "The system could not tell how the command ended.",
        causes: &["something else waited for it: a library in the same process, or a strange init"],
        evidence: &["the system's reason in the message"],
        cures: &["report it, with the platform"],
    },
    Entry {
        code: "stdout",
        meaning: "The result could not be printed.",
        causes: &["whoever reads our standard output has gone", "a full disk behind a redirection"],
        evidence: &["the system's reason in the message"],
        cures: &["check the program that reads the output"],
    },
    Entry {
        code: "internal",
        meaning: "wifshare met a bug of its own. The command is waited for, the run ends in order, and behind the gateway only \
                  the connection that met it ends.",
        causes: &["a case that wifshare does not handle, often an answer that nobody had seen before"],
        evidence: &[
            "the message names the place in the source and the thread; it quotes nothing of what was worked on",
        ],
        cures: &["report the line, with the version and what the other side is"],
    },
    Entry {
        code: "no-thread",
        meaning: "The system gave no more threads to this process. Nothing was exchanged, and no command was started.",
        causes: &["a limit of processes for this user, which counts threads too", "a limit of the container: pids"],
        evidence: &["the system's reason in the message; `ulimit -u` shows the user's limit"],
        cures: &["raise the limit: `ulimit -u` of this user, or `pids` of the container"],
    },
    Entry {
        code: "nothing-to-report",
        meaning: "There is no event to report of in the logs of this state directory.",
        causes: &[
            "no command of wifshare has run with this state directory",
            "the state directory is another one: another RUNNER_TEMP, another user, another --state-dir",
            "--since leaves out what there is",
        ],
        evidence: &["the message names the directory; `wifshare status` shows what is in it"],
        cures: &["name the directory with --state-dir or WIFSHARE_STATE_DIR, or tell of everything with --all"],
    },
    // -- the mock server --
    Entry {
        code: "sandbox",
        meaning: "The mock server could not listen.",
        causes: &["the port is taken", "the address is not a loopback one"],
        evidence: &["the address and the system's reason in the message"],
        cures: &["--listen 127.0.0.1:0 takes any free port"],
    },
    Entry {
        code: "conformance",
        meaning: "A case of the conformance kit could not be tried; it says nothing about the client.",
        causes: &["no directory or no process could be made"],
        evidence: &["the system's reason in the message"],
        cures: &["look at TMPDIR, and run the case again with --case NAME -v"],
    },
    Entry {
        code: "demo",
        meaning: "The demonstration could not be set up.",
        causes: &["no directory or no process could be made"],
        evidence: &["the system's reason in the message"],
        cures: &["look at TMPDIR"],
    },
];

/// Finds the entry of this code.
pub(crate) fn find(code: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.code == code)
}

/// Returns the code as [`Known`].
///
/// # Panics
/// Panics if the code has no entry. In a constant, that is a compile error.
pub(crate) const fn known(code: &'static str) -> Known {
    let mut at = 0;
    while at < CATALOGUE.len() {
        if is_same(CATALOGUE[at].code, code) {
            return Known(code);
        }
        at += 1;
    }
    panic!("this code has no entry in the catalogue");
}

/// Checks at compile time that every code of the library has an entry.
const _: () = {
    let mut at = 0;
    while at < wifshare::Code::ALL.len() {
        known(wifshare::Code::ALL[at].name());
        at += 1;
    }
};

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    one.len() == other.len()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn is_same_compares_whole_texts() {
        assert!(is_same("usage", "usage") && !is_same("usage", "usages") && !is_same("usages", "usage"));
        assert!(!is_same("usage", "usagf") && !is_same("", "a") && is_same("", ""));
    }

    #[test]
    fn catalogue_codes_are_unique_and_entries_complete() {
        let codes: BTreeSet<&str> = CATALOGUE.iter().map(|entry| entry.code).collect();
        assert_eq!(codes.len(), CATALOGUE.len());
        for entry in CATALOGUE {
            assert!(entry.meaning.ends_with('.'), "{}", entry.code);
            for list in [entry.causes, entry.evidence, entry.cures] {
                assert!(!list.is_empty() && list.iter().all(|line| !line.contains("  ")), "{}", entry.code);
            }
        }
    }

    #[test]
    fn every_catalogue_code_is_used_by_an_error() {
        let of_the_library = |code| wifshare::Code::ALL.iter().any(|known| known.name() == code);
        let sources = sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        for entry in CATALOGUE.iter().filter(|entry| !of_the_library(entry.code)) {
            let named = format!("code!(\"{}\")", entry.code);
            assert!(sources.iter().any(|text| text.contains(&named)), "nothing ends with {}", entry.code);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test reads its own sources")]
    fn sources(directory: &std::path::Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).expect("the sources").map(|entry| entry.expect("an entry").path());
        entries
            .flat_map(|path| match path.is_dir() {
                true => sources(&path),
                false => vec![std::fs::read_to_string(path).expect("a source")],
            })
            .collect()
    }
}
