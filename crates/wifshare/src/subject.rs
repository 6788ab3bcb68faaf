//! The subject that an identity token is expected to have.

use std::fmt;

/// A subject pattern: each `*` matches any text, including none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubjectPattern(String);

impl SubjectPattern {
    /// Creates a pattern from this text.
    pub fn new(text: &str) -> SubjectPattern {
        SubjectPattern(text.to_owned())
    }

    /// Returns the pattern's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether a token's subject matches.
    pub fn matches(&self, subject: &str) -> bool {
        let Some((start, rest)) = self.0.split_once('*') else { return self.0 == subject };
        let Some(mut left) = subject.strip_prefix(start) else { return false };
        let (between, end) = rest.rsplit_once('*').unwrap_or(("", rest));
        // The first match leaves the most text for what follows.
        for part in between.split('*') {
            match left.find(part) {
                Some(place) => left = &left[place + part.len()..],
                None => return false,
            }
        }
        left.ends_with(end)
    }
}

impl fmt::Display for SubjectPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_whole_subject_and_star_any_text() {
        for (pattern, subject, expected) in [
            ("repo:o/r:ref:refs/heads/main", "repo:o/r:ref:refs/heads/main", true),
            ("repo:o/r:ref:refs/heads/main", "repo:o/r:ref:refs/heads/main2", false),
            ("repo:o/r", "repo:o/r:ref:refs/heads/main", false),
            ("repo:o/r:*", "repo:o/r:pull_request", true),
            ("repo:o/r:*", "repo:o/r2:pull_request", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("*:main", "a:main", true),
            ("*:main", "a:mainly", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("a*b*c", "a1b2c3", false),
            ("a**c", "abc", true),
            ("ab*ba", "aba", false),
            ("a*b*b", "ab", false),
            ("*x*", "axb", true),
            ("*x*", "ab", false),
            ("ü*", "üb", true),
        ] {
            assert_eq!(SubjectPattern::new(pattern).matches(subject), expected, "{pattern} {subject}");
        }
    }
}
