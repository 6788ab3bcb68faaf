//! The two forms of a GitHub Actions subject: `repo:OWNER/NAME:…`, and with immutable ids `repo:OWNER@ID/NAME@ID:…`.
//! GitHub issues the second form for repositories created since 15 July 2026.
//!
//! Source: <https://docs.github.com/en/actions/reference/security/oidc>.

/// Returns whether a subject, or a prefix of one, names a repository with its immutable ids.
pub fn is_immutable(subject: &str) -> bool {
    repository(subject).is_some_and(|(_, repository, _)| repository.contains('@'))
}

/// Returns the subject without the ids, as an older repository would have it.
pub fn without_ids(subject: &str) -> String {
    let Some((begin, repository, rest)) = repository(subject) else { return subject.to_owned() };
    let name = |part: &str| part.split_once('@').map_or(part, |(name, _)| name).to_owned();
    let names: Vec<String> = repository.split('/').map(name).collect();
    format!("{begin}{}{rest}", names.join("/"))
}

/// Returns a rule's prefix with the ids of this subject added, if the prefix matches the same repository.
pub fn with_ids_of(prefix: &str, subject: &str) -> Option<String> {
    let (_, with_ids, _) = repository(subject)?;
    let (begin, plain, rest) = repository(prefix)?;
    let mut parts = with_ids.split('/');
    let plain: Option<Vec<String>> = plain
        .split('/')
        .map(|name| {
            let part = parts.next()?;
            // The name is empty in `repo:OWNER/*`.
            if name.is_empty() {
                return Some(String::new());
            }
            part.strip_prefix(name)?.starts_with('@').then(|| part.to_owned())
        })
        .collect();
    Some(format!("{begin}{}{rest}", plain?.join("/")))
}

/// Splits a subject into `repo:`, owner and name, and the rest, which begins at the second colon or at a star.
fn repository(subject: &str) -> Option<(&str, &str, &str)> {
    let begin = "repo:";
    let repository = subject.strip_prefix(begin)?;
    let end = repository.find([':', '*']).unwrap_or(repository.len());
    Some((&subject[..begin.len()], &repository[..end], &repository[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_ids_are_recognised_removed_and_added() {
        const SUBJECT: &str = "repo:octo-org@65/octo-repo@74:ref:refs/heads/main";
        const PLAIN: &str = "repo:octo-org/octo-repo:ref:refs/heads/main";
        assert!(is_immutable(SUBJECT) && !is_immutable(PLAIN));
        assert!(!is_immutable("repo:o/r:environment:me@home"), "only the repository has ids");
        assert!(!is_immutable("project_path:group@1/project") && !is_immutable(""));
        assert_eq!(without_ids(SUBJECT), PLAIN);
        assert_eq!(without_ids("repo:octo-org@65/*"), "repo:octo-org/*");
        assert_eq!(without_ids("system:serviceaccount:a@b"), "system:serviceaccount:a@b");
        for (prefix, with_ids) in [
            ("repo:octo-org/octo-repo:*", Some("repo:octo-org@65/octo-repo@74:*")),
            ("repo:octo-org/*", Some("repo:octo-org@65/*")),
            (PLAIN, Some(SUBJECT)),
            ("repo:octo-org/another:*", None),
            ("repo:octo/octo-repo:*", None),
            ("repo:octo-org@65/octo-repo@74:*", None),
            ("*", None),
        ] {
            assert_eq!(with_ids_of(prefix, SUBJECT).as_deref(), with_ids, "{prefix}");
        }
    }
}
