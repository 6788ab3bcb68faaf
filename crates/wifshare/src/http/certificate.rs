//! The trusted root certificates, and why a server's certificate was refused. Such a failure is permanent, unlike a
//! network error: a retry does not help.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::Verifier;

use super::BoxError;
use crate::environment::Environment;
use crate::private_file;

/// Variables with which other programs add root certificates.
const OF_OTHERS: [&str; 3] = ["NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

/// Why a server's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateFault {
    /// There are no root certificates.
    #[error("this system has no root certificates")]
    NoRoots,
    /// The root certificates that a variable names cannot be used.
    #[error("{0}")]
    UnusableRoots(String),
    /// The issuer is not among the root certificates.
    #[error("its issuer is unknown to {roots}")]
    UnknownIssuer {
        /// A description of the root certificates.
        roots: String,
    },
    /// The issuer is unknown, but a variable of another program names certificates that are not used here.
    #[error("its issuer is unknown to {roots}; {variable} names other roots ({}), which are not used: {why}", file.display())]
    RootsElsewhere {
        /// A description of the root certificates.
        roots: String,
        /// The variable of the other program.
        variable: &'static str,
        /// The file that it names.
        file: PathBuf,
        /// Why that file is not used.
        why: String,
    },
    /// The certificate has expired or is not valid yet, by this host's clock.
    #[error("{0}")]
    Expired(String),
    /// The certificate is for another host.
    #[error("{0}")]
    WrongName(String),
    /// Another reason.
    #[error("{0}")]
    Other(String),
}

impl CertificateFault {
    /// Instructions to fix it.
    pub fn cure(&self) -> String {
        match self {
            CertificateFault::NoRoots => {
                "install the package `ca-certificates` (apt-get install ca-certificates; apk add ca-certificates), or set \
                 SSL_CERT_FILE to a PEM file with the roots"
                    .to_owned()
            }
            CertificateFault::UnusableRoots(_) => {
                "set SSL_CERT_FILE to a PEM file with root certificates that this user can read, or unset it to use the \
                 system's"
                    .to_owned()
            }
            CertificateFault::UnknownIssuer { .. } => {
                "where a proxy inspects TLS, add its root to the system's store (update-ca-certificates), or set SSL_CERT_FILE \
                 to a PEM file with that root; NODE_EXTRA_CA_CERTS adds one to the system's roots too"
                    .to_owned()
            }
            CertificateFault::RootsElsewhere { variable, file, .. } => format!(
                "if {} holds the right root, append it to the file in SSL_CERT_FILE (`cat`), or unset SSL_CERT_FILE and \
                 SSL_CERT_DIR and make {} readable: then {variable} is used beside the system's roots",
                file.display(),
                file.display()
            ),
            CertificateFault::Expired(_) => {
                "set the clock of this host (NTP); if it is right, the server's certificate has to be renewed".to_owned()
            }
            CertificateFault::WrongName(_) => {
                "look at the host's name in the URL and at what answers there (a proxy, a captive portal, /etc/hosts)"
                    .to_owned()
            }
            CertificateFault::Other(_) => {
                "look at what answers there: `openssl s_client -connect HOST:443` shows its certificates".to_owned()
            }
        }
    }

    /// Finds a certificate fault in an error and its causes.
    pub fn find<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a CertificateFault> {
        std::iter::successors(Some(error), |error| error.source()).find_map(|error| {
            let boxed = || error.downcast_ref::<Box<CertificateFault>>().map(|fault| &**fault);
            error.downcast_ref().or_else(boxed)
        })
    }
}

/// The trusted root certificates.
#[derive(Clone, Debug)]
pub(super) enum Roots {
    /// Those of the platform, and those of other programs' variables.
    Platform { more: Vec<(&'static str, PathBuf)> },
    /// Only those of `SSL_CERT_FILE` and `SSL_CERT_DIR`; `unused` comes from a variable of another program.
    Named { file: Option<PathBuf>, directories: Vec<PathBuf>, unused: Option<(&'static str, PathBuf)> },
}

impl Roots {
    pub(super) fn new(environment: &Environment) -> Roots {
        let of_others = OF_OTHERS.iter().filter_map(|name| Some((*name, PathBuf::from(environment.os(name)?))));
        let (file, directories) = (environment.os("SSL_CERT_FILE"), environment.os("SSL_CERT_DIR"));
        match (file, directories) {
            (None, None) => Roots::Platform { more: of_others.collect() },
            (file, directories) => Roots::Named {
                file: file.map(PathBuf::from),
                directories: directories.map(|list| std::env::split_paths(list).collect()).unwrap_or_default(),
                unused: of_others.into_iter().next(),
            },
        }
    }

    /// Describes them, to follow "verified with".
    pub(super) fn describe(&self) -> String {
        let named = |name: &str, path: &Path| format!("{name} {}", path.display());
        match self {
            Roots::Platform { more } => {
                let more = more.iter().filter(|(_, file)| !certificates(file).unwrap_or_default().is_empty());
                more.fold("the system's roots".to_owned(), |text, (name, file)| {
                    format!("{text} and {}", named(name, file))
                })
            }
            Roots::Named { file, directories, .. } => {
                let file = file.iter().map(|file| named("SSL_CERT_FILE", file));
                let directories = directories.iter().map(|directory| named("SSL_CERT_DIR", directory));
                file.chain(directories).collect::<Vec<_>>().join(" and ")
            }
        }
    }

    /// The TLS configuration. Reading the platform's certificates is slow.
    pub(super) fn client_config(&self) -> Result<ClientConfig, BoxError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        match self {
            Roots::Platform { more } => {
                // Skip files of other programs that are invalid. Those programs report them.
                let more = more.iter().flat_map(|(_, file)| certificates(file).unwrap_or_default());
                let more = more.filter(|certificate| RootCertStore::empty().add(certificate.clone()).is_ok());
                let verifier = Verifier::new_with_extra_roots(more, provider).map_err(|error| match error {
                    // On Linux, the verifier fails for no other reason.
                    rustls::Error::General(_) => BoxError::from(CertificateFault::NoRoots),
                    error => error.into(),
                })?;
                Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
            }
            Roots::Named { file, directories, .. } => {
                let mut roots = RootCertStore::empty();
                let unusable = |what: String| CertificateFault::UnusableRoots(what);
                if let Some(file) = file {
                    let said = |what: String| unusable(format!("SSL_CERT_FILE {}: {what}", file.display()));
                    let found = certificates(file).map_err(said)?;
                    if roots.add_parsable_certificates(found).0 == 0 {
                        return Err(said("it lists no certificate".to_owned()).into());
                    }
                }
                for directory in directories {
                    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
                    let found = entries.flat_map(|entry| certificates(&entry.path()).unwrap_or_default());
                    roots.add_parsable_certificates(found);
                }
                if roots.is_empty() {
                    return Err(unusable(format!("{}: no certificate is found there", self.describe())).into());
                }
                Ok(builder.with_root_certificates(roots).with_no_client_auth())
            }
        }
    }

    /// Why the handshake refused the certificate; `None` if it failed for another reason.
    pub(super) fn fault(&self, error: &std::io::Error) -> Option<CertificateFault> {
        let rustls::Error::InvalidCertificate(reason) = error.get_ref()?.downcast_ref()? else { return None };
        use CertificateError as E;
        Some(match reason {
            // A bad signature means a root with the same name and another key: roots are renewed under the same name.
            E::UnknownIssuer | E::BadSignature => self.unknown_issuer(),
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
                CertificateFault::Expired(format!("by this host's clock, {reason}"))
            }
            E::NotValidForName | E::NotValidForNameContext { .. } => CertificateFault::WrongName(reason.to_string()),
            _ => CertificateFault::Other(format!("the certificate is not accepted: {reason}")),
        })
    }

    fn unknown_issuer(&self) -> CertificateFault {
        let roots = self.describe();
        let elsewhere = |(variable, file): &(&'static str, PathBuf), why: String| {
            let (variable, file, roots) = (*variable, file.clone(), roots.clone());
            CertificateFault::RootsElsewhere { roots, variable, file, why }
        };
        match self {
            Roots::Named { unused: Some(unused), .. } => {
                elsewhere(unused, "SSL_CERT_FILE or SSL_CERT_DIR is set".to_owned())
            }
            Roots::Named { unused: None, .. } => CertificateFault::UnknownIssuer { roots },
            Roots::Platform { more } => {
                let unreadable = more.iter().find_map(|named| Some((named, certificates(&named.1).err()?)));
                match unreadable {
                    Some((named, why)) => elsewhere(named, why),
                    None => CertificateFault::UnknownIssuer { roots },
                }
            }
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let file = private_file::open_regular(file).map_err(|error| format!("I/O error: {error}"))?;
    let certificates = CertificateDer::pem_reader_iter(std::io::BufReader::new(file));
    certificates.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())
}
