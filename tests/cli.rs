//! The real binary: its help, its exit codes, and the sentences that it leaves with.

use std::process::{Command, Output, Stdio};

/// The binary in an environment of its own.
fn unstale(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command(arguments, variables).output().expect("the binary")
}

fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
    command.env_clear().args(arguments);
    command.envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command_and_exit_code() {
    let output = unstale(&["--help"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for word in [
        "migrate",
        "apply",
        "run",
        "check",
        "sweep",
        "explain",
        "demo",
        "completions",
        "man",
        "--config",
        "DATABASE_URL",
        "REDIS_URL",
        "UNSTALE_CONFIG",
        "Exit codes",
    ] {
        assert!(help.contains(word), "{word} is not in the help: {help}");
    }
    assert!(!help.contains("--database"), "secrets do not belong into arguments");
}

#[test]
fn version_is_the_crate_s() {
    let expected = format!("unstale {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(stdout(&unstale(&["--version"], &[])), expected);
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&["sing"][..], &["explain"], &["explain", "public.users", "id"], &[]] {
        let output = unstale(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
}

#[test]
fn an_unknown_key_exits_with_2_and_is_named_with_the_nearest() {
    let output = unstale(&["migrate"], &[("UNSTALE_HTTP__LISTN", "x")]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "unstale: UNSTALE_HTTP__LISTN: unknown key; did you mean UNSTALE_HTTP__LISTEN?\n"
    );
}

#[test]
fn a_missing_url_exits_with_2_and_an_example() {
    let urls = [("DATABASE_URL", "postgres://localhost/app"), ("REDIS_URL", "redis://localhost")];
    for (arguments, given, missing) in [
        (&["migrate"][..], &urls[1..], "DATABASE_URL"),
        (&["apply", "--dry-run"], &[], "DATABASE_URL"),
        (&["explain", "public.users", "id=1"], &[], "DATABASE_URL"),
        (&["run"], &urls[..1], "REDIS_URL"),
    ] {
        let output = unstale(arguments, given);
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.starts_with(&format!("unstale: {missing} is not set; ")), "{error}");
        assert!(error.contains(&format!("as in {missing}=")), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn a_bad_duration_exits_with_2_and_an_example() {
    let output = unstale(&["run"], &[("UNSTALE_HEARTBEAT__INTERVAL", "30")]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        stderr(&output),
        "unstale: UNSTALE_HEARTBEAT__INTERVAL: \"30\" is not a duration; write a unit, as in 30s or 2m\n"
    );
}

#[test]
fn a_file_that_is_named_and_missing_exits_with_2_and_the_cause() {
    let output = unstale(&["run", "--config", "/nowhere/unstale.toml"], &[]);
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(
        error.starts_with(
            "unstale: the configuration file /nowhere/unstale.toml cannot be read (No such file"
        ),
        "{error}"
    );
}

#[test]
fn a_secret_is_in_no_output() {
    let variables = [
        ("DATABASE_URL", "mysql://u:hunter2@localhost/app"),
        ("REDIS_URL", "rediss//:hunter2@localhost"),
        ("UNSTALE_LOG__FILTER", "trace"),
    ];
    for arguments in [&["run"][..], &["migrate"], &["--help"]] {
        let output = unstale(arguments, &variables);
        let said = stdout(&output) + &stderr(&output);
        assert!(!said.is_empty() && !said.contains("hunter2"), "{said}");
    }
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf_8_is_named_if_it_is_ours_and_ignored_if_not() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let broken = OsStr::from_bytes(b"\xff");
    let output = command(&["migrate"], &[]).env("OTHER", broken).output().expect("the binary");
    assert!(stderr(&output).starts_with("unstale: DATABASE_URL is not set"));
    let output =
        command(&["migrate"], &[]).env("DATABASE_URL", broken).output().expect("the binary");
    assert_eq!(stderr(&output), "unstale: DATABASE_URL: the value is not UTF-8\n");
}

#[test]
fn completions_for_bash_are_valid_bash() {
    let script = unstale(&["completions", "bash"], &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("unstale.bash");
    std::fs::write(&file, &script.stdout).expect("a file");
    let checked = Command::new("bash").arg("-n").arg(&file).output().expect("bash");
    assert!(script.stdout.len() > 1_000 && checked.status.success(), "{}", stderr(&checked));
}

#[test]
fn each_command_has_a_manual_page() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = unstale(&["man", &directory.path().display().to_string()], &[]);
    assert_eq!(
        (output.status.code(), stdout(&output).as_str()),
        (Some(0), ""),
        "{}",
        stderr(&output)
    );
    let page = |name: &str| {
        std::fs::read_to_string(directory.path().join(name)).expect("a page").replace("\\-", "-")
    };
    let main = page("unstale.1");
    for words in ["unstale-apply(1)", "Exit codes:", "DATABASE_URL_FILE"] {
        assert!(main.contains(words), "{words}: {main}");
    }
    let apply = page("unstale-apply.1");
    assert!(
        apply.contains("--dry-run") && apply.contains("unstale apply --dry-run --sql > review.sql"),
        "{apply}"
    );
    let output = unstale(&["man", "/nowhere"], &[]);
    assert!(
        stderr(&output).starts_with("unstale: the manual pages in /nowhere: "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut child = command(&["completions", "bash"], &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the end");
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}
