//! `wifshare token`: prints the shared access token.

use std::io::Write;
use std::time::SystemTime;

use wifshare::{
    Clock, Credential, Environment, ExistingAuth, HttpClient, Interrupted, ObtainError, Progress, existing_auth,
    obtain, obtain_lasting, prove, resolve,
};
use zeroize::Zeroizing;

use crate::arguments::{Format, TokenArguments};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::Console;
use crate::event_writer::EventWriter;
use crate::failure::Failure;
use crate::joined;
use crate::signals;

pub(crate) fn token(arguments: &TokenArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    let printed = obtain_and_print(arguments, environment, console);
    if let (Err(failure), Format::Env) = (&printed, arguments.format) {
        // Makes a shell that evaluates the output fail. If standard output is closed, nothing is evaluated.
        let _ = std::io::stdout().write_all(crate::shell::failure(failure.exit_code()).as_bytes());
    }
    printed
}

fn obtain_and_print(arguments: &TokenArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    let clock = clock();
    let credential = match joined::run_to_join(&arguments.identity, environment) {
        Some(around) => {
            let credential = joined::shared_by(&around, arguments.min_life, clock)?;
            EventWriter::of_a_moment(around.directory()).step(&Progress::Found(&credential));
            credential
        }
        None => shared(arguments, environment, console, clock)?,
    };
    // The token is cached, and the caller that sent the signal does not want it any more.
    if signals::code_of_interruption().is_some() {
        return Err(ObtainError::from(Interrupted).into());
    }
    console.mask(credential.access_token.expose());
    print(&credential, arguments.format, clock.now())
}

fn shared(
    arguments: &TokenArguments,
    environment: &Environment,
    console: Console,
    clock: Clock,
) -> Result<Credential, Failure> {
    let own = &joined::without_a_run(environment);
    let inputs = arguments.identity.inputs();
    if let ExistingAuth::Shadowed(name) = existing_auth(&inputs, own) {
        console.warning(&format!("{name} is set; clients that see it use it and not this token"));
    }
    let config = resolve(&inputs, own);
    let config = config.map_err(|error| joined::unconfigured(error, environment))?;
    joined::tell_of_a_run_that_is_over(environment, console);
    let transport = HttpClient::new(own);
    prove(&config, &transport, clock, &|step| console.step(step))?;
    let events = EventWriter::of_a_moment(config.store().directory());
    let watch = |step: &Progress<'_>| {
        // From the lock on, a signal must not end this process between the exchange and the write to the cache.
        if matches!(step, Progress::Locked | Progress::Waiting { .. }) {
            // Without a thread for that, a signal has its default action.
            let _ = signals::listen();
        }
        console.step(step);
        events.step(step);
        crate::exec::die_if_told_to(step);
    };
    Ok(match arguments.min_life {
        None => obtain(&config, &transport, clock, &watch)?,
        Some(asked) => obtain_lasting(asked, &config, &transport, clock, &watch)?,
    })
}

fn print(credential: &Credential, format: Format, now: SystemTime) -> Result<u8, Failure> {
    let token = credential.access_token.expose();
    let text = Zeroizing::new(match format {
        Format::Text | Format::ApiKeyHelper => format!("{token}\n"),
        Format::Header => format!("Authorization: Bearer {token}\n"),
        Format::Env => format!("ANTHROPIC_AUTH_TOKEN={}\n", quoted(token)),
        Format::CredentialProcess => {
            let object = serde_json::json!({
                "Version": 1,
                "AccessToken": token,
                "TokenType": "Bearer",
                "Expiration": humantime::format_rfc3339_seconds(credential.expires_at).to_string(),
            });
            format!("{object}\n")
        }
        Format::Json => {
            let expires_at = credential.expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let object = serde_json::json!({
                "access_token": token,
                "token_type": "Bearer",
                "expires_in": credential.remaining(now).as_secs(),
                "expires_at": expires_at.as_secs(),
            });
            format!("{object}\n")
        }
    });
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        Failure::new(
            code!("stdout"),
            format!("could not print the access token: {error}"),
            Some("check the program that reads the output"),
        )
    })?;
    Ok(0)
}

/// Quotes a text with single quotes if a shell would interpret it.
pub(crate) fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.~+/=".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_text_is_quoted_only_if_needed() {
        assert_eq!(quoted("sk-ant-oat01-aZ_9.~"), "sk-ant-oat01-aZ_9.~");
        assert_eq!(quoted("a$(b)"), "'a$(b)'");
        assert_eq!(quoted("a'b"), r"'a'\''b'");
    }
}
