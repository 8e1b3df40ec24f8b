//! TLS to Redis: whom we trust, and what we show of ourselves.
//!
//! The files are read for each connection, so that certificates that are renewed on disk need no
//! restart. fred's own way trusts the system's authorities and no others, shows no certificate, and
//! calls the URL wrong if the system has a file that it cannot read. Refuses: to connect without
//! looking at the server's certificate.

use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::error::Error;
use crate::config::Tls;
use crate::config::reading::{self, Unreadable};

/// Reads the files.
///
/// # Errors
/// [`Error::File`].
pub(super) fn client_config(tls: &Tls) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder().with_root_certificates(authorities(tls)?);
    let (Some(cert_file), Some(key_file)) = (&tls.cert_file, &tls.key_file) else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates("redis.tls.cert_file", cert_file)?;
    let of_key = |fault| file_error("redis.tls.key_file", key_file, fault);
    let key =
        reading::bytes(key_file, reading::PEM_BYTES).map_err(|error| of_key(error.to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&key)
        .map_err(|error| of_key(in_words(error, "private key without a passphrase")))?;
    let fault =
        |error| format!("does not go with the certificate in {} ({error})", cert_file.display());
    builder.with_client_auth_cert(chain, key).map_err(|error| of_key(fault(error)))
}

/// Those of the file, else those of the system. Of the latter as many as can be read: one that is
/// broken is not ours to mend, and without those that are missing the server is refused with a
/// sentence.
fn authorities(tls: &Tls) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    let Some(ca_file) = &tls.ca_file else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(roots);
    };
    for certificate in certificates("redis.tls.ca_file", ca_file)? {
        let fault = |error| {
            file_error(
                "redis.tls.ca_file",
                ca_file,
                format!("holds a certificate that no authority can have ({error})"),
            )
        };
        roots.add(certificate).map_err(fault)?;
    }
    Ok(roots)
}

fn certificates(key: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = reading::bytes(file, reading::PEM_BYTES)
        .map_err(|error: Unreadable| file_error(key, file, error.to_string()))?;
    let all = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    let some =
        all.and_then(|all| if all.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(all) });
    some.map_err(|error| file_error(key, file, in_words(error, "certificate")))
}

fn file_error(key: &'static str, file: &Path, fault: String) -> Error {
    Error::File { key, file: file.to_owned(), fault }
}

/// Not the library's words: they may show a line of the file.
fn in_words(error: pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::NoItemsFound => {
            format!("holds no {wanted}; it must be in PEM, which begins with -----BEGIN")
        }
        _ => format!("is broken; it must hold a {wanted} in PEM"),
    }
}

/// What to do about a connection that TLS did not let come about; `None` for other causes. Of
/// rustls' errors fred keeps the `Debug`.
pub(super) fn remedy(details: &str) -> Option<&'static str> {
    let causes = [
        (
            "UnknownIssuer",
            "its certificate is from an unknown authority; name the file of that authority in redis.tls.ca_file",
        ),
        (
            "NotValidForName",
            "its certificate is for another host; let REDIS_URL name one that it is for",
        ),
        ("InvalidCertificate(", "its certificate cannot be used; renew it, or set the clock"),
        (
            "AlertReceived(CertificateRequired",
            "it wants a certificate; name its files in redis.tls.cert_file and redis.tls.key_file",
        ),
        (
            "AlertReceived(",
            "it refuses our certificate; let redis.tls.cert_file name one that its authority has signed",
        ),
    ];
    causes.into_iter().find(|(word, _)| details.contains(word)).map(|(_, remedy)| remedy)
}
