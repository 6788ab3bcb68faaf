//! Random names and secrets.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::{RngCore, rngs::OsRng};

/// A secret of `bytes` random bytes in base64url.
pub(crate) fn secret(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    OsRng.fill_bytes(&mut buffer);
    BASE64_URL_SAFE_NO_PAD.encode(buffer)
}

/// A name that starts with `prefix` and is not used twice: `req_011f…`.
pub(crate) fn name(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", OsRng.next_u64(), OsRng.next_u32())
}

/// A version 4 UUID (RFC 9562 §5.4), the shape of GitHub's `jti`.
pub(crate) fn uuid() -> String {
    let (high, low) = (OsRng.next_u64(), OsRng.next_u64());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0x0fff,
        ((low >> 48) & 0x3fff) | 0x8000,
        low & 0xffff_ffff_ffff,
    )
}
