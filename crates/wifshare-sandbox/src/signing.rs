//! JSON Web Signatures with ES256: sign, verify, publish the key (RFC 7515, RFC 7517, RFC 7518 §3.4).

use std::sync::OnceLock;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Map, Value, json};

/// The algorithm's name in headers and keys.
pub(crate) const ALGORITHM: &str = "ES256";

/// The P-256 key that signs identity tokens. It is made when first needed, once in a process.
pub(crate) struct SigningKey {
    pair: EcdsaKeyPair,
    /// The key's thumbprint (RFC 7638): two processes on one port, one after the other, never share an id.
    id: String,
    jwk: Value,
}

impl SigningKey {
    /// The key of this process.
    pub(crate) fn of_this_process() -> &'static SigningKey {
        static KEY: OnceLock<SigningKey> = OnceLock::new();
        KEY.get_or_init(SigningKey::generate)
    }

    fn generate() -> SigningKey {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .expect("the system has random numbers");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
            .expect("a key that was just generated is valid");
        let [x, y] = coordinates(pair.public_key().as_ref()).map(|number| BASE64_URL_SAFE_NO_PAD.encode(number));
        let id = thumbprint(&x, &y);
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "x": x, "y": y, "use": "sig", "alg": ALGORITHM, "kid": id,
        });
        SigningKey { pair, id, jwk }
    }

    /// The key's id.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// The public key, as a key set publishes it.
    pub(crate) fn jwk(&self) -> &Value {
        &self.jwk
    }

    /// A signed token with these claims, in the compact serialisation (RFC 7515 §7.1).
    pub(crate) fn sign(&self, claims: &Map<String, Value>) -> String {
        let header = json!({"typ": "JWT", "alg": ALGORITHM, "kid": self.id});
        let encoded = |value: String| BASE64_URL_SAFE_NO_PAD.encode(value);
        let input = format!("{}.{}", encoded(header.to_string()), encoded(Value::from(claims.clone()).to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), input.as_bytes()).expect("the system has random numbers");
        format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    /// Whether this key made `signature` over `input`, the header and the payload with the dot between them.
    pub(crate) fn verifies(&self, input: &str, signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key())
            .verify(input.as_bytes(), signature)
            .is_ok()
    }
}

/// The coordinates of an uncompressed point (SEC 1 §2.3.3): 4, then 32 bytes each.
fn coordinates(point: &[u8]) -> [&[u8]; 2] {
    let (x, y) = point[1..].split_at(32);
    [x, y]
}

/// A key's thumbprint (RFC 7638 §3): the hash of its required members, sorted and without spaces.
fn thumbprint(x: &str, y: &str) -> String {
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    BASE64_URL_SAFE_NO_PAD.encode(digest(&SHA256, members.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_generated_once_and_named_by_its_thumbprint() {
        let key = SigningKey::of_this_process();
        assert!(std::ptr::eq(key, SigningKey::of_this_process()));
        assert_eq!(key.id().len(), 43, "a SHA-256 in base64url");
        assert_eq!(key.id(), thumbprint(key.jwk()["x"].as_str().unwrap(), key.jwk()["y"].as_str().unwrap()));
        assert_ne!(SigningKey::generate().id(), key.id());
    }

    #[test]
    fn thumbprint_matches_another_implementation() {
        // The key of RFC 7515 appendix A.3; the thumbprint by Python's jwcrypto.
        let [x, y] = ["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"];
        assert_eq!(thumbprint(x, y), "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U");
    }

    #[test]
    fn signature_of_rfc_7515_verifies() {
        // RFC 7515 appendix A.3.
        let [x, y] = ["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"];
        let input = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).unwrap();
        let point = [vec![4], part(x), part(y)].concat();
        assert_eq!(coordinates(&point), [part(x), part(y)]);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
        assert!(key.verify(input.as_bytes(), &part(signature)).is_ok());
    }

    #[test]
    fn public_key_has_no_private_member() {
        let jwk = SigningKey::of_this_process().jwk().as_object().unwrap();
        let names: Vec<_> = jwk.keys().map(String::as_str).collect();
        assert_eq!(names, ["alg", "crv", "kid", "kty", "use", "x", "y"]);
    }
}
