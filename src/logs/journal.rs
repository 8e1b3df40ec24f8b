//! Lines for systemd's journal, each an entry with fields: `journalctl -u unstale -p warning`,
//! `journalctl UNSTALE_TABLE=public.users`.
//!
//! An entry's MESSAGE is what a terminal would show, fields and all. That is why this is not
//! tracing-journald, whose MESSAGE is without them: `journalctl -u unstale` would say that a
//! session ended, and not why.

use std::fmt::{self, Debug};
use std::os::unix::net::UnixDatagram;
use std::{env, io};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::visible;

const SOCKET: &str = "/run/systemd/journal/socket";

/// Is stderr connected to the journal? systemd.exec(5): `JOURNAL_STREAM` is its device and inode.
pub(super) fn is_stderr() -> bool {
    let Ok(stream) = env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stderr| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// The journal's socket, or stderr if it cannot take an entry: it is missing, or the entry is
/// larger than a datagram.
pub(super) struct Journal(UnixDatagram);

impl Journal {
    pub(super) fn open() -> io::Result<Self> {
        UnixDatagram::unbound().map(Self)
    }
}

/// One write is one entry: tracing-subscriber makes one of each event.
impl io::Write for &Journal {
    fn write(&mut self, entry: &[u8]) -> io::Result<usize> {
        self.0
            .send_to(entry, SOCKET)
            .or_else(|_| io::stderr().write_all(entry).map(|()| entry.len()))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An event as an entry: <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>, of which it uses
/// `NAME=value`, one to a line.
pub(super) struct Entry;

impl<S, N> FormatEvent<S, N> for Entry
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut message = String::new();
        context.format_fields(Writer::new(&mut message), event)?;
        writeln!(writer, "MESSAGE={}", visible::line(&message))?; // a line break would begin another field
        writeln!(
            writer,
            "PRIORITY={}\nSYSLOG_IDENTIFIER=unstale",
            priority(*event.metadata().level())
        )?;
        let mut fields = Fields(writer, Ok(()));
        event.record(&mut fields);
        fields.1
    }
}

/// As syslog(3) numbers them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

struct Fields<'a>(Writer<'a>, fmt::Result);

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}")); // without quotes
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != "message" && self.1.is_ok() {
            self.1 = writeln!(
                self.0,
                "UNSTALE_{}={}",
                name(field.name()),
                visible::line(&format!("{value:?}"))
            );
        }
    }
}

/// The journal drops a field with another character in its name.
fn name(field: &str) -> String {
    field
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn an_event_is_its_text_its_priority_and_its_fields() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = written.clone();
        let writer = move || Tee(sink.clone());
        let subscriber = tracing_subscriber::fmt().event_format(Entry).with_writer(writer).finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(table = "public.users", rows = 3, "cannot be\nPRIORITY=0 swept");
        });
        let entry = String::from_utf8(written.lock().expect("no panic").clone()).expect("text");
        let expected = "MESSAGE=cannot be\\nPRIORITY=0 swept table=\"public.users\" rows=3\nPRIORITY=4\nSYSLOG_IDENTIFIER=unstale\n\
                        UNSTALE_TABLE=public.users\nUNSTALE_ROWS=3\n";
        assert_eq!(entry, expected);
    }

    struct Tee(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Tee {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
