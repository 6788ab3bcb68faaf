//! Identity tokens in variables of the job. Each of them allows one exchange.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::{Detected, IdentityError, IdentitySource};
use crate::environment::Environment;
use crate::hexadecimal::hexadecimal;
use crate::identity_token::{IdentityToken, Malformed};
use crate::principal::Principal;
use crate::secret::Secret;

/// A variable with an identity token.
#[derive(Clone, Debug)]
pub struct TokenVariable {
    /// The variable's name.
    pub variable: String,
    /// The variable's value.
    pub text: Secret,
}

impl TokenVariable {
    /// A hash of these tokens.
    pub(crate) fn fingerprint(tokens: &[TokenVariable]) -> String {
        let mut hash = Sha256::new();
        for given in tokens {
            hash.update((given.text.expose().len() as u64).to_be_bytes());
            hash.update(given.text.expose());
        }
        hexadecimal(&hash.finalize())
    }
}

/// The variable that all official clients read.
const FIRST: &str = "ANTHROPIC_IDENTITY_TOKEN";
/// The variable that lists the other variables, in order of use.
const LIST: &str = "WIFSHARE_IDENTITY_TOKEN_VARIABLES";
/// An upper limit that no job should reach.
const MOST: usize = 64;

/// Finds the user's tokens: in the variables of the list, or else in `ANTHROPIC_IDENTITY_TOKEN`,
/// `ANTHROPIC_IDENTITY_TOKEN_2`, `ANTHROPIC_IDENTITY_TOKEN_3` and so on.
pub(super) fn detect(environment: &Environment) -> Detected {
    let given = |variable: &str| {
        // A value that is not Unicode is refused later with a reason. It must not count as unset.
        let text = Secret::new(environment.os(variable)?.to_string_lossy().trim().to_owned());
        Some(TokenVariable { variable: variable.to_owned(), text })
    };
    let Some(list) = environment.text(LIST) else {
        let mut numbered: Vec<(usize, &str)> = environment.iter().filter_map(|(name, _)| numbered(name)).collect();
        numbered.sort_unstable();
        let names = std::iter::once(FIRST).chain(numbered.into_iter().map(|(_, name)| name));
        let tokens: Vec<TokenVariable> = names.filter_map(given).collect();
        return match tokens.is_empty() {
            true => Detected::Absent,
            false => Detected::Source(IdentitySource::Variables(tokens)),
        };
    };
    let names: Vec<&str> = list.split([',', ' ', '\n', '\t']).filter(|name| !name.is_empty()).take(MOST).collect();
    match names.iter().map(|name| given(name).ok_or(name)).collect::<Result<Vec<TokenVariable>, _>>() {
        Ok(tokens) => Detected::Source(IdentitySource::Variables(tokens)),
        Err(missing) => Detected::Broken {
            reason: format!("{LIST} names {missing}, which is not set"),
            hint: format!("declare {missing} where the job's identity tokens are declared, or take it from the list"),
        },
    }
}

/// Splits off the number at the end of a variable's name.
fn numbered(name: &OsStr) -> Option<(usize, &str)> {
    let name = name.to_str()?;
    let digits = name.strip_prefix(FIRST)?.strip_prefix('_')?;
    let number = digits.parse().ok().filter(|number| (2..=MOST).contains(number))?;
    // Only one notation: `+3` and `03` are other variables.
    digits.starts_with(|digit: char| matches!(digit, '1'..='9')).then_some((number, name))
}

/// The first token that is neither spent nor expired. If there is none, the last token, whose exchange reports the
/// reason.
pub(super) fn next(
    tokens: &[TokenVariable],
    is_spent: impl Fn(&IdentityToken) -> bool,
    now: SystemTime,
) -> Result<IdentityToken, IdentityError> {
    let mut last = Err(IdentityError::Malformed { origin: described(tokens), reason: Malformed::Empty });
    for given in tokens {
        match parsed(given) {
            Ok(token) if !is_over(&token, now) && !is_spent(&token) => return Ok(token),
            // Report an invalid text only if there is no valid token.
            Err(_) if last.is_ok() => {}
            other => last = other,
        }
    }
    last
}

/// The tokens that can still be exchanged.
pub(super) fn unspent(
    tokens: &[TokenVariable],
    is_spent: impl Fn(&IdentityToken) -> bool,
    now: SystemTime,
) -> Vec<IdentityToken> {
    let readable = tokens.iter().filter_map(|given| parsed(given).ok());
    readable.filter(|token| !is_over(token, now) && !is_spent(token)).collect()
}

/// The distinct principals of the tokens. Invalid tokens are ignored.
pub(super) fn principals(tokens: &[TokenVariable]) -> Vec<Principal> {
    let mut principals = Vec::new();
    for principal in tokens.iter().filter_map(|given| parsed(given).ok()).map(|token| Principal::of(&token)) {
        if !principals.contains(&principal) {
            principals.push(principal);
        }
    }
    principals
}

/// Lists the variables: "the variable A", "the variables A, B and C".
pub(super) fn described(tokens: &[TokenVariable]) -> String {
    let names: Vec<&str> = tokens.iter().map(|given| given.variable.as_str()).collect();
    match &names[..] {
        [] => "no variable".to_owned(),
        [one] => format!("the variable {one}"),
        [first @ .., last] => format!("the variables {} and {last}", first.join(", ")),
    }
}

fn parsed(given: &TokenVariable) -> Result<IdentityToken, IdentityError> {
    IdentityToken::parse(&given.text)
        .map_err(|reason| IdentityError::Malformed { origin: format!("the variable {}", given.variable), reason })
}

/// The server allows a clock skew of 30 s.
fn is_over(token: &IdentityToken, now: SystemTime) -> bool {
    let ago = token.claims().expires_at.and_then(|end| now.duration_since(end).ok());
    ago.is_some_and(|ago| ago > Duration::from_secs(30))
}

#[cfg(test)]
pub(super) mod tests {
    use base64::Engine;

    use super::*;
    use crate::clock::from_epoch_seconds;

    pub(in crate::identity) fn token(claims: &str) -> String {
        format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims))
    }

    fn names(detected: Detected) -> Vec<String> {
        let Detected::Source(IdentitySource::Variables(tokens)) = detected else { panic!("{detected:?}") };
        tokens.into_iter().map(|given| given.variable).collect()
    }

    #[test]
    fn given_tokens_are_ordered_by_number_or_list() {
        let numbered = [
            ("ANTHROPIC_IDENTITY_TOKEN_10", "t"),
            ("ANTHROPIC_IDENTITY_TOKEN", "t"),
            ("ANTHROPIC_IDENTITY_TOKEN_2", "t"),
            ("ANTHROPIC_IDENTITY_TOKEN_3", " "),
            ("ANTHROPIC_IDENTITY_TOKEN_FILE", "/x"),
            ("ANTHROPIC_IDENTITY_TOKEN_1", "t"),
            ("ANTHROPIC_IDENTITY_TOKEN_65", "t"),
            ("ANTHROPIC_IDENTITY_TOKEN_04", "t"),
            ("ANTHROPIC_IDENTITY_TOKEN_+5", "t"),
        ];
        let found = names(detect(&numbered.into_iter().collect()));
        assert_eq!(found, ["ANTHROPIC_IDENTITY_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_2", "ANTHROPIC_IDENTITY_TOKEN_10"]);
        let listed = [("WIFSHARE_IDENTITY_TOKEN_VARIABLES", "B, A"), ("A", "t"), ("B", "t"), ("C", "t")];
        assert_eq!(names(detect(&listed.into_iter().collect())), ["B", "A"]);
        assert!(matches!(detect(&Environment::default()), Detected::Absent));
    }

    #[test]
    fn missing_listed_variable_is_named() {
        let listed = [("WIFSHARE_IDENTITY_TOKEN_VARIABLES", "A,B"), ("A", "t")];
        let Detected::Broken { reason, .. } = detect(&listed.into_iter().collect()) else { panic!("broken") };
        assert!(reason.contains("names B"), "{reason}");
    }

    #[test]
    fn next_token_is_the_first_unspent_and_unexpired() {
        let given =
            |name: &str, claims: &str| TokenVariable { variable: name.to_owned(), text: Secret::new(token(claims)) };
        let tokens = [
            given("A", r#"{"jti":"1","exp":500}"#),
            given("B", r#"{"jti":"2","exp":2000}"#),
            given("C", r#"{"jti":"3","exp":2000}"#),
            TokenVariable { variable: "D".to_owned(), text: Secret::new("nonsense".to_owned()) },
        ];
        let now = from_epoch_seconds(1000);
        let is_two = |token: &IdentityToken| token.claims().jti.as_deref() == Some("2");
        assert_eq!(next(&tokens, |_| false, now).unwrap().claims().jti.as_deref(), Some("2"));
        assert_eq!(next(&tokens, is_two, now).unwrap().claims().jti.as_deref(), Some("3"));
        assert_eq!(
            next(&tokens, |_| true, now).unwrap().claims().jti.as_deref(),
            Some("3"),
            "spent, and it will say so"
        );
        assert!(next(&tokens[3..], |_| false, now).is_err());
        assert_eq!(unspent(&tokens, is_two, now).len(), 1);
        assert_eq!(described(&tokens[..3]), "the variables A, B and C");
    }

    #[test]
    fn token_is_over_30_s_after_its_expiry() {
        let token = IdentityToken::parse(&Secret::new(token(r#"{"exp":1000}"#))).expect("a token");
        assert!(!is_over(&token, from_epoch_seconds(1030)));
        assert!(is_over(&token, from_epoch_seconds(1031)));
    }

    #[test]
    fn spent_token_error_wins_over_malformed_token_error() {
        let given = |name: &str, text: String| TokenVariable { variable: name.to_owned(), text: Secret::new(text) };
        let spent = given("A", token(r#"{"jti":"1"}"#));
        let (nonsense, more) = (given("B", "nonsense".to_owned()), given("C", "nonsense".to_owned()));
        let last = next(&[spent, nonsense.clone(), more.clone()], |_| true, SystemTime::UNIX_EPOCH);
        assert_eq!(last.expect("the spent one").claims().jti.as_deref(), Some("1"));
        let error = next(&[nonsense, more], |_| true, SystemTime::UNIX_EPOCH).expect_err("no token at all");
        assert!(matches!(&error, IdentityError::Malformed { origin, .. } if origin == "the variable C"), "{error}");
    }
}
