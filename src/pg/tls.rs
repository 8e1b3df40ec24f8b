//! What to do about a connection that TLS did not let come about.
//!
//! TLS itself is sqlx's: `sslmode`, `sslrootcert`, `sslcert` and `sslkey` in the URL. It says what
//! is wrong, but not where to mend it.

use std::io::ErrorKind;

use rustls::{CertificateError, Error};

/// In parentheses, after what could not be done; empty for other causes.
pub(super) fn remedy(source: &sqlx::Error) -> &'static str {
    match source {
        sqlx::Error::Io(error) => match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(error) => of_handshake(error),
            // Hardly anything but a file can be missing or closed to us; sqlx does not say which.
            None if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                " (the socket that DATABASE_URL names must be there, and open to this user)"
            }
            None => "",
        },
        sqlx::Error::Tls(error) => match error.downcast_ref() {
            Some(error) => of_handshake(error),
            None => {
                " (the sslmode in DATABASE_URL wants TLS: set ssl = on in postgresql.conf, and let sslrootcert name a file in PEM)"
            }
        },
        sqlx::Error::Configuration(_) => {
            " (sslcert and sslkey in DATABASE_URL go together, and name files in PEM)"
        }
        // The server's words for pg_hba.conf's clientcert and cert; 28000 alone may also be an
        // unknown role.
        sqlx::Error::Database(error)
            if error.code().as_deref() == Some("28000")
                && error.message().contains("certificate") =>
        {
            " (name the files of a client certificate and its key with sslcert and sslkey in DATABASE_URL)"
        }
        _ => "",
    }
}

fn of_handshake(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            " (let sslrootcert in DATABASE_URL name the file of the authority that has signed the server's certificate)"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => " (let DATABASE_URL name a host that the server's certificate is for)",
        Error::InvalidCertificate(_) => {
            " (the server needs another certificate, or the clock is wrong)"
        }
        Error::AlertReceived(_) => {
            " (let sslcert and sslkey in DATABASE_URL name files that the server's authority has signed)"
        }
        _ => "",
    }
}
