//! The password of a connection, from `~/.pgpass` or the file that the URL names.

use std::path::PathBuf;

use super::Error;
use super::options::SOCKET_DIRECTORIES;
use super::url::Url;
use crate::config::reading;

/// Some ten thousand servers.
const PASSFILE_BYTES: u64 = 1 << 20;

/// libpq ignores a file that others may read, with a warning; here it is refused, because nobody
/// would see a warning.
pub(super) fn password(
    url: &Url,
    host: &str,
    port: u16,
    database: &str,
    user: &str,
) -> Result<Option<String>, Error> {
    use std::os::unix::fs::PermissionsExt as _;
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pgpass"));
    let Some(file) = url.passfile.clone().or_else(home) else { return Ok(None) };
    let refused = |fault: String| Error::Url(format!("passfile {} {fault}", file.display()));
    let permissions = match std::fs::metadata(&file) {
        Ok(metadata) => metadata.permissions(),
        Err(_) if url.passfile.is_none() => return Ok(None),
        Err(error) => return Err(refused(format!("cannot be read: {error}"))),
    };
    let text = match reading::bytes(&file, PASSFILE_BYTES) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| refused("is not UTF-8".into()))?,
        Err(_) if url.passfile.is_none() => return Ok(None), // as if it were not there
        Err(fault) => return Err(refused(fault.to_string())),
    };
    if permissions.mode() & 0o077 != 0 {
        return Err(refused("can be read by others; chmod 600".into()));
    }
    let host = if SOCKET_DIRECTORIES.contains(&host) { "localhost" } else { host };
    Ok(password_in(&text, [host, &port.to_string(), database, user]))
}

/// The first line of a `.pgpass` that is for this connection: `host:port:database:user:password`,
/// with `*` for any and a backslash before a colon or a backslash.
fn password_in(passfile: &str, place: [&str; 4]) -> Option<String> {
    passfile.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let matches = fields.len() == 5
            && fields.iter().zip(place).all(|(field, is)| field == "*" || unescape(field) == is);
        matches.then(|| unescape(&fields[4]))
    })
}

/// Parted at the first four colons that no backslash stands before.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.trim_end_matches('\r').chars();
    while let Some(c) = chars.next() {
        match (c, fields.len(), fields.last_mut()) {
            (':', ..5, _) => fields.push(String::new()),
            ('\\', _, Some(field)) => {
                field.push(c);
                field.extend(chars.next());
            }
            (c, _, Some(field)) => field.push(c),
            (_, _, None) => {}
        }
    }
    fields
}

fn unescape(field: &str) -> String {
    let mut text = String::with_capacity(field.len());
    let mut chars = field.chars();
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passfile_is_read_as_libpq_reads_it() {
        let file = "# a comment\nother:5432:app:u:no\nh:*:a\\:b:u:p\\:w:x\n*:*:*:*:last\n";
        assert_eq!(password_in(file, ["h", "5432", "a:b", "u"]).as_deref(), Some("p:w:x"));
        assert_eq!(password_in(file, ["h", "5432", "app", "u"]).as_deref(), Some("last"));
        assert_eq!(password_in("h:1:d:u:x", ["h", "2", "d", "u"]), None);
    }
}
