//! Code for a shell to `eval`: the same lines for sh, bash, zsh and fish.
//!
//! Each line ends in `;`, because fish's `eval (…)` joins lines by spaces. Where the shells differ, there is a line for
//! each: `type -q` is a builtin that succeeds only in fish. The POSIX part is quoted where fish cannot parse it.

use zeroize::Zeroizing;

const IS_FISH: &str = "type -q type >/dev/null 2>&1";

/// Sets and exports a variable.
pub(crate) fn export(name: &str, value: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("export {name}={};\n", *quoted(value)))
}

/// Removes variables.
pub(crate) fn unset(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    let names = names.join(" ");
    format!("{IS_FISH} && set -e {names};\n{IS_FISH} || unset {names};\n")
}

/// Keeps the value of a variable in an unexported shell variable, so that no child gets it. A shell that exports
/// everything (`set -a`) keeps none.
pub(crate) fn keep(name: &str) -> String {
    format!(
        "{IS_FISH} && set -g {kept} \"${name}\";\n{IS_FISH} || eval 'case $- in *a*) ;; *) {kept}=${name} ;; esac';\n",
        kept = kept(name)
    )
}

/// Exports the value that [`keep`] kept, if this shell kept one.
pub(crate) fn take_back(name: &str) -> String {
    let kept = kept(name);
    format!(
        "{IS_FISH} && set -q {kept} && set -gx {name} \"${kept}\" && set -e {kept};\n\
         {IS_FISH} || eval '[ -z \"${{{kept}-}}\" ] || export {name}=\"${kept}\"; unset {kept}';\n"
    )
}

/// The last line of the output, which makes `eval` succeed.
pub(crate) const SUCCESS: &str = "true;\n";

/// Makes `eval` fail with this exit code. Without it, a failed command substitution prints nothing, and `eval ""`
/// succeeds.
pub(crate) fn failure(code: u8) -> String {
    format!("sh -c 'exit {code}';\n")
}

/// Quotes a text as one word of a shell.
pub(crate) fn quoted(text: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("'{}'", text.replace('\'', r"'\''")))
}

fn kept(name: &str) -> String {
    format!("wifshare_kept_{name}")
}
