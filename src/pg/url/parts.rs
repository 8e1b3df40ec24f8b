//! Every part that libpq's URLs may have, and what becomes of it. Pure.

/// What becomes of a part.
pub(super) enum Rule {
    /// It is heeded.
    Read,
    /// These values say what happens anyway; others cannot be had, for this reason.
    Only(&'static [&'static str], &'static str),
    /// It cannot be had, for this reason.
    Never(&'static str),
}

/// Name, environment variable, rule. All of libpq's that are not obsolete.
pub(super) const PARTS: &[(&str, &str, Rule)] = &[
    ("host", "PGHOST", Rule::Read),
    ("hostaddr", "PGHOSTADDR", Rule::Read),
    ("port", "PGPORT", Rule::Read),
    ("dbname", "PGDATABASE", Rule::Read),
    ("user", "PGUSER", Rule::Read),
    ("password", "PGPASSWORD", Rule::Read),
    ("passfile", "PGPASSFILE", Rule::Read),
    ("options", "PGOPTIONS", Rule::Read),
    ("application_name", "PGAPPNAME", Rule::Read),
    ("fallback_application_name", "", Rule::Read),
    ("connect_timeout", "PGCONNECT_TIMEOUT", Rule::Read),
    ("target_session_attrs", "PGTARGETSESSIONATTRS", Rule::Read),
    ("sslmode", "PGSSLMODE", Rule::Read),
    ("sslrootcert", "PGSSLROOTCERT", Rule::Read),
    ("sslcert", "PGSSLCERT", Rule::Read),
    ("sslkey", "PGSSLKEY", Rule::Read),
    (
        "sslcertmode",
        "PGSSLCERTMODE",
        Rule::Only(
            &["allow"],
            "a certificate that is named with sslcert is shown if the server asks",
        ),
    ),
    (
        "sslnegotiation",
        "PGSSLNEGOTIATION",
        Rule::Only(&["postgres"], "TLS begins with PostgreSQL's own request"),
    ),
    ("sslcompression", "PGSSLCOMPRESSION", Rule::Only(&["0"], "TLS is not compressed")),
    ("sslsni", "PGSSLSNI", Rule::Only(&["1"], "the host is always named to the server")),
    ("sslpassword", "", Rule::Never("let sslkey name a key without a passphrase")),
    ("sslcrl", "PGSSLCRL", Rule::Never("lists of revoked certificates are not looked at")),
    ("sslcrldir", "PGSSLCRLDIR", Rule::Never("lists of revoked certificates are not looked at")),
    (
        "ssl_min_protocol_version",
        "PGSSLMINPROTOCOLVERSION",
        Rule::Only(&["TLSv1", "TLSv1.1", "TLSv1.2"], "TLS 1.2 is the oldest"),
    ),
    (
        "ssl_max_protocol_version",
        "PGSSLMAXPROTOCOLVERSION",
        Rule::Only(&["TLSv1.3", ""], "TLS 1.3 is the newest"),
    ),
    (
        "channel_binding",
        "PGCHANNELBINDING",
        Rule::Only(
            &["disable", "prefer"],
            "sslmode=verify-full with sslrootcert proves the server instead",
        ),
    ),
    ("require_auth", "PGREQUIREAUTH", Rule::Never("sslmode=verify-full proves the server instead")),
    (
        "requirepeer",
        "PGREQUIREPEER",
        Rule::Never("let the socket's directory belong to the server's user"),
    ),
    (
        "gssencmode",
        "PGGSSENCMODE",
        Rule::Only(&["disable", "prefer"], "there is TLS, and no GSSAPI"),
    ),
    (
        "krbsrvname",
        "PGKRBSRVNAME",
        Rule::Never("there is no GSSAPI; give the role a password or a certificate"),
    ),
    (
        "gsslib",
        "PGGSSLIB",
        Rule::Never("there is no GSSAPI; give the role a password or a certificate"),
    ),
    (
        "gssdelegation",
        "PGGSSDELEGATION",
        Rule::Only(&["0"], "there is no GSSAPI; give the role a password or a certificate"),
    ),
    (
        "client_encoding",
        "PGCLIENTENCODING",
        Rule::Only(&["UTF8", "utf8", "UTF-8", "utf-8", "auto"], "it is always UTF8"),
    ),
    ("keepalives", "", Rule::Never("heartbeat.timeout finds a dead connection earlier")),
    ("keepalives_idle", "", Rule::Never("heartbeat.timeout finds a dead connection earlier")),
    ("keepalives_interval", "", Rule::Never("heartbeat.timeout finds a dead connection earlier")),
    ("keepalives_count", "", Rule::Never("heartbeat.timeout finds a dead connection earlier")),
    ("tcp_user_timeout", "", Rule::Never("heartbeat.timeout finds a dead connection earlier")),
    (
        "load_balance_hosts",
        "PGLOADBALANCEHOSTS",
        Rule::Only(&["disable"], "there is one primary, and it is looked for"),
    ),
    (
        "replication",
        "",
        Rule::Only(&["false", "off", "no", "0"], "this program uses no replication connection"),
    ),
    ("service", "PGSERVICE", Rule::Never("write what the service file says into the URL")),
    (
        "min_protocol_version",
        "PGMINPROTOCOLVERSION",
        Rule::Only(&["3.0"], "the protocol's version is 3.0"),
    ),
    (
        "max_protocol_version",
        "PGMAXPROTOCOLVERSION",
        Rule::Only(&["3.0", "latest"], "the protocol's version is 3.0"),
    ),
];

/// Refuses a value that cannot be had; `place` names where it stands.
pub(super) fn allowed(rule: &Rule, value: &str, place: impl Fn() -> String) -> Result<(), String> {
    match rule {
        Rule::Read => Ok(()),
        Rule::Only(values, _) if values.contains(&value) => Ok(()),
        Rule::Only(values, reason) => {
            let place = place();
            Err(format!(
                "{place} can only be {}, because {reason}; leave it out",
                values
                    .iter()
                    .filter(|value| !value.is_empty())
                    .copied()
                    .collect::<Vec<_>>()
                    .join(" or ")
            ))
        }
        Rule::Never(reason) => Err(format!("{} is not supported: {reason}; leave it out", place())),
    }
}
