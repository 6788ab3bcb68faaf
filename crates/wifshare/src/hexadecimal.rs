//! Bytes as lower-case hexadecimal digits (RFC 4648 §8).

/// Formats two digits per byte. Every command hashes the name of its state, so this avoids the formatting machinery.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value)]);
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 0x0f));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_two_lowercase_digits() {
        for (bytes, text) in [(&[][..], ""), (&[0], "00"), (&[0x0a, 0xf0, 0xff], "0af0ff"), (&[0x10, 0x9b], "109b")] {
            assert_eq!(hexadecimal(bytes), text);
        }
    }
}
