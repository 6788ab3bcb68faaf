//! How long a job can stay signed in, as far as its source knows, and why.

use std::time::{Duration, SystemTime};

use super::{IdentitySource, variables};
use crate::credential::Credential;
use crate::identity_token::IdentityToken;

/// How long a job can stay signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewalOutlook {
    /// When that ends; `None` if no end is known.
    pub ends_at: Option<SystemTime>,
    /// The reason, to follow "because".
    pub because: String,
}

impl IdentitySource {
    /// How long a job with this credential can stay signed in.
    ///
    /// The credential for a token in a variable lives as long as the one held, or twice the remaining lifetime of the
    /// token, whichever is less (docs/reference/protocol.md §5.3).
    pub fn outlook(
        &self,
        held: &Credential,
        is_spent: impl Fn(&IdentityToken) -> bool,
        now: SystemTime,
    ) -> RenewalOutlook {
        match self {
            IdentitySource::Endpoint(endpoint) => RenewalOutlook {
                ends_at: endpoint.ends_at,
                because: match (endpoint.ends_at, endpoint.end) {
                    (Some(_), _) => format!("what the job asks {} with ends then", endpoint.platform),
                    (None, Some(end)) => {
                        format!("{} issues an identity token whenever it is asked, until {end}", endpoint.platform)
                    }
                    (None, None) => format!("{} issues an identity token whenever it is asked", endpoint.platform),
                },
            },
            IdentitySource::Command(_) => RenewalOutlook {
                ends_at: None,
                because: format!("{} issues an identity token whenever it is asked", self.description()),
            },
            IdentitySource::File { .. } => RenewalOutlook {
                ends_at: None,
                because: format!(
                    "{} is read anew each time, and whoever writes it has to replace its token",
                    self.description()
                ),
            },
            IdentitySource::Variables(tokens) => {
                let unspent = variables::unspent(tokens, is_spent, now);
                let unused = match unspent.len() {
                    0 => "all of them used".to_owned(),
                    left => format!("{left} of them unused"),
                };
                let because = match tokens.len() {
                    1 => format!("{} holds one identity token and each is accepted once", self.description()),
                    all => {
                        format!(
                            "{} hold {all} identity tokens, {unused}, and each is accepted once",
                            self.description()
                        )
                    }
                };
                RenewalOutlook { ends_at: Some(last_of(held, &unspent)), because }
            }
        }
    }
}

/// When the last credential expires if these tokens are exchanged in turn, each when the previous credential is due.
fn last_of(held: &Credential, unspent: &[IdentityToken]) -> SystemTime {
    let lead = held.expires_at.duration_since(held.refresh_at()).unwrap_or_default();
    unspent.iter().fold(held.expires_at, |end, token| {
        let due = end.checked_sub(lead).unwrap_or(end);
        let of_the_token = match token.claims().expires_at {
            Some(over) => over.duration_since(due).unwrap_or(Duration::ZERO) * 2,
            None => held.lifetime(),
        };
        end.max(due + held.lifetime().min(of_the_token))
    })
}

#[cfg(test)]
mod tests {
    use super::super::TokenVariable;
    use super::super::variables::tests::token;
    use super::*;
    use crate::clock::from_epoch_seconds;
    use crate::secret::Secret;

    /// Valid for ten minutes from second 1000. It is due 150 seconds before it expires.
    fn held() -> Credential {
        Credential {
            access_token: Secret::new("t".to_owned()),
            expires_at: from_epoch_seconds(1600),
            obtained_at: from_epoch_seconds(1000),
            generation: 1,
        }
    }

    fn ends_after(exps: &[u64]) -> u64 {
        let given = exps.iter().enumerate().map(|(number, exp)| TokenVariable {
            variable: format!("T{number}"),
            text: Secret::new(token(&format!(r#"{{"jti":"{number}","exp":{exp}}}"#))),
        });
        let source = IdentitySource::Variables(given.collect());
        let is_first = |token: &IdentityToken| token.claims().jti.as_deref() == Some("0");
        let outlook = source.outlook(&held(), is_first, from_epoch_seconds(1000));
        crate::clock::epoch_seconds(outlook.ends_at.expect("an end"))
    }

    #[test]
    fn each_given_token_yields_one_more_credential() {
        assert_eq!(ends_after(&[9000]), 1600, "the first is spent");
        assert_eq!(ends_after(&[9000, 9000]), 1450 + 600);
        assert_eq!(ends_after(&[9000, 9000, 9000]), 1900 + 600);
    }

    #[test]
    fn token_near_expiry_yields_twice_its_remaining_time() {
        assert_eq!(ends_after(&[9000, 1550]), 1450 + 200, "100 seconds left when it is used");
        assert_eq!(ends_after(&[9000, 1400]), 1600, "over when it would be used");
    }

    #[test]
    fn outlook_end_has_a_reason() {
        let given = TokenVariable { variable: "T".to_owned(), text: Secret::new(token("{}")) };
        let source = IdentitySource::Variables(vec![given]);
        let outlook = source.outlook(&held(), |_| true, from_epoch_seconds(1000));
        assert_eq!(outlook.because, "the variable T holds one identity token and each is accepted once");
        let outlook = IdentitySource::file("/t".into()).outlook(&held(), |_| true, from_epoch_seconds(1000));
        assert_eq!(outlook.ends_at, None);
    }
}
