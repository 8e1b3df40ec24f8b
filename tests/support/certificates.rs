//! Certificates of an authority of our own, made by openssl.
//!
//! Owns: a directory with `ca.crt`, and a `.crt` and a `.key` for each of `server` (on localhost),
//! `client` (the role postgres), and `stranger`, whom that authority does not know.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

/// Files and their subject, which is what PostgreSQL knows a client by.
const SIGNED: [(&str, &str); 2] = [("server", "localhost"), ("client", "postgres")];

/// Makes a key, unlocked.
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

/// See the module.
pub(crate) struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes them all.
    pub(crate) fn new() -> Self {
        let certificates = Self { directory: tempfile::tempdir().expect("a directory") };
        certificates.renew();
        certificates
    }

    /// Makes them all again, of another authority, in the same files.
    pub(crate) fn renew(&self) {
        self.openssl(&format!(
            "req -x509 {KEY} -keyout ca.key -out ca.crt -days 2 -subj /CN=authority"
        ));
        self.openssl(&format!(
            "req -x509 {KEY} -keyout stranger.key -out stranger.crt -days 2 -subj /CN=postgres"
        ));
        for (name, subject) in SIGNED {
            self.file("names", &format!("subjectAltName=DNS:{subject}"));
            self.openssl(&format!(
                "req {KEY} -keyout {name}.key -out {name}.csr -subj /CN={subject}"
            ));
            let signed = format!(
                "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out {name}.crt -days 2"
            );
            self.openssl(&format!("{signed} -extfile names"));
        }
    }

    /// Where one of the files is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text, for variables and URLs.
    pub(crate) fn name(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Puts a new file beside them, and returns its name.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("a file");
        self.name(name)
    }

    /// Runs openssl in the directory.
    pub(crate) fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.directory.path())
            .output();
        let done = done.unwrap_or_else(|error| {
            panic!(
                "this test needs the program openssl ({error}); install it, as `./dev test` does"
            )
        });
        assert!(
            done.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}
