//! The files of migrations/, as somebody without the program applies them.

use std::process::Command;

use super::world::World;

/// The numbered files in their order, and then the repeatable ones, which may come in any: paths
/// from the root.
pub(crate) fn files() -> Vec<String> {
    let sql_in = |folder: &str| {
        let entries = std::fs::read_dir(format!("{}/{folder}", env!("CARGO_MANIFEST_DIR")))
            .expect("a folder of ours");
        let names =
            entries.map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"));
        let mut files: Vec<String> = names
            .filter(|name| name.ends_with(".sql"))
            .map(|name| format!("{folder}/{name}"))
            .collect();
        files.sort_unstable();
        files
    };
    let (mut files, mut repeatable) = (sql_in("migrations"), sql_in("migrations/repeatable"));
    files.append(&mut repeatable);
    files
}

/// Applies files with psql, in one transaction, then a statement; what psql prints.
pub(crate) fn psql(world: &World, files: &[String], last: &str) -> String {
    let mut psql = Command::new(world.postgres().programs().join("psql"));
    psql.args([
        "-X",
        "-q",
        "-At",
        "-1",
        "-v",
        "ON_ERROR_STOP=1",
        "-d",
        &world.postgres().socket_url(world.database()),
    ]);
    psql.args(files.iter().map(|file| format!("--file={}/{file}", env!("CARGO_MANIFEST_DIR"))))
        .args(["-c", last]);
    let output = psql.output().expect("psql is beside the server");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
