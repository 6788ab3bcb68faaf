//! Lists the models that this job can use. Signs in with the shared credential, and calls the API with an HTTP client
//! of its own.
//!
//! ```sh
//! wifshare sandbox                                   # in one terminal; put what it prints into the environment
//! cargo run -p wifshare --example models             # in another
//! ```
//!
//! It also runs in a CI job, with one change: `ureq` is compiled without TLS here, so that the examples need no more
//! crates than the tests. For https, use ureq with its default features.

use std::error::Error;

use wifshare::{Clock, Config, Credential, Environment, HttpClient, Inputs, obtain, renew, resolve};

fn main() -> Result<(), Box<dyn Error>> {
    #[expect(clippy::disallowed_methods, reason = "a program reads its environment once, at its border")]
    let environment: Environment = std::env::vars_os().collect();
    for model in models(&environment)? {
        #[expect(clippy::print_stdout, reason = "the result of this example")]
        {
            println!("{model}");
        }
    }
    Ok(())
}

/// Returns the ids of the models. If the API rejects the credential, renews it once. If several processes do so, only
/// one makes an exchange.
pub fn models(environment: &Environment) -> Result<Vec<String>, Box<dyn Error>> {
    let config = resolve(&Inputs::default(), environment)?;
    let transport = HttpClient::new(environment);
    let clock = Clock::system();
    let credential = obtain(&config, &transport, clock, &|_| {})?;
    let answer = match ask(&config, &credential) {
        Err(ureq::Error::StatusCode(401)) => {
            let successor = renew(&credential, &config, &transport, clock, &|_| {})?;
            ask(&config, &successor)?
        }
        answer => answer?,
    };
    let answer: serde_json::Value = serde_json::from_str(&answer)?;
    let ids = answer["data"].as_array().into_iter().flatten().filter_map(|model| model["id"].as_str());
    Ok(ids.map(str::to_owned).collect())
}

/// Sends one request. The exposed secret stays in this function.
fn ask(config: &Config, credential: &Credential) -> Result<String, ureq::Error> {
    ureq::get(format!("{}/v1/models", config.base_url))
        .header("authorization", format!("Bearer {}", credential.access_token.expose()))
        .header("anthropic-beta", "oauth-2025-04-20")
        .header("anthropic-version", "2023-06-01")
        .call()?
        .body_mut()
        .read_to_string()
}
