//! What the table of configuration keys says, as documents: config/unstale.toml, and the table in
//! docs/reference.md.
//!
//! `UNSTALE_BLESS=1 cargo test --test integration -- documents` writes both anew.

use unstale::config::{Key, Taken, Watch, keys};

use crate::snapshots::matches;
use crate::tidy::read;

const HEAD: &str = "\
# unstale: every key at its default. It belongs into /etc/unstale/unstale.toml; keep the lines that you change;
# with DATABASE_URL and REDIS_URL in the environment, an empty file is enough.
#
# Each key is also an environment variable, which wins over this file: UNSTALE_ and the path, upper-case, with two
# underscores between section and key (heartbeat.interval is UNSTALE_HEARTBEAT__INTERVAL). A key that does not exist is
# refused, here and there. Durations have a unit: 250ms, 30s, 2m. SIGHUP (systemctl reload) takes every change but those
# that say otherwise.
#
# Lines that begin with \"#\" and no space are settings without a default.
";

const WATCHES: &str = "
# What is watched lives in the database. Either an application's migrations call unstale.watch('public.users', ...), or
# the list stands here and `unstale apply` makes the database equal to it. One [[watch]] a table.
#
#[[watch]]
";

const NEEDS_A_RESTART: &str = "A change needs a restart.";

#[test]
fn the_file_of_the_configuration_is_as_committed() {
    let mut file = HEAD.to_owned();
    let mut section = String::new();
    for key in keys() {
        let (of, name) = key.path.rsplit_once('.').unwrap_or(("", &key.path));
        file += "\n";
        if of != section {
            of.clone_into(&mut section);
            file += &format!("[{section}]\n");
        }
        file += &(about(&key) + &setting(&key, name));
    }
    file += WATCHES;
    let watch =
        Watch::keys().iter().map(|key| about(key) + &setting(key, &key.path)).collect::<Vec<_>>();
    file += &watch.join("#\n");
    matches("config/unstale.toml", &file);
}

/// The lines above a setting.
fn about(key: &Key) -> String {
    let restart = Some(NEEDS_A_RESTART).filter(|_| key.taken == Taken::Restart);
    let lines =
        key.about.iter().map(|line| line.trim()).chain(restart).filter(|line| !line.is_empty());
    lines.map(|line| format!("# {line}\n")).collect()
}

fn setting(key: &Key, name: &str) -> String {
    format!("{}{name} = {}\n", if key.shows_default { "" } else { "#" }, key.shown)
}

#[test]
fn the_reference_s_table_of_keys_is_as_committed() {
    let (before, after) = ("| key | variable | default | |\n|---|---|---|---|\n", "\nExit codes:");
    let reference = read("docs/reference.md");
    let (head, rest) = reference.split_once(before).expect("the head of the table");
    let (_, tail) = rest.split_once(after).expect("the text below the table");
    let table: String = keys().iter().map(row).collect();
    matches("docs/reference.md", &format!("{head}{before}{table}{after}{tail}"));
}

fn row(key: &Key) -> String {
    let summary = key.about.iter().map(|line| line.trim()).take_while(|line| !line.is_empty());
    let restart = Some(NEEDS_A_RESTART).filter(|_| key.taken == Taken::Restart);
    let text = summary.chain(restart).map(linked).collect::<Vec<_>>().join(" ");
    let default =
        if key.default.is_empty() { String::new() } else { format!("`{}` ", key.default) };
    format!("| `{}` | `{}` | {default}| {text} |\n", key.path, key.variable)
}

/// With links to the pages that it names, as in docs/audit.md.
fn linked(line: &str) -> String {
    let word = |word: &str| {
        let Some((before, name)) = word.split_once("docs/") else { return word.to_owned() };
        let target = name.trim_end_matches([')', ';', ',', '.', ':']);
        let page = target.split(".md").next().unwrap_or_default();
        format!("{before}[{page}]({target}){}", &name[target.len()..])
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}
