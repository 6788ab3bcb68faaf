//! A text that must not be seen: no `Display`, no `Serialize`, and one door named [`Secret::expose`].

use std::fmt;

use zeroize::Zeroizing;

/// A secret text, wiped from memory when dropped.
///
/// It can be compared, handed on and exposed, and nothing else: `Debug` says how long it is, never what it is.
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Takes a text into custody. The `String` is consumed; a copy of it elsewhere is the caller's to wipe.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text.into_boxed_str()))
    }

    /// The one way to read a secret. Each use is a place to be careful at.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// Equality looks at every byte, so that the time it takes says nothing about where two secrets part.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_only_the_length() {
        let secret = Secret::new("canary-7f3a".to_owned());
        assert_eq!(format!("{secret:?}"), "Secret(11 bytes)");
    }

    #[test]
    fn secrets_are_equal_if_every_byte_is() {
        let secret = |text: &str| Secret::new(text.to_owned());
        assert_eq!(secret("abc"), secret("abc"));
        assert_ne!(secret("abc"), secret("abd"));
        assert_ne!(secret("abc"), secret("abcd"));
        assert_ne!(secret(""), secret("a"));
        assert_ne!(secret("ab"), secret("ba"), "two differences do not make up for one another");
    }
}
