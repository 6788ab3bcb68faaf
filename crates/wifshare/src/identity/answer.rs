//! Finds the identity token in the output of a platform.

use serde_json::Value;

use crate::secret::Secret;

/// The position of the token in a response, or in the output of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The whole text.
    Text,
    /// The string at this position of a JSON document (a JSON Pointer, RFC 6901).
    Json(&'static str),
}

impl Answer {
    /// Returns the token, or `None` if it is not there.
    pub(super) fn token(self, bytes: &[u8]) -> Option<Secret> {
        match self {
            Answer::Text => std::str::from_utf8(bytes).ok().map(|text| Secret::new(text.to_owned())),
            Answer::Json(pointer) => {
                let document: Value = serde_json::from_slice(bytes).ok()?;
                document.pointer(pointer)?.as_str().map(|text| Secret::new(text.to_owned()))
            }
        }
    }

    /// The expected format, for the message about another one.
    pub(super) fn expected(self) -> String {
        match self {
            Answer::Text => "an identity token and nothing else was expected".to_owned(),
            Answer::Json(pointer) => {
                format!("JSON with a text in `{}` was expected", pointer.trim_start_matches('/').replace('/', "."))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_found_only_at_its_place_in_the_answer() {
        let token = |answer: Answer, text: &str| answer.token(text.as_bytes()).map(|token| token.expose().to_owned());
        assert_eq!(token(Answer::Text, "t\n").as_deref(), Some("t\n"));
        assert_eq!(token(Answer::Json("/value"), r#"{"count":1,"value":"t"}"#).as_deref(), Some("t"));
        assert_eq!(token(Answer::Json("/0/svids/0/svid"), r#"[{"svids":[{"svid":"t"}]}]"#).as_deref(), Some("t"));
        for text in ["{}", "", "<html>", r#"{"value":42}"#, r#"["value"]"#] {
            assert_eq!(token(Answer::Json("/value"), text), None, "{text}");
        }
    }
}
