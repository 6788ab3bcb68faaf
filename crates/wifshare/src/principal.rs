//! The owner of a credential: issuer and subject of the exchanged identity token.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::identity_token::{Fingerprint, IdentityToken};
use crate::message::safe_text;

/// The party that an identity token names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Principal {
    /// `iss` and `sub` (RFC 7519 §4.1.1 and §4.1.2).
    Subject {
        /// The issuer of the token.
        issuer: String,
        /// The subject of the token.
        subject: String,
    },
    /// A token without issuer or subject. Only its fingerprint identifies it.
    Token {
        /// In hexadecimal.
        token: String,
    },
}

/// The principal that this process acts for, once known, with the token that proved it. Clones share one state.
///
/// The principal never changes once it is known: a long-lived process serves one principal.
#[derive(Clone, Debug, Default)]
pub struct OwnPrincipal(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    principal: OnceLock<Principal>,
    /// A token that was requested to learn the principal and is not spent yet. The next exchange uses it. Kept in
    /// memory only.
    unspent: Mutex<Option<IdentityToken>>,
}

impl Principal {
    /// Returns the principal of a token.
    pub fn of(token: &IdentityToken) -> Principal {
        let claims = token.claims();
        match (&claims.issuer, &claims.subject) {
            (Some(issuer), Some(subject)) => Principal::Subject { issuer: issuer.clone(), subject: subject.clone() },
            _ => Principal::Token { token: token.fingerprint().to_string() },
        }
    }
}

/// Formats text that is safe to show.
impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Principal::Subject { issuer, subject } => {
                write!(f, "subject `{}` of issuer {}", safe_text(subject), safe_text(issuer))
            }
            Principal::Token { .. } => f.write_str("a token without issuer or subject"),
        }
    }
}

impl OwnPrincipal {
    /// Returns the principal, if it is known.
    pub fn known(&self) -> Option<&Principal> {
        self.0.principal.get()
    }

    /// Returns whether this process may use credentials of `other`: no different principal is known.
    pub fn may_be(&self, other: &Principal) -> bool {
        self.known().is_none_or(|known| known == other)
    }

    /// Sets the principal. Has no effect if it is already known.
    pub fn learn(&self, principal: Principal) {
        let _ = self.0.principal.set(principal);
    }

    /// Keeps an unspent token for the next exchange.
    pub(crate) fn keep_unspent(&self, token: IdentityToken) {
        *self.unspent() = Some(token);
    }

    /// Takes the kept token, if it is valid for at least another half minute.
    pub(crate) fn take_unspent(&self, now: SystemTime) -> Option<IdentityToken> {
        const SHORTEST: Duration = Duration::from_secs(30);
        let is_fresh = |token: &IdentityToken| token.claims().expires_at.is_some_and(|end| end >= now + SHORTEST);
        self.unspent().take().filter(is_fresh)
    }

    /// Returns the fingerprint of the lasting claims of the kept token.
    pub(crate) fn lasting_claims(&self) -> Option<Fingerprint> {
        self.unspent().as_ref().map(IdentityToken::lasting_claims)
    }

    fn unspent(&self) -> std::sync::MutexGuard<'_, Option<IdentityToken>> {
        self.0.unspent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};

    use super::*;
    use crate::clock::from_epoch_seconds;
    use crate::secret::Secret;

    fn token(claims: &str) -> IdentityToken {
        let [header, claims] = [r#"{"alg":"ES256"}"#, claims].map(|json| BASE64_URL_SAFE_NO_PAD.encode(json));
        IdentityToken::parse(&Secret::new(format!("{header}.{claims}.c2ln"))).expect("a token")
    }

    #[test]
    fn principal_is_issuer_and_subject_or_the_token_itself() {
        let of = |claims: &str| Principal::of(&token(claims));
        assert_eq!(of(r#"{"iss":"i","sub":"s","jti":"1"}"#), of(r#"{"iss":"i","sub":"s","jti":"2"}"#));
        assert_ne!(of(r#"{"iss":"i","sub":"s"}"#), of(r#"{"iss":"i","sub":"t"}"#));
        assert_ne!(of(r#"{"iss":"i","sub":"s"}"#), of(r#"{"iss":"j","sub":"s"}"#));
        for incomplete in [r#"{"iss":"i","jti":"#, r#"{"sub":"s","jti":"#, r#"{"jti":"#] {
            assert_ne!(of(&format!(r#"{incomplete}"1"}}"#)), of(&format!(r#"{incomplete}"2"}}"#)), "{incomplete}");
        }
    }

    #[test]
    fn principal_survives_its_json() {
        for claims in [r#"{"iss":"i","sub":"s"}"#, r#"{"jti":"1"}"#] {
            let principal = Principal::of(&token(claims));
            let json = serde_json::to_string(&principal).expect("JSON");
            assert_eq!(serde_json::from_str::<Principal>(&json).expect("a principal"), principal);
        }
    }

    #[test]
    fn own_principal_is_learned_once() {
        let own = OwnPrincipal::default();
        let (one, two) = (Principal::of(&token(r#"{"jti":"1"}"#)), Principal::of(&token(r#"{"jti":"2"}"#)));
        assert!(own.may_be(&one) && own.may_be(&two));
        own.learn(one.clone());
        own.clone().learn(two.clone());
        assert!(own.may_be(&one) && !own.may_be(&two));
    }

    #[test]
    fn unspent_token_is_taken_once_and_only_while_fresh() {
        let own = OwnPrincipal::default();
        let keep = |claims: &str| own.keep_unspent(token(claims));
        let now = from_epoch_seconds(1000);
        keep(r#"{"exp":1030}"#);
        assert!(own.take_unspent(now).is_some());
        assert!(own.take_unspent(now).is_none());
        for (claims, why) in [(r#"{"exp":1029}"#, "about to end"), ("{}", "its end is unknown")] {
            keep(claims);
            assert!(own.take_unspent(now).is_none(), "{why}");
        }
    }
}
