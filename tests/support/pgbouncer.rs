//! A PgBouncer before a cluster, in a mode of its own.
//!
//! Owns: one process with its configuration. It refuses root, so it runs as the cluster's user.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use unstale::scratch::guard::{Guard, Process};
use unstale::scratch::{Postgres, free_port};

use super::wait::until;

/// Where Debian, and everybody else, puts it.
const PROGRAMS: [&str; 3] =
    ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer", "/usr/local/bin/pgbouncer"];

/// A running pooler; gone with its directory when dropped.
pub(crate) struct PgBouncer {
    port: u16,
    process: Process,
    _guard: Guard,
}

impl PgBouncer {
    /// In this `pool_mode`, with these lines more in its configuration.
    pub(crate) async fn before(postgres: &Postgres, mode: &str, more: &str) -> Self {
        let program = PROGRAMS.into_iter().find(|program| std::path::Path::new(program).exists());
        let program =
            program.expect("this test needs pgbouncer (Debian: apt-get install pgbouncer)");
        let (guard, port) = (Guard::new().expect("a directory"), free_port().expect("a free port"));
        let directory = guard.directory();
        let owner = std::fs::metadata(postgres.directory()).expect("its directory");
        let file = |name: &str, text: &str| {
            let path = directory.join(name);
            std::fs::write(&path, text).expect("a file of ours");
            chown(&path, Some(owner.uid()), Some(owner.gid())).expect("our file");
            path
        };
        let users = file("users.txt", "\"postgres\" \"\"\n");
        let ini = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = {mode}\nmax_client_conn = 100\ndefault_pool_size = 20\n{more}\n",
            postgres.port(),
            users.display()
        );
        let ini = file("pgbouncer.ini", &ini);
        chown(directory, Some(owner.uid()), Some(owner.gid())).expect("our directory");
        let mut command = guard.command("TERM", program).expect("a pipe to share");
        command
            .arg(&ini)
            .uid(owner.uid())
            .gid(owner.gid())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process::start(command).expect("sh starts");
        until("pgbouncer listens", async || {
            assert_eq!(process.ended(), None, "pgbouncer ended");
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
        Self { port, process, _guard: guard }
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // A destructor has nobody to tell.
        let _ = self.process.kill();
    }
}
