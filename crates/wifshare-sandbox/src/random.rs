//! Random names and secrets.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};

/// A secret of `bytes` random bytes in base64url.
pub(crate) fn secret(bytes: usize) -> String {
    let mut buffer = vec![0; bytes];
    fill(&mut buffer);
    BASE64_URL_SAFE_NO_PAD.encode(buffer)
}

/// A name that starts with `prefix` and is not used twice: `req_011f…`.
pub(crate) fn name(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", number(), number() >> 32)
}

/// A version 4 UUID (RFC 9562 §5.4), the shape of GitHub's `jti`.
pub(crate) fn uuid() -> String {
    let (high, low) = (number(), number());
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0x0fff,
        ((low >> 48) & 0x3fff) | 0x8000,
        low & 0xffff_ffff_ffff,
    )
}

fn number() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_be_bytes(bytes)
}

fn fill(bytes: &mut [u8]) {
    SystemRandom::new().fill(bytes).expect("the system has random numbers");
}
