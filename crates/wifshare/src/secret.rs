//! A text that must not be shown: no `Display`, no `Serialize`, and [`Secret::expose`] as the only access.

use std::fmt;

use zeroize::Zeroizing;

/// A secret text that is wiped from memory when dropped.
///
/// It can only be compared, cloned and exposed. `Debug` prints its length.
#[derive(Clone)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Wraps a text. The `String` is consumed; the caller has to wipe any other copy.
    pub fn new(text: String) -> Self {
        Secret(Zeroizing::new(text.into_boxed_str()))
    }

    /// Returns the text. This is the only way to read it, so each use deserves a review.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

/// Compares every byte, so that the time does not reveal where two secrets differ.
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
