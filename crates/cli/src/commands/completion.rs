//! What goes with the program: completion scripts, which ask it for names by [`super::complete`], and manual pages.

use clap::CommandFactory;
use clap_complete::Shell;

use super::say;
use crate::args::Cli;
use crate::args::system::{CompletionArgs, ManArgs};
use crate::error::{CliError, CliResult};

/// `completion`: the script for a shell.
pub(super) fn completion(args: &CompletionArgs) -> CliResult<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "bulkhead", &mut script);
    let script = String::from_utf8_lossy(&script);
    say(with_names(args.shell, &script).trim_end())
}

/// What completes names, which the engine knows: bash and fish ask beside the flags, zsh in place of file names.
const BASH: &str = r#"
_bulkhead_with_names() {
    _bulkhead "$@"
    local current="${COMP_WORDS[COMP_CWORD]}"
    [[ ${current} == -* ]] && return 0
    local names
    names="$(bulkhead __complete -- "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)"
    [[ -n ${names} ]] && COMPREPLY=( $(compgen -W "${names}" -- "${current}") )
    declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "${current}"
    return 0
}
complete -F _bulkhead_with_names -o bashdefault -o default bulkhead
"#;
const ZSH: &str = r#"
_bulkhead_names() {
    local -a names
    names=(${(f)"$(bulkhead __complete -- "${(@)_bulkhead_words}" 2>/dev/null)"})
    if (( $#names )); then compadd -a names; else _default; fi
}
"#;
const FISH: &str = "
function __fish_bulkhead_names
    set -l words (commandline -opc)
    bulkhead __complete -- $words[2..-1] 2>/dev/null
end
complete -c bulkhead -n 'not string match -q -- \"-*\" (commandline -ct)' -a '(__fish_bulkhead_names)'
";

fn with_names(shell: Shell, script: &str) -> String {
    match shell {
        Shell::Bash => script.to_owned() + BASH,
        Shell::Fish => script.to_owned() + FISH,
        Shell::Zsh => {
            // The words are kept as they are typed: zsh takes the verb off them on its way into it.
            let kept = "local -a _bulkhead_words\n    _bulkhead_words=(\"${(@)words[2,CURRENT-1]}\")\n    ";
            let script = script.replacen("typeset -A opt_args", &format!("{kept}typeset -A opt_args"), 1);
            let named = script.replace(":_default'", ":_bulkhead_names'");
            match named.split_once("\n_bulkhead() {") {
                Some((head, rest)) => format!("{head}\n{ZSH}\n_bulkhead() {{{rest}"),
                None => named,
            }
        }
        _ => script.to_owned(),
    }
}

/// `man`: a page for each command.
pub(super) fn manual(args: &ManArgs) -> CliResult<()> {
    let folder = args.folder.display();
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .map_err(CliError::local(format!("cannot write manual pages to {folder}")))
}
