//! Recognises what surrounds a wrongly pasted or generated token or id: quotes, a scheme, JSON, an unexpanded
//! expression. It decides by form and never shows a character of the value.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use zeroize::Zeroizing;

/// Why a text is not a plain value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wrapping {
    /// It starts with U+FEFF.
    ByteOrderMark,
    /// It is UTF-16, as PowerShell's `>` writes it.
    Utf16,
    /// It contains NUL bytes.
    Nul,
    /// It contains bytes that are not UTF-8, or invisible characters.
    NotText,
    /// Quotes of any kind.
    Quotes,
    /// `Bearer ` or the like.
    Scheme,
    /// A JSON document with the token at this place, as a `jq` filter.
    Json(String),
    /// A JSON document without a token.
    OtherJson,
    /// Line breaks or spaces divide it.
    Wrapped,
    /// It contains or ends with `\n` or `\r`, two characters instead of a line break.
    EscapedLineBreak,
    /// Asterisks, as a CI shows a masked value.
    Masked,
    /// Several values.
    Several,
    /// `%2E` and the like.
    PercentEncoded,
    /// A trailing `%`, which zsh prints after output without a newline.
    PromptMark,
    /// `=`, `+` or `/`: base64 instead of base64url.
    StandardBase64,
    /// The value is base64-encoded an additional time.
    EncodedAgain,
    /// It starts with `NAME=` or `NAME:`.
    Assignment,
    /// Other text comes before or after it.
    Beside,
    /// An expression or a variable of this form that was not expanded.
    Unexpanded(&'static str),
    /// A placeholder from documentation.
    Placeholder,
    /// A programming language's word for "nothing".
    Null,
    /// The path of a file.
    Path,
    /// A URL.
    Url,
    /// An HTML page.
    WebPage,
    /// A key or certificate in PEM.
    Pem,
    /// A credential of another kind.
    OtherCredential(&'static str),
    /// An identity token, where something else is expected.
    IdentityToken,
}

use Wrapping as W;

/// Formats text that follows "the value: ".
impl std::fmt::Display for Wrapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            W::ByteOrderMark => f.write_str("it begins with a byte order mark (BOM)"),
            W::Utf16 => f.write_str("it is encoded as UTF-16"),
            W::Nul => f.write_str("it contains NUL bytes"),
            W::NotText => f.write_str("it contains bytes that are not UTF-8, or invisible characters"),
            W::Quotes => f.write_str("it is in quotes"),
            W::Scheme => f.write_str("`Bearer` or another word of a header stands before it"),
            W::Json(place) => write!(f, "it is a JSON document with the token at `{place}`"),
            W::OtherJson => f.write_str("it is a JSON document without a token"),
            W::Wrapped => f.write_str("line breaks or spaces divide it"),
            W::EscapedLineBreak => {
                f.write_str("a backslash and a letter (`\\n`, `\\r`) stand in it, where a line break is meant")
            }
            W::Masked => f.write_str("it consists of asterisks, as a CI shows a masked value"),
            W::Several => f.write_str("it holds several tokens"),
            W::PercentEncoded => f.write_str("it is percent-encoded (`%2E`), as in a URL"),
            W::PromptMark => f.write_str("a `%` stands behind it, as zsh prints it after an output without a newline"),
            W::StandardBase64 => {
                f.write_str("it is written in base64 with `=`, `+` or `/`, and a JWT is base64url without padding")
            }
            W::EncodedAgain => f.write_str("it is base64-encoded once more than it should be"),
            W::Assignment => f.write_str("a name and `=` or `:` stand before it"),
            W::Beside => f.write_str("other text stands before or behind it"),
            W::Unexpanded(form) => write!(f, "it is `{form}`, which was not replaced by its value"),
            W::Placeholder => f.write_str("it is a placeholder of some documentation"),
            W::Null => f.write_str("it is a word for \"nothing\", such as `null`"),
            W::Path => f.write_str("it is the path of a file"),
            W::Url => f.write_str("it is a URL"),
            W::WebPage => f.write_str("it is a web page"),
            W::Pem => f.write_str("it is a key or certificate in PEM"),
            W::OtherCredential(kind) => write!(f, "it is {kind}"),
            W::IdentityToken => f.write_str("it is an identity token"),
        }
    }
}

impl Wrapping {
    /// Returns an instruction for the user.
    pub fn cure(&self) -> String {
        let text = match self {
            W::ByteOrderMark => {
                "write it without a byte order mark (PowerShell: `Set-Content -NoNewline -Encoding ascii`)"
            }
            W::Utf16 => "write it as UTF-8 or ASCII (PowerShell: `Set-Content -NoNewline -Encoding ascii`)",
            W::Nul | W::NotText => "write it as plain ASCII text, without anything else",
            W::Quotes => "remove the quotes (`jq -r` prints a string without them)",
            W::Scheme => "keep the token alone, without the word before it",
            W::Json(place) => return format!("take the token alone: `jq -r '{place}'`"),
            W::OtherJson => "look at what the provider answered: it is probably an error",
            W::Wrapped => "write it in one line (`tr -d '[:space:]'`; `base64 -w0`)",
            W::EscapedLineBreak => {
                "remove the escaped line breaks (`sed 's/\\\\[nr]//g'`), or take the value out of its JSON or .env file with a program that reads that format"
            }
            W::Masked => "set the value itself: it was copied from a log that masks it",
            W::Several => {
                "provide one token; more of them go into ANTHROPIC_IDENTITY_TOKEN_2, ANTHROPIC_IDENTITY_TOKEN_3 and so on"
            }
            W::PercentEncoded => "decode it, or take it from where it is not part of a URL",
            W::PromptMark => "remove the `%`: it is zsh's mark and not a part of the output",
            W::StandardBase64 => "take the token as the provider issued it, without encoding it again",
            W::EncodedAgain => "decode it: `base64 -d`",
            W::Assignment => "keep the value alone, without the name before it",
            W::Beside => "print the value and nothing else (messages belong on standard error)",
            W::Unexpanded("${{ … }}") => {
                "GitHub replaces `${{ … }}` in workflow and action files only: set the variable in `env:` there, and use `$NAME` in scripts"
            }
            W::Unexpanded("$(…)") => {
                "Azure Pipelines leaves `$(NAME)` as it is where no variable NAME is defined, and a shell in single quotes does too: define it, or use double quotes"
            }
            W::Unexpanded("{{ … }}") => "run the template engine over the file, or set the value itself",
            W::Unexpanded(_) => {
                "use double quotes around it in a script (single quotes keep `$`), and look whether the CI replaces variables in this place"
            }
            W::Placeholder => "replace it by the value itself",
            W::Null => "look at the program that produced it: it found no value (`jq -er` fails where there is none)",
            W::Path => "to read the token from a file, set ANTHROPIC_IDENTITY_TOKEN_FILE to its path instead",
            W::Url => "set the value itself, and not the address where it is found",
            W::WebPage => "look at what answered: a sign-in page or a proxy stands in the provider's place",
            W::Pem => "provide the identity token that the platform issues, and not a key",
            W::OtherCredential(_) => {
                "provide the OIDC identity token (JWT) that the platform issues for this job, and not another credential"
            }
            W::IdentityToken => "set ANTHROPIC_IDENTITY_TOKEN to the token, or give the path of a file that holds it",
        };
        text.to_owned()
    }

    /// Returns what is wrong with a text that should be an identity token, using `is_token` to recognise one. Returns
    /// `None` if the form is not known.
    pub(crate) fn of_token(text: &str, is_token: impl Fn(&str) -> bool) -> Option<Wrapping> {
        let text = text.trim();
        if let Some(encoding) = encoding(text) {
            return Some(encoding);
        }
        if let Some(wrapping) = json(text, &is_token) {
            return Some(wrapping);
        }
        let words = || text.split_whitespace().filter(|word| is_token(word)).count();
        let compact = Zeroizing::new(text.replace(char::is_whitespace, ""));
        let with_escapes_read = Zeroizing::new(compact.replace("\\n", "").replace("\\r", ""));
        let decoded = percent_decode_str(text).decode_utf8().map(|text| Zeroizing::new(text.into_owned()));
        let url_safe = Zeroizing::new(text.replace('=', "").replace('+', "-").replace('/', "_"));
        let again = base64_of_any_kind().decode(compact.as_bytes()).map(Zeroizing::new);
        let bare = text.trim_matches(is_quote);
        let behind_scheme = || behind_scheme(text).is_some_and(&is_token);
        let behind_name = || behind_name(text).is_some_and(|value| is_token(value.trim_matches(is_quote)));
        Some(match () {
            () if bare.len() < text.len() && is_token(bare.trim()) => W::Quotes,
            () if behind_scheme() => W::Scheme,
            () if words() > 1 => W::Several,
            () if is_token(&compact) => W::Wrapped,
            () if is_token(&with_escapes_read) => W::EscapedLineBreak,
            () if text.strip_suffix('%').is_some_and(|text| is_token(text.trim_end())) => W::PromptMark,
            () if decoded.is_ok_and(|decoded| decoded.len() < text.len() && contains(&decoded, &is_token)) => {
                W::PercentEncoded
            }
            () if is_token(&url_safe) => W::StandardBase64,
            () if again.is_ok_and(|bytes| str::from_utf8(&bytes).is_ok_and(|text| is_token(text.trim()))) => {
                W::EncodedAgain
            }
            () if behind_name() => W::Assignment,
            () if contains(text, &is_token) => W::Beside,
            () => return unexpanded(text).or_else(|| other(text)),
        })
    }

    /// Returns what is wrong with a text that should be a one-word id. Returns `None` if the form is not known.
    pub(crate) fn of_id(text: &str) -> Option<Wrapping> {
        let text = text.trim();
        let looks_like_token = text.starts_with("eyJ") && text.matches('.').count() == 2;
        encoding(text).or_else(|| unexpanded(text)).or_else(|| {
            Some(match () {
                () if text.starts_with(is_quote) || text.ends_with(is_quote) => W::Quotes,
                () if looks_like_token => W::IdentityToken,
                () if text.starts_with(['{', '[']) => W::OtherJson,
                () => return other(text),
            })
        })
    }
}

/// Returns whether one of the words in this text is a token.
fn contains(text: &str, is_token: impl Fn(&str) -> bool) -> bool {
    let of_a_token = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    // A colour code may come directly before it.
    let from_its_header = |word: &str| word.find("eyJ").is_some_and(|begin| is_token(&word[begin..]));
    let mut words = text.split(|c| !of_a_token(c)).map(|word| word.trim_matches('.'));
    words.any(|word| is_token(word) || from_its_header(word))
}

/// Detects an encoding problem. In UTF-16 read byte by byte, every other character is NUL.
fn encoding(text: &str) -> Option<Wrapping> {
    const INVISIBLE: [char; 7] =
        ['\u{feff}', '\u{200b}', '\u{200c}', '\u{200d}', '\u{2060}', '\u{ad}', char::REPLACEMENT_CHARACTER];
    match () {
        () if text.chars().take(4).any(|c| c == '\0') => Some(W::Utf16),
        () if text.contains('\0') => Some(W::Nul),
        () if text.starts_with('\u{feff}') => Some(W::ByteOrderMark),
        () if text.contains(INVISIBLE) => Some(W::NotText),
        () => None,
    }
}

/// Recognises a JSON object, array or string. For the first two, finds the place of the token.
fn json(text: &str, is_token: impl Fn(&str) -> bool) -> Option<Wrapping> {
    if !text.starts_with(['{', '[', '"']) {
        return None;
    }
    let document: Value = serde_json::from_str(text).ok()?;
    match &document {
        Value::String(inside) => contains(inside, is_token).then_some(W::Quotes),
        _ => Some(place_in(&document, &is_token).map_or(W::OtherJson, |place| W::Json(as_filter(place)))),
    }
}

/// Returns a `jq` filter. A long one is replaced by a general filter that finds the same token.
fn as_filter(place: String) -> String {
    const LONGEST: usize = 40;
    match place.starts_with('[') {
        _ if place.len() > LONGEST => ".. | strings".to_owned(),
        true => format!(".{place}"),
        false => place,
    }
}

/// Returns the `jq` path of the first token in a document. Does not repeat a key that is not a plain word.
fn place_in(document: &Value, is_token: &impl Fn(&str) -> bool) -> Option<String> {
    let is_plain = |key: &str| {
        key.len() <= 40
            && key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (step, rest) = match document {
        Value::String(text) => return contains(text, is_token).then(String::new),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(number, item)| Some((format!("[{number}]"), place_in(item, is_token)?)))?,
        Value::Object(members) => members.iter().find_map(|(key, member)| {
            let step = if is_plain(key) { format!(".{key}") } else { "[]".to_owned() };
            Some((step, place_in(member, is_token)?))
        })?,
        _ => return None,
    };
    Some(format!("{step}{rest}"))
}

fn is_quote(c: char) -> bool {
    "\"'`\\\u{201c}\u{201d}\u{201e}\u{2018}\u{2019}\u{ab}\u{bb}".contains(c)
}

/// Returns the text after `Bearer`, `Authorization: Bearer` and similar words.
fn behind_scheme(text: &str) -> Option<&str> {
    let (words, value) = text.rsplit_once(char::is_whitespace)?;
    let mut words = words.split([' ', '\t', ':', '=']).filter(|word| !word.is_empty());
    let known = |word: &str| ["authorization", "bearer", "jwt", "token"].contains(&word.to_ascii_lowercase().as_str());
    words.all(|word| known(word.trim_matches(is_quote))).then_some(value)
}

/// Returns the text after `NAME=`, `export NAME=`, `NAME: ` or `NAME:=`.
fn behind_name(text: &str) -> Option<&str> {
    let (name, value) = text.split_once(['=', ':'])?;
    let is_name = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "_-$.".contains(c));
    (name.split_whitespace().count() <= 2 && name.split_whitespace().all(is_name))
        .then(|| value.trim_start_matches(['=', ' ', '\t']).trim())
}

fn unexpanded(text: &str) -> Option<Wrapping> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let inside = |begin: &str, end: &str| text.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
    let form = match () {
        () if text.contains("${{") => "${{ … }}",
        () if text.contains("{{") => "{{ … }}",
        () if text.contains("$(") || text.contains("$[") => "$(…)",
        () if text.contains("${") => "${…}",
        () if text.to_ascii_lowercase().contains("$env:") => "$env:NAME",
        () if text
            .strip_prefix('$')
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')) =>
        {
            "$NAME"
        }
        () if inside("%", "%").is_some_and(is_name) => "%NAME%",
        () if text.len() > 2 && inside("`", "`").is_some() && text.contains(' ') => "`…`",
        () => return None,
    };
    Some(W::Unexpanded(form))
}

fn other(text: &str) -> Option<Wrapping> {
    const CREDENTIALS: [(&str, &str); 12] = [
        ("sk-ant-oat", "an access token of the Claude API"),
        ("sk-ant-ort", "a refresh token of the Claude API"),
        ("sk-ant-", "an API key"),
        ("ghp_", "a GitHub token"),
        ("gho_", "a GitHub token"),
        ("ghs_", "a GitHub token"),
        ("ghu_", "a GitHub token"),
        ("github_pat_", "a GitHub token"),
        ("glpat-", "a GitLab token"),
        ("glcbt-", "a GitLab token"),
        ("AKIA", "an AWS access key"),
        ("ya29.", "a Google access token"),
    ];
    let lower = text.to_ascii_lowercase();
    let credential = CREDENTIALS.iter().find(|(prefix, _)| text.starts_with(prefix));
    let is_path = || {
        let has_drive = lower.as_bytes().get(1..3).is_some_and(|drive| drive == b":\\" || drive == b":/");
        has_drive || ["/", "./", "../", "~/", "@", "file:", "\\\\"].iter().any(|start| text.starts_with(start))
    };
    Some(match () {
        () if ["null", "undefined", "none", "nil", "<nil>", "(null)", "true", "false"].contains(&lower.as_str()) => {
            W::Null
        }
        () if text.len() >= 3 && text.chars().all(|c| c == '*') => W::Masked,
        () if lower.starts_with("<!doctype") || lower.starts_with("<html") || lower.starts_with("<?xml") => W::WebPage,
        () if text.starts_with("-----BEGIN") => W::Pem,
        () if text.starts_with('<') && text.ends_with('>') => W::Placeholder,
        () if text.ends_with('…') || text.ends_with("...") || lower.starts_with("your") => W::Placeholder,
        () if let Some((_, kind)) = credential => W::OtherCredential(kind),
        () if lower.starts_with("https://") || lower.starts_with("http://") => W::Url,
        () if !text.contains('\n') && is_path() => W::Path,
        () => return None,
    })
}

/// Decodes either base64 alphabet: if the result is a token, the value was encoded an additional time.
fn base64_of_any_kind() -> GeneralPurpose {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&alphabet::STANDARD, config)
}
