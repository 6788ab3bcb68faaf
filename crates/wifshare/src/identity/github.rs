//! GitHub Actions: an endpoint that issues a new token, about five minutes long, for each request.
//!
//! Source: GitHub's "OpenID Connect reference" and `getIDToken` of the actions toolkit. The request token itself ends
//! about six hours after the job began.

use http::Uri;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Detected, Endpoint, IdentitySource};
use crate::environment::Environment;
use crate::secret::Secret;

const PERMISSION: &str = "add `id-token: write` to the job's `permissions`; \
     GitHub withholds it from pull requests of forks (--optional runs the command without the credential there)";

pub(super) fn detect(environment: &Environment, audience: &str) -> Detected {
    let url = environment.text("ACTIONS_ID_TOKEN_REQUEST_URL");
    let bearer = environment.text("ACTIONS_ID_TOKEN_REQUEST_TOKEN");
    let broken = |reason: &str, hint: &str| Detected::Broken { reason: reason.to_owned(), hint: hint.to_owned() };
    match (url, bearer) {
        (Some(url), Some(bearer)) => match with_audience(url, audience) {
            Some(url) => Detected::Source(IdentitySource::Endpoint(Endpoint {
                platform: "GitHub Actions",
                url,
                bearer: Secret::new(bearer.to_owned()),
                refusal_hint: "the request token ends about six hours after the job began; \
                               in a shorter job, look at the status page of GitHub Actions",
            })),
            None => broken(
                "ACTIONS_ID_TOKEN_REQUEST_URL is not a URL that can be asked",
                "leave the variable as GitHub sets it",
            ),
        },
        (Some(_), None) | (None, Some(_)) => broken(
            "only one of ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN is set",
            "both have to reach this process; look for a step or a container that passes on only one",
        ),
        (None, None) if environment.text("GITHUB_ACTIONS") == Some("true") => Detected::Withheld {
            reason: "this GitHub Actions job may not request identity tokens".to_owned(),
            hint: PERMISSION.to_owned(),
        },
        (None, None) => Detected::Absent,
    }
}

/// The URL already has a query; https is required except on loopback, as for the token endpoint.
fn with_audience(url: &str, audience: &str) -> Option<Uri> {
    let audience = utf8_percent_encode(audience, NON_ALPHANUMERIC);
    let separator = if url.contains('?') { '&' } else { '?' };
    let url: Uri = format!("{url}{separator}audience={audience}").parse().ok()?;
    (url.host().is_some() && crate::message::is_secure(&url)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(variables: &[(&str, &str)]) -> Detected {
        super::detect(&variables.iter().copied().collect(), "https://api.anthropic.com")
    }

    const URL: (&str, &str) = ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://ci.invalid/idtoken?api-version=2.0");
    const TOKEN: (&str, &str) = ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t");

    #[test]
    fn the_audience_joins_the_query() {
        let Detected::Source(IdentitySource::Endpoint(endpoint)) = detect(&[URL, TOKEN]) else { panic!("detected") };
        assert_eq!(
            endpoint.url.to_string(),
            "https://ci.invalid/idtoken?api-version=2.0&audience=https%3A%2F%2Fapi%2Eanthropic%2Ecom"
        );
    }

    #[test]
    fn a_missing_permission_is_recognised_and_explained() {
        let Detected::Withheld { hint, .. } = detect(&[("GITHUB_ACTIONS", "true")]) else { panic!("recognised") };
        assert!(hint.contains("id-token: write"), "{hint}");
    }

    #[test]
    fn elsewhere_nothing_is_found() {
        assert!(matches!(detect(&[]), Detected::Absent));
        assert!(matches!(detect(&[("GITHUB_ACTIONS", "")]), Detected::Absent));
    }

    #[test]
    fn half_of_it_or_an_insecure_url_is_not_a_source() {
        for variables in [
            vec![URL],
            vec![TOKEN],
            vec![("ACTIONS_ID_TOKEN_REQUEST_URL", "http://ci.invalid/x"), TOKEN],
            vec![("ACTIONS_ID_TOKEN_REQUEST_URL", "not a url"), TOKEN],
        ] {
            assert!(matches!(detect(&variables), Detected::Broken { .. }), "{variables:?}");
        }
    }
}
