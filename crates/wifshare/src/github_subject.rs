//! The two forms of a GitHub Actions subject: `repo:OWNER/NAME:…`, and with immutable ids `repo:OWNER@ID/NAME@ID:…`, which
//! GitHub issues for repositories made since 15 July 2026.
//!
//! Source: <https://docs.github.com/en/actions/reference/security/oidc>.

/// Whether a subject, or the begin of one, names a repository with its immutable ids.
pub fn is_immutable(subject: &str) -> bool {
    repository(subject).is_some_and(|(_, repository, _)| repository.contains('@'))
}

/// The same without the ids: what it would be for an older repository.
pub fn without_ids(subject: &str) -> String {
    let Some((begin, repository, rest)) = repository(subject) else { return subject.to_owned() };
    let name = |part: &str| part.split_once('@').map_or(part, |(name, _)| name).to_owned();
    let names: Vec<String> = repository.split('/').map(name).collect();
    format!("{begin}{}{rest}", names.join("/"))
}

/// A rule's prefix with the ids that this subject has, for a prefix that was written for the same repository.
pub fn with_ids_of(prefix: &str, subject: &str) -> Option<String> {
    let (_, with_ids, _) = repository(subject)?;
    let (begin, plain, rest) = repository(prefix)?;
    let mut parts = with_ids.split('/');
    let plain: Option<Vec<String>> = plain
        .split('/')
        .map(|name| {
            let part = parts.next()?;
            // `repo:OWNER/*` has nothing behind the slash.
            if name.is_empty() {
                return Some(String::new());
            }
            part.strip_prefix(name)?.starts_with('@').then(|| part.to_owned())
        })
        .collect();
    Some(format!("{begin}{}{rest}", plain?.join("/")))
}

/// A subject taken apart: `repo:`, the owner and the name, and the rest from the second colon or a star on.
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
