//! Checks whether the token endpoint's host can be reached, by which route, and how far its clock differs.

use std::time::{Duration, SystemTime};

use wifshare::{CertificateFault, Environment, HttpClient, SendError, answered_at};

use super::finding::Finding;
use crate::clock::clock;

/// The clock difference that the server accepts.
const LEEWAY: Duration = Duration::from_secs(30);

/// Difference between the endpoint's clock and this host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    ahead: Duration,
    behind: Duration,
}

impl Date {
    /// The response was made at some time between `before` and `after`, and the Date header has whole seconds. Both are
    /// allowed for.
    fn of(there: SystemTime, before: SystemTime, after: SystemTime) -> Date {
        const SECOND: Duration = Duration::from_secs(1);
        let since = |later: SystemTime, earlier: SystemTime| later.duration_since(earlier).unwrap_or_default();
        Date { ahead: since(there, after), behind: since(before, there + SECOND) }
    }

    /// The time on the endpoint's clock when this host's clock shows `here`.
    pub(super) fn there(self, here: SystemTime) -> SystemTime {
        here + self.ahead - self.behind
    }
}

/// Sends a HEAD request without any credential and reports how the host responds.
pub(super) fn look(base_url: &str, transport: &HttpClient, environment: &Environment) -> (Vec<Finding>, Option<Date>) {
    let url = format!("{base_url}/");
    let request = http::Request::head(&url).body(zeroize::Zeroizing::new(Vec::new()));
    let Ok(request) = request else { return (Vec::new(), None) };
    let proxy = transport.proxy_of(request.uri());
    let way = match &proxy {
        Some(proxy) => format!("by way of the proxy {proxy}{}", variable_of_the_proxy(environment)),
        None => "directly".to_owned(),
    };
    let trust = match url.starts_with("https://") {
        false => ", in the clear on this host".to_owned(),
        true => format!(", TLS verified against {}", transport.connector().roots()),
    };
    let transport = transport.clone().with_patience(Duration::from_secs(10), Duration::from_secs(15));
    let before = clock().now();
    match transport.send(request) {
        Err(error) => {
            if let Some(fault) = CertificateFault::find(&error) {
                let evidence = format!("{way}: error[certificate-refused]: {}", wifshare::whole_message(&error));
                return (vec![Finding::failed("certificate", evidence, Some(fault.cure()))], None);
            }
            let cure = match (&error, &proxy) {
                (SendError::NotSent(_), Some(_)) => {
                    "look whether that proxy serves this host; NO_PROXY names the hosts that are reached without it"
                }
                (SendError::NotSent(_), None) => {
                    "look whether this host reaches ANTHROPIC_BASE_URL, or needs HTTPS_PROXY; a corporate root belongs \
                     into the system's store or SSL_CERT_FILE"
                }
                (SendError::MaybeSent(_), _) => "something on the way cuts the connection; look at the proxy",
            };
            (vec![Finding::failed("network", format!("{way}: {error}"), Some(cure.to_owned()))], None)
        }
        Ok(response) => {
            let status = response.status();
            let mut findings = vec![match status.is_redirection() {
                false => Finding::ok("network", format!("{base_url} answers, reached {way}{trust}")),
                true => Finding::warning(
                    "network",
                    format!("{base_url} answers with a redirect (HTTP {}), reached {way}", status.as_u16()),
                    "ANTHROPIC_BASE_URL has to name the API itself; a redirect is never followed",
                ),
            }];
            let date = answered_at(&response).map(|there| Date::of(there, before, clock().now()));
            findings.push(judge(date));
            (findings, date)
        }
    }
}

/// Judges the clock difference. One second of it can come from the resolution of the Date header.
fn judge(date: Option<Date>) -> Finding {
    let cure = "set the clock of this host (NTP); the server allows 30 s between its clock and an identity token's";
    match date {
        None => Finding::note("clock", "the endpoint does not tell the time"),
        Some(Date { ahead, .. }) if ahead > LEEWAY => {
            Finding::warning("clock", format!("this host's clock is {} s behind the endpoint's", ahead.as_secs()), cure)
        }
        Some(Date { behind, .. }) if behind > LEEWAY => Finding::warning(
            "clock",
            format!("this host's clock is {} s ahead of the endpoint's", behind.as_secs()),
            cure,
        ),
        Some(Date { ahead, behind }) if ahead.max(behind) > Duration::ZERO => {
            Finding::ok("clock", format!("within {} s of the endpoint's", ahead.max(behind).as_secs() + 1))
        }
        Some(_) => Finding::ok("clock", "agrees with the endpoint's"),
    }
}

fn variable_of_the_proxy(environment: &Environment) -> String {
    ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .find(|name| environment.has(name))
        .map(|name| format!(" ({name})"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    #[test]
    fn clock_difference_over_30_s_is_a_warning() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let second = Duration::from_secs(1);
        let (before, after) = (now - 3 * second, now);
        for (there, verdict, said) in [
            (now, Verdict::Ok, "agrees"),
            (now - 4 * second, Verdict::Ok, "agrees"),
            (now - 5 * second, Verdict::Ok, "within 2 s"),
            (now + 30 * second, Verdict::Ok, "within 31 s"),
            (now + 31 * second, Verdict::Warning, "31 s behind"),
            (now - 34 * second, Verdict::Ok, "within 31 s"),
            (now - 35 * second, Verdict::Warning, "31 s ahead"),
        ] {
            let finding = judge(Some(Date::of(there, before, after)));
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.evidence.contains(said), "{finding:?}");
        }
        assert_eq!(Date::of(now + 60 * second, now, now).there(now), now + 60 * second);
        assert_eq!(judge(None).verdict, Verdict::Note);
    }
}
