//! Joining an enclosing run: its credential, and the environment without the variables that it set.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use wifshare::{
    BASE_URL_VARIABLE, CAPABILITY_LIFE, Clock, ConfigError, Credential, DELIVERED_TOKENS, DELIVERED_VARIABLE,
    Enclosing, Environment, GATEWAY_VARIABLE, Keeper, RUN_VARIABLE, credential_of_run, delivered_token, enclosing,
    is_gateway,
};

use crate::arguments::IdentityArguments;
use crate::console::Console;
use crate::failure::Failure;
use crate::run_over::RunOver;
use crate::started::{self, Started};

/// Returns the run to join, unless the command line names another identity.
pub(crate) fn run_to_join(identity: &IdentityArguments, environment: &Environment) -> Option<Enclosing> {
    enclosing(environment).filter(|_| !identity.name_an_identity())
}

/// Returns the keeper of the enclosing run, whichever identity it serves.
pub(crate) fn keeper_around(environment: &Environment) -> Option<Keeper> {
    Keeper::of_run(Path::new(environment.os(RUN_VARIABLE)?))
}

/// Returns the credential of the enclosing run, or the capability of its gateway, which is valid as long as the run.
///
/// # Errors
/// Returns an error if the run has no credential that lasts long enough.
pub(crate) fn shared_by(run: &Enclosing, min_life: Option<Duration>, clock: Clock) -> Result<Credential, Failure> {
    match run {
        Enclosing::Store { store, run } => Ok(credential_of_run(run, store, min_life, clock)?),
        Enclosing::Gateway { capability, .. } => {
            let now = clock.now();
            let expires_at = now + CAPABILITY_LIFE.max(min_life.unwrap_or_default());
            Ok(Credential { access_token: capability.clone(), expires_at, obtained_at: now, generation: 0 })
        }
    }
}

/// Converts a configuration error. Inside a run, the run has removed the variables and the job's configuration may be
/// correct, so the hint differs.
pub(crate) fn unconfigured(error: ConfigError, environment: &Environment) -> Failure {
    let is_missing = match error {
        ConfigError::Unconfigured | ConfigError::Incomplete { .. } | ConfigError::NoSource { .. } => true,
        ConfigError::BrokenSource { .. }
        | ConfigError::UnknownSource { .. }
        | ConfigError::BaseUrl { .. }
        | ConfigError::Value { .. } => false,
    };
    if is_missing && let Some(over) = RunOver::of(environment) {
        return over.failure(&error);
    }
    let mut failure = Failure::from(error);
    if is_missing && environment.has(RUN_VARIABLE) {
        failure.hint = Some(
            "the run of wifshare around this command took the job's variables from it; start what needs another \
             identity outside of that run, or let each variable through with --keep-env"
                .to_owned(),
        );
    }
    failure
}

/// Reports that the run of an earlier `start` cannot be joined, so that this command signs in on its own.
pub(crate) fn tell_of_a_run_that_is_over(environment: &Environment, console: Console) {
    if let Some(over) = RunOver::of(environment).filter(RunOver::was_started) {
        console.progress(&format!("{}: signing in again", over.description()));
    }
}

/// The environment without the variables of a run, for a command that does not join it. The profile and the token of a
/// run are not credentials of the user. The run may have ended long ago.
///
/// Restores the variables that `start` removed, and the identity that it signed in with if no other is named.
pub(crate) fn without_a_run(environment: &Environment) -> Cow<'_, Environment> {
    let mut own = as_before_the_run(environment);
    if let Some(started) = Started::in_environment(environment) {
        started.complete(own.to_mut());
    }
    own
}

/// Like [`without_a_run`], but exactly as the job had it, without the identity of `start`.
pub(crate) fn as_before_the_run(environment: &Environment) -> Cow<'_, Environment> {
    let Some(run) = environment.os(RUN_VARIABLE).map(Path::new) else { return Cow::Borrowed(environment) };
    let started = Started::in_environment(environment);
    let mut environment = environment.clone();
    let of_the_run = |environment: &Environment, name: &str| {
        environment.os(name).is_some_and(|path| Path::new(path).starts_with(run))
    };
    if of_the_run(&environment, "ANTHROPIC_CONFIG_DIR") {
        environment.remove("ANTHROPIC_CONFIG_DIR");
        environment.remove("ANTHROPIC_PROFILE");
    }
    if of_the_run(&environment, "ANTHROPIC_IDENTITY_TOKEN_FILE") {
        environment.remove("ANTHROPIC_IDENTITY_TOKEN_FILE");
    }
    for name in DELIVERED_TOKENS {
        if delivered_token(&environment, name).is_some() {
            environment.remove(name);
        }
    }
    if let (Some(gateway), Some(url)) = (environment.text(GATEWAY_VARIABLE), environment.text("ANTHROPIC_BASE_URL"))
        && is_gateway(gateway, url)
    {
        match environment.text(BASE_URL_VARIABLE).map(str::to_owned) {
            Some(before) => environment.set("ANTHROPIC_BASE_URL", before),
            None => environment.remove("ANTHROPIC_BASE_URL"),
        }
    }
    if let Some(started) = started {
        started.restore(&mut environment);
    }
    for name in [DELIVERED_VARIABLE, GATEWAY_VARIABLE, BASE_URL_VARIABLE, RUN_VARIABLE, started::VARIABLE] {
        environment.remove(name);
    }
    Cow::Owned(environment)
}

#[cfg(test)]
mod tests {
    use wifshare::{Secret, delivered};

    use super::*;

    #[test]
    fn variables_of_an_ended_run_are_removed() {
        let environment = Environment::from_iter([
            (RUN_VARIABLE, "/state/key/runs/1-a"),
            ("ANTHROPIC_CONFIG_DIR", "/state/key/runs/1-a/profile"),
            ("ANTHROPIC_PROFILE", "wifshare"),
            ("ANTHROPIC_IDENTITY_TOKEN_FILE", "/state/key/runs/1-a/identity/identity-token"),
            ("ANTHROPIC_AUTH_TOKEN", "t"),
            ("ANTHROPIC_API_KEY", "t"),
            (DELIVERED_VARIABLE, &delivered(&Secret::new("t".to_owned()))),
            ("PATH", "/bin"),
        ]);
        assert_eq!(*without_a_run(&environment), Environment::from_iter([("PATH", "/bin")]));
        let own = Environment::from_iter([
            (RUN_VARIABLE, "/state/key/runs/1-a"),
            ("ANTHROPIC_CONFIG_DIR", "/their/own"),
            ("ANTHROPIC_PROFILE", "theirs"),
            ("ANTHROPIC_AUTH_TOKEN", "theirs"),
            ("ANTHROPIC_API_KEY", "theirs"),
            (DELIVERED_VARIABLE, &delivered(&Secret::new("t".to_owned()))),
        ]);
        let behind_a_gateway = |more: &[(&str, &str)]| {
            let usual = [(RUN_VARIABLE, "/state/key/runs/1-a"), (GATEWAY_VARIABLE, "http://127.0.0.1:9")];
            without_a_run(&usual.iter().chain(more).copied().collect()).into_owned()
        };
        let of_the_run = ("ANTHROPIC_BASE_URL", "http://127.0.0.1:9");
        assert_eq!(behind_a_gateway(&[of_the_run]), Environment::default());
        let before = Environment::from_iter([("ANTHROPIC_BASE_URL", "https://api.example")]);
        assert_eq!(behind_a_gateway(&[of_the_run, (BASE_URL_VARIABLE, "https://api.example")]), before);
        assert_eq!(behind_a_gateway(&[("ANTHROPIC_BASE_URL", "https://api.example")]), before);
        assert!(without_a_run(&own).has("ANTHROPIC_AUTH_TOKEN"));
        assert!(without_a_run(&own).has("ANTHROPIC_CONFIG_DIR") && without_a_run(&own).has("ANTHROPIC_PROFILE"));
    }
}
