//! What a shell runs by `eval`: the same lines for sh, bash, zsh and fish.
//!
//! Each line ends in `;`, because fish's `eval (…)` joins lines by spaces. What the shells say differently stands in a
//! line for each: `type -q` is a builtin that succeeds in fish alone. The POSIX part is quoted where fish cannot parse it.

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

/// Keeps a variable's value in the shell itself, where no child finds it. A shell that exports everything (`set -a`) keeps
/// none.
pub(crate) fn keep(name: &str) -> String {
    format!(
        "{IS_FISH} && set -g {kept} \"${name}\";\n{IS_FISH} || eval 'case $- in *a*) ;; *) {kept}=${name} ;; esac';\n",
        kept = kept(name)
    )
}

/// Exports what [`keep`] kept, if this shell did.
pub(crate) fn take_back(name: &str) -> String {
    let kept = kept(name);
    format!(
        "{IS_FISH} && set -q {kept} && set -gx {name} \"${kept}\" && set -e {kept};\n\
         {IS_FISH} || eval '[ -z \"${{{kept}-}}\" ] || export {name}=\"${kept}\"; unset {kept}';\n"
    )
}

/// Ends what `eval` runs, well.
pub(crate) const SUCCESS: &str = "true;\n";

/// Has `eval` fail with this exit code. Without it a command substitution that fails prints nothing, and `eval ""` succeeds.
pub(crate) fn failure(code: u8) -> String {
    format!("sh -c 'exit {code}';\n")
}

/// As one word of a shell.
pub(crate) fn quoted(text: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("'{}'", text.replace('\'', r"'\''")))
}

fn kept(name: &str) -> String {
    format!("wifshare_kept_{name}")
}
