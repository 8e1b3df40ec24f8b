//! Reading files that somebody else put there: secrets, the configuration, certificates.
//!
//! Must hold: a name can neither make the program wait (a FIFO) nor eat its memory (a device, a
//! file of any size), and what was read is text as an editor shows it. [`Aside`] is for what can
//! still hang, a file on a network, while the program runs.

use std::fs::{FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::sync::{Semaphore, oneshot};

use crate::visible;

/// A URL is shorter by far, and a file of this size is read in no time.
pub(super) const SECRET_BYTES: u64 = 64 << 10;

/// Some ten thousand `[[watch]]`.
pub(super) const CONFIGURATION_BYTES: u64 = 4 << 20;

/// The authorities of a whole system are a quarter of a megabyte.
pub const PEM_BYTES: u64 = 4 << 20;

/// Why a file was not read; the words follow its name.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The operating system said so.
    #[error("cannot be read ({0}); let it name a file that this user may read")]
    Io(#[from] io::Error),
    /// It could wait for ever, or never end.
    #[error("is {0}; let it name a regular file")]
    Kind(&'static str),
    /// It is larger than anything that is meant to be there.
    #[error("has more than {0} bytes; let it name another file")]
    Size(u64),
    /// Not text.
    #[error("is not UTF-8 {0}; save it as UTF-8")]
    Text(&'static str),
}

/// The bytes of a regular file that has at most `most` of them.
///
/// # Errors
/// See [`Unreadable`].
pub fn bytes(file: &Path, most: u64) -> Result<Vec<u8>, Unreadable> {
    // Before it is opened, because to open a device may do something; and after, because it may be
    // another one by then.
    regular(std::fs::metadata(file)?.file_type())?;
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let open = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(file)?;
    regular(open.metadata()?.file_type())?;
    let mut bytes = Vec::new();
    open.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(Unreadable::Size(most)) } else { Ok(bytes) }
}

fn regular(kind: FileType) -> Result<(), Unreadable> {
    let kinds = [
        (kind.is_dir(), "a directory"),
        (kind.is_fifo(), "a pipe (FIFO), which could keep its reader waiting"),
        (kind.is_socket(), "a socket"),
        (kind.is_char_device() || kind.is_block_device(), "a device"),
        (!kind.is_file(), "no file"),
    ];
    kinds
        .into_iter()
        .find(|(is_it, _)| *is_it)
        .map_or(Ok(()), |(_, name)| Err(Unreadable::Kind(name)))
}

/// The text of such a file, without the byte-order mark that some editors put before it.
///
/// # Errors
/// See [`Unreadable`].
pub(super) fn text(file: &Path, most: u64) -> Result<String, Unreadable> {
    let bytes = bytes(file, most)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(Unreadable::Text("but UTF-16, as Notepad and PowerShell may write it"));
    }
    let text = String::from_utf8(bytes).map_err(|_| Unreadable::Text("text"))?;
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

/// The secret in a file: its text without the line break that every editor puts at its end.
///
/// # Errors
/// See [`Unreadable`].
pub(super) fn secret(file: &Path) -> Result<String, Unreadable> {
    Ok(text(file, SECRET_BYTES)?.trim_end_matches(['\n', '\r']).to_owned())
}

/// A file's name, for people.
pub(super) fn shown(file: &Path) -> String {
    visible::line(&file.display().to_string()).into_owned()
}

/// A file did not answer.
#[derive(Debug, thiserror::Error)]
#[error("it could not be read within {0:?}; look at the file system that it is on")]
pub struct Stuck(pub Duration);

/// Does what may hang on a thread of its own, one at a time, and gives up waiting for it.
///
/// Not tokio's `spawn_blocking`: the end of the program would wait for a thread that hangs, and
/// each new attempt would be another one.
#[derive(Debug, Clone)]
pub struct Aside(Arc<Semaphore>);

impl Default for Aside {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Aside {
    /// What `work` returns, if it does within `patience`.
    ///
    /// # Errors
    /// [`Stuck`], at once if an earlier work still hangs after `patience`.
    pub async fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stuck> {
        let stuck = || Stuck(patience);
        let done = async {
            let permit = Arc::clone(&self.0).acquire_owned().await.map_err(|_| stuck())?;
            let (answer, answered) = oneshot::channel();
            let thread = std::thread::Builder::new().name("files".to_owned()).spawn(move || {
                let _ = answer.send(work()); // nobody waits any more: then it is of no use
                drop(permit);
            });
            thread.map_err(|_| stuck())?;
            answered.await.map_err(|_| stuck())
        };
        tokio::time::timeout(patience, done).await.unwrap_or_else(|_| Err(stuck()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn what_hangs_holds_up_nobody_and_is_not_begun_twice() {
        let aside = Aside::default();
        let (release, released) = mpsc::channel::<()>();
        let patience = Duration::from_millis(20);
        assert!(aside.run(patience, move || released.recv()).await.is_err());
        assert!(aside.run(patience, || panic!("a second thread")).await.is_err());
        release.send(()).expect("it waits");
        assert_eq!(aside.run(Duration::from_secs(30), || 7).await.expect("it goes on"), 7);
    }
}
