//! `wifshare doctor`: checks the sign-in setup without using up an identity token, and suggests fixes.
//!
//! Each check returns [`Finding`]s. The output and the exit code depend only on those. Where the source allows it, the
//! identity check requests an identity token, compares it and drops it; it never sends it.

mod clients;
mod configuration;
mod consumers;
mod finding;
mod identity;
mod network;
mod packages;
mod rule;
mod state;

use wifshare::{
    Config, ConfigError, Environment, ExistingAuth, HttpClient, Principal, Progress, Proof, Purpose, existing_auth,
    obtain, resolve_for,
};

use crate::arguments::DoctorArguments;
use crate::clock::clock;
use crate::console::{Console, print, whole};
use crate::doctor::finding::{Finding, Verdict};
use crate::doctor::rule::Rule;
use crate::explain::WIDTH;
use crate::failure::Failure;
use crate::joined;
use crate::terminal::Terminal;

/// Exit code if the job would work.
const WORKS: u8 = 0;
/// Exit code if the job would not work.
const FAILS: u8 = 1;

pub(crate) fn doctor(arguments: &DoctorArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    let rule = arguments.rule.as_deref().map(Rule::read).transpose()?;
    let findings = examine(arguments, rule.as_ref(), environment, console);
    let works = findings.iter().all(|finding| finding.verdict != Verdict::Failed);
    let terminal = Terminal::of_data(environment);
    // A log keeps its lines unwrapped, so that they can be searched.
    let width = if terminal.is_live { terminal.width.min(WIDTH) } else { usize::MAX };
    let text = match arguments.json {
        true => finding::json(&findings, works),
        false => finding::checklist(&findings, works, width, terminal.is_coloured),
    };
    print("the findings", text.as_bytes())?;
    for finding in findings.iter().filter(|it| it.verdict == Verdict::Failed || it.verdict == Verdict::Warning) {
        let cure = finding.cure.as_ref().map(|cure| format!("\n  cure: {cure}")).unwrap_or_default();
        let level = if finding.verdict == Verdict::Failed { "error" } else { "warning" };
        console.annotate(level, &format!("doctor, {}: {}{cure}", finding.check, finding.evidence));
    }
    Ok(if works { WORKS } else { FAILS })
}

fn examine(
    arguments: &DoctorArguments,
    rule: Option<&Rule>,
    environment: &Environment,
    console: Console,
) -> Vec<Finding> {
    if let Some(around) = joined::run_to_join(&arguments.identity, environment) {
        return [state::of_the_run(&around), clients::find(environment, arguments.delivery)].concat();
    }
    let own = &joined::without_a_run(environment);
    let inputs = arguments.identity.inputs();
    let mut findings = configuration::values(&inputs, own);
    findings.extend(configuration::forms(&inputs, own, rule.is_some()));
    findings.extend(configuration::blanks(own));
    let existing_auth = existing_auth(&inputs, own);
    findings.extend(configuration::shadows(existing_auth, own));
    let purpose = match existing_auth {
        ExistingAuth::OwnProfile(_) => Purpose::IdentityToken,
        ExistingAuth::None | ExistingAuth::Shadowed(_) | ExistingAuth::UnnamedProfile => Purpose::Exchange,
    };
    let resolved = resolve_for(purpose, &inputs, own);
    findings.extend(state::gone(environment, resolved.as_ref().err()));
    let transport = HttpClient::new(own);
    let clock_there = match &resolved {
        Err(ConfigError::BaseUrl { .. }) => None,
        _ => {
            let url = configuration::base_url(&inputs, own);
            let (seen, date) = network::look(&url, &transport, own);
            findings.extend(seen);
            date
        }
    };
    match resolved {
        Ok(config) => findings.extend(examine_config(&config, rule, &transport, clock_there, arguments, console)),
        Err(error) => findings.push(configuration::missing(error, environment, existing_auth)),
    }
    findings.extend(clients::find(own, arguments.delivery));
    findings.push(Finding::note(
        "console",
        "the reason for a refusal stands in the Claude Console alone: page Workload identity, authentication events",
    ));
    findings
}

fn examine_config(
    config: &Config,
    rule: Option<&Rule>,
    transport: &HttpClient,
    clock_there: Option<network::Date>,
    arguments: &DoctorArguments,
    console: Console,
) -> Vec<Finding> {
    let mut findings = vec![identity::source(config)];
    let asked = identity::ask(config, transport);
    if let Ok(token) = &asked
        && config.proof() == Proof::Token
    {
        config.principal.learn(Principal::of(token));
    }
    let (seen, stored) = state::look(config);
    match asked {
        Ok(token) => {
            findings.extend(identity::judge(&token, config, clock_there, rule.is_some()));
            findings.extend(identity::ledger(&token, config, stored.as_ref()));
            findings.extend(rule.map(|rule| rule.judge(&token, config)).unwrap_or_default());
        }
        Err(failed) => findings.push(failed),
    }
    findings.extend(seen);
    findings.extend(consumers::of(&config.source));
    if arguments.exchange {
        findings.push(exchange(config, transport, console));
    }
    findings
}

/// Signs in. The only check that uses up an identity token, and only with `--exchange`.
fn exchange(config: &Config, transport: &HttpClient, console: Console) -> Finding {
    let watch = |step: &Progress<'_>| console.step(step);
    match obtain(config, transport, clock(), &watch) {
        Ok(credential) => {
            console.mask(credential.access_token.expose());
            let left = credential.remaining(clock().now());
            let (generation, left) = (credential.generation, whole(left));
            Finding::ok(
                "exchange",
                format!("signed in: generation {generation}, good for {left}; it is shared and stays"),
            )
        }
        Err(error) => {
            let (code, hint) = (error.code().to_owned(), error.hint());
            let likely = error.diagnosis().map(|diagnosis| diagnosis.likely.clone()).unwrap_or_default();
            let message = format!("error[{code}]: {}", wifshare::whole_message(&error));
            let evidence = [vec![message], likely.iter().map(|it| format!("likely: {it}")).collect()].concat();
            Finding::failed("exchange", evidence.join("; "), hint)
        }
    }
}
